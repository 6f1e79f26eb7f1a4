"""Tells people how a sweep is: its stored status, and events and notices for what is new in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster.base import Cluster, Event
from orchestrator.controller.leftout import NEWER, NOTHING, WORDS, dropped, without
from orchestrator.controller.news import news
from orchestrator.controller.owed import Owed, owing
from orchestrator.controller.postbox import Postbox
from orchestrator.controller.status import SweepStatus
from orchestrator.errors import ClusterError, NotFoundError, StatusRefusedError
from orchestrator.profile import Notify

LOG = logging.getLogger(__name__)
FORMS = (NOTHING, NEWER, WORDS)
"""What is left out of a status that is refused, one after the other, until it is taken."""
REFUSED_AGAIN_S = 600.0
"""For so long a status is not tried in a form that was refused."""
Json = dict[str, Any]


@dataclass
class Teller:
    """A status is told at most every `every_s`, and every `hours_every_s` when its essence is as before.

    A notice of what ended or halted, as `notify` says at that moment, is stored as owed by the same write,
    and posted from then on until the webhook has settled it: at least once, whoever dies in between.
    """

    cluster: Cluster
    every_s: float = 0.0
    hours_every_s: float = 0.0
    postbox: Postbox = field(default_factory=Postbox)
    notify: Callable[[], Notify | None] = lambda: None
    _told_at: dict[str, float] = field(default_factory=dict)
    _cut: dict[str, tuple[Json, Json]] = field(default_factory=dict)
    _form: dict[str, tuple[int, float]] = field(default_factory=dict)
    _said: set[tuple[str, str]] = field(default_factory=set)

    def tell(self, name: str, stored: Mapping[str, Any], status: SweepStatus, now: float) -> float | None:
        """Store the status and tell what is new in it; in how many seconds there is more to tell, if any.

        `stored` is the Sweep object as it was before.
        """
        before, notify = self._as_told(name, stored), self.notify()
        events, held = news(before, status, name), _owed(before)
        owed = owing(held, events, notify, self.postbox.gone(name, held, now), now)
        status = status.model_copy(update={"owed": owed or None})
        value, later_s = status.to_json(), None
        if value != before:
            later_s = self._wait_s(name, before or {}, value, now)
            if later_s is None:
                self._tell(name, events)
                later_s = self._store(name, value, now)
            if later_s is not None:  # what is not stored is not posted: the next turn would find it new again
                value, owed = before or {}, [one for one in held if one in owed]
        again_s = self.postbox.post(name, {**stored, "status": value}, owed, notify, now)
        return min((one for one in (later_s, again_s) if one is not None), default=None)

    def close(self, within_s: float, now: float) -> None:
        """Let the webhook take what was posted, for so long at most, and store that it is owed no more."""
        self.postbox.webhook.close(within_s)
        for name in self.postbox.names:
            try:
                self._settle(name, now)
            except (ClusterError, NotFoundError) as error:  # it is posted once more, if there is someone to
                LOG.warning("controller: it is not stored what was told of %s: %s", name, error)

    def forget(self, name: str) -> None:
        """Drop what is kept of a sweep that is gone."""
        for kept in (self._told_at, self._cut, self._form):
            kept.pop(name, None)
        self._said = {one for one in self._said if one[0] != name}
        self.postbox.forget(name)

    def _settle(self, name: str, now: float) -> None:
        stored = self.cluster.sweep(name)
        before = self._as_told(name, stored) if stored else None
        held = _owed(before)
        gone = self.postbox.gone(name, held, now)
        if before and gone:
            left = [one.model_dump() for one in held if one not in gone]
            rest = {key: value for key, value in before.items() if key != "owed"}
            self._store(name, {**rest, "owed": left} if left else rest, now)

    def _as_told(self, name: str, stored: Mapping[str, Any]) -> Json | None:
        """The stored status; whole, if it is what was left of the one that was told last."""
        before = stored.get("status")
        told, kept = self._cut.get(name, (None, None))
        return told if told is not None and before == kept else before

    def _wait_s(self, name: str, before: Json, value: Json, now: float) -> float | None:
        """In how many seconds the status may be stored; None: now."""
        level, until = self._form.get(name, (0, now))
        if level == len(FORMS) and until > now:
            return until - now
        # GPU-hours and a scheduler's words change as long as a Job runs or waits; every write wakes us anew.
        every_s = self.hours_every_s if _essence(value) == _essence(before) else self.every_s
        left_s = self._told_at.get(name, -every_s) + every_s - now
        return left_s if left_s > 0 and not value["finished"] else None

    def _tell(self, name: str, events: list[Event]) -> None:
        """First: once the status is stored, they are no news any more."""
        for event in events:
            try:
                self.cluster.put_event(name, event)
            except ClusterError as error:  # the status says the same; one that is not taken costs no other
                LOG.warning("controller: an event was not told: %s", error)

    def _store(self, name: str, value: Json, now: float) -> float | None:
        """Store it, as much of it as is taken; in how many seconds it is tried again, if nothing is."""
        level, until = self._form.pop(name, (0, now))
        if until <= now or level == len(FORMS):
            level, until = 0, now + REFUSED_AGAIN_S
        while level < len(FORMS):
            sent = without(value, FORMS[level])
            try:
                self.cluster.put_status(name, sent)
                break
            except StatusRefusedError as error:
                self._say(name, f"the status of {name} is not taken whole: {error}")
                while level < len(FORMS) and without(value, FORMS[level]) == sent:
                    level += 1
        if level:
            self._form[name] = (level, until)
        if level == len(FORMS):
            return until - now
        self._told_at[name] = now
        self._look_back(name, value, sent)
        return None

    def _look_back(self, name: str, value: Json, sent: Json) -> None:
        """Remember what became of the status: an older definition may keep less of it than was sent.

        Else it would be stored anew at each turn, for it is never what it should be.
        """
        stored = self.cluster.sweep(name)
        if stored is None:
            return  # it was deleted meanwhile
        kept = stored.get("status") or {}
        lost = dropped(sent, kept)
        if without(sent, lost) != kept:
            kept = sent  # another wrote meanwhile
        elif lost:
            fields = ", ".join(sorted(".".join(("status", *path)) for path in lost))
            self._say(
                name,
                f"crd: is older than this controller, got no {fields}; "
                "run `orch install --crd-only` as admin",
            )
        if kept == value:
            self._cut.pop(name, None)
        else:
            self._cut[name] = (value, kept)

    def _say(self, name: str, what: str) -> None:
        """Once, where its user and whoever is on call look."""
        if (name, what) not in self._said:
            self._said.add((name, what))
            LOG.error("controller: %s", what)
            self._tell(name, [Event("StatusCut", what, warning=True)])


def _owed(status: Mapping[str, Any] | None) -> list[Owed]:
    """Those that can be read: another version, or someone's hand, may have written others."""
    return [one for value in (status or {}).get("owed") or [] if (one := Owed.of(value)) is not None]


def _essence(status: Mapping[str, Any]) -> Json:
    """A status but for its GPU-hours and the words of its conditions."""
    conditions = [{**one, "message": ""} for one in status.get("conditions") or []]
    return {**status, "gpuHours": 0, "conditions": conditions}
