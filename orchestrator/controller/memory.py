"""What a controller knows of a sweep beyond what is stored; it is forgotten when the controller ends.

Losing it costs time, never a result: a clock starts anew, a question is asked again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from orchestrator.cluster.base import Event, ObservedJob, OpenPart
from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.ledger import Ledger
from orchestrator.controller.observed import Control, Observed, histories
from orchestrator.controller.rest import Closed
from orchestrator.controller.stuck import Cause, cause, unclear
from orchestrator.errors import ClusterError

LOG = logging.getLogger(__name__)
CONFLICT_HOLDS_S = 60.0  # then it is looked at again: whoever holds a name may give it up
ASKED_AGAIN_S = 30.0
"""What was said of a Job that does not start is asked for this often."""
ASKED_AT_ONCE = 8
"""Of so many Jobs a turn: those that wait for one thing say the same."""


@dataclass
class Memory:
    """Of one sweep with this uid: one of the same name that is submitted anew has another."""

    uid: str
    created: Counter[str] = field(default_factory=Counter)
    _conflicts: dict[str, float] = field(default_factory=dict)
    _causes: dict[str, tuple[Cause, float]] = field(default_factory=dict)
    _said: dict[str, tuple[float, Sequence[Event]]] = field(default_factory=dict)
    _ledger: Ledger | None = None
    _seen: Observed | None = None

    def seen(self, observed: Observed, now: float) -> Observed:
        """With its histories, kept where nothing happened since the last turn, and what is left out."""
        known = histories(observed, now, self._seen)
        rest = self._ledger.rest(known) if self._ledger else observed.rest
        self._seen = replace(observed, histories=known, rest=rest)
        return self._seen

    def open_part(
        self, runs: Catalogue, control: Control, ahead: int, look: Callable[[Set[str]], OpenPart]
    ) -> OpenPart:
        """What is not closed of these runs: all of it if what is known of them does not fit, see Ledger."""
        if self._ledger and self._ledger.fits(runs, control):
            part = look(self._ledger.closed)
            if part.complete:
                return part
        self._ledger = Ledger(runs, control, ahead)
        return look(self._ledger.closed)

    def close(self, closed: Closed) -> None:
        """Leave this out from the next turn on."""
        if self._ledger:
            self._ledger.close(closed)

    def tried(self, run: str) -> None:
        """A Job of this run was to be made, whatever came of it."""
        if self._ledger:
            self._ledger.begin(run)

    def conflict(self, job: str, now: float) -> None:
        """A Job of that name is another's."""
        self._conflicts[job] = now + CONFLICT_HOLDS_S

    def conflicts(self, now: float, taken: Callable[[str], bool]) -> frozenset[str]:
        """The names that others hold; whether one still does is asked once a minute."""
        for job, until in list(self._conflicts.items()):
            if until <= now:
                if taken(job):
                    self.conflict(job, now)
                else:
                    del self._conflicts[job]
        return frozenset(self._conflicts)

    def said(
        self, jobs: Iterable[ObservedJob], now: float, ask: Callable[[ObservedJob], Sequence[Event]]
    ) -> dict[str, Sequence[Event]]:
        """What was said of the Jobs that do not start and do not say why, by Job name."""
        asked = {job.uid: job for job in jobs if unclear(job, now)}
        self._said = {uid: told for uid, told in self._said.items() if uid in asked}
        due = [job for uid, job in asked.items() if self._asked_at(uid) + ASKED_AGAIN_S <= now]
        for job in sorted(due, key=lambda one: self._asked_at(one.uid))[:ASKED_AT_ONCE]:
            try:
                self._said[job.uid] = (now, ask(job))
            except ClusterError as error:  # a controller without that right works on, and knows less
                LOG.warning("controller: what keeps %s from starting is not known: %s", job.name, error)
                self._said[job.uid] = (now, ())
        return {asked[uid].name: told for uid, (_, told) in self._said.items()}

    def since(
        self, jobs: Iterable[ObservedJob], now: float, said: Mapping[str, Sequence[Event]]
    ) -> dict[str, float]:
        """When the present cause of each Job that does not get on was first seen, by Job name."""
        seen = ((job.name, cause(job, now, said.get(job.name, ()))) for job in jobs if not job.finished)
        known, self._causes = self._causes, {}
        for name, held in seen:
            if held:
                before = known.get(name)
                same = before is not None and _kind(before[0]) == _kind(held)
                self._causes[name] = (held, before[1] if before and same else now)
        return {name: began for name, (_, began) in self._causes.items()}

    def overdue(self, now: float) -> frozenset[str]:
        """The Jobs that, as far as was seen, have lacked something for so long that they will be ended."""
        return frozenset(
            name
            for name, (held, began) in self._causes.items()
            if held.ends_after_s is not None and now - began >= held.ends_after_s
        )

    def _asked_at(self, uid: str) -> float:
        return self._said.get(uid, (float("-inf"), ()))[0]


def _kind(held: Cause) -> tuple[str, float | None]:
    """A wait without end lends its age to none that has one."""
    return held.failure, held.ends_after_s
