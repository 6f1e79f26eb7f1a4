"""What is new in a status, as events for people: PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.base import Event
from orchestrator.controller.status import Condition, Failure, SweepStatus

ALARMING = frozenset({"Halted", "JobsRefused", "Waiting"})
"""Conditions that someone must do something about while they are True."""


def news(before: Mapping[str, Any] | None, after: SweepStatus) -> list[Event]:
    """Events for the conditions that changed and the failures that came since the stored status `before`."""
    old = before or {}
    known = {(one.get("type"), one.get("status"), one.get("reason")) for one in old.get("conditions") or []}
    changed = [one for one in after.conditions if (one.type, one.status, one.reason) not in known]
    failed = {(one.get("run"), one.get("stage"), one.get("attempt")) for one in old.get("failures") or []}
    fresh = [one for one in after.failures if (one.run, one.stage, one.attempt) not in failed]
    return [*map(_of_failure, reversed(fresh)), *filter(None, map(_of_condition, changed))]


def _of_failure(one: Failure) -> Event:
    message = f"{one.run}: {one.stage} {one.attempt} failed, {one.failure}: {one.evidence}"
    return Event(one.failure[:1].upper() + one.failure[1:], message, warning=True)


def _of_condition(one: Condition) -> Event | None:
    """None for a condition that is no news: that not all is done yet."""
    if one.type == "Complete":
        return (
            Event(one.reason, one.message, warning=one.reason == "SomeFailed")
            if one.status == "True"
            else None
        )
    if one.type == "Accepted":
        name = "Accepted" if one.status == "True" else "Refused"
        return Event(name, one.message, warning=one.status == "False")
    return Event(one.reason, one.message, warning=one.type in ALARMING) if one.status == "True" else None
