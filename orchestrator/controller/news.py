"""What is new in a status, as events for people: PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.base import Event
from orchestrator.controller.advice import with_advice
from orchestrator.controller.status import Condition, Failure, SweepStatus

ALARMING = frozenset({"Halted", "JobsRefused", "Waiting"})
"""Conditions that someone must do something about while they are True."""
MOMENTS = {"Complete": "ended", "Halted": "halted"}
"""Conditions that the webhook is told of once they are True."""


def news(before: Mapping[str, Any] | None, after: SweepStatus, sweep: str) -> list[Event]:
    """Events for the conditions that changed and the failures that came since the stored status `before`.

    Each says what followed, or what someone can do.
    """
    old = before or {}
    known = {(one.get("type"), one.get("status"), one.get("reason")) for one in old.get("conditions") or []}
    changed = [one for one in after.conditions if (one.type, one.status, one.reason) not in known]
    failed = {(one.get("run"), one.get("stage"), one.get("attempt")) for one in old.get("failures") or []}
    fresh = [one for one in after.failures if (one.run, one.stage, one.attempt) not in failed]
    events = (_of_condition(one, sweep) for one in changed)
    return [*map(_of_failure, reversed(fresh)), *filter(None, events)]


def _of_failure(one: Failure) -> Event:
    then = f"; {one.remedy}" if one.remedy else ""
    message = f"{one.run}: {one.stage} {one.attempt} failed, {one.failure}: {one.evidence}{then}"
    return Event(one.failure[:1].upper() + one.failure[1:], message, warning=True)


def _of_condition(one: Condition, sweep: str) -> Event | None:
    """None for a condition that is no news: that not all is done yet."""
    message = with_advice(one.message, one.reason, sweep)
    if one.type == "Accepted":
        good = one.status == "True"
        return Event("Accepted", one.message) if good else Event("Refused", message, warning=True)
    if one.status != "True":
        return None
    moment = MOMENTS.get(one.type, "")
    alarming = one.type in ALARMING or one.reason == "SomeFailed"
    return Event(one.reason, message, warning=alarming, moment=moment)
