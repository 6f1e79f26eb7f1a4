"""What a controller has closed of a sweep, so that a turn costs what is open.

Losing it costs one long turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace
from itertools import islice

from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.observed import ALL_RUNS, Control, Unit
from orchestrator.controller.rest import Closed, Rest
from orchestrator.sweep.expand import Run


class Ledger:
    """Of these runs under these commands: others begin a new one.

    Of runs that wait for the same and that nothing has happened to, `ahead` are shown.
    """

    def __init__(self, runs: Catalogue, control: Control, ahead: int) -> None:
        self._runs = runs
        self._control = control
        self._ahead = ahead
        self._rest = Rest()
        self._closed: set[str] = set()
        self._begun: dict[str, Run] = {}
        self._waiting: dict[tuple[Unit, str], dict[str, Run]] = {}
        for run in runs:
            self._waiting.setdefault(self._like(run), {})[run.id] = run
        for cancelled in runs.called(set(control.cancel) - {ALL_RUNS}):
            self.begin(cancelled)

    def fits(self, runs: Catalogue, control: Control) -> bool:
        """Whether it is of these; it is true as long as all that was closed has its records."""
        return runs is self._runs and control == self._control

    @property
    def closed(self) -> Set[str]:
        """Names of the Jobs that need not be looked at, nor their records; it grows."""
        return self._closed

    def begin(self, run: str) -> None:
        """Something happened to the run, or was tried: it is not like others any more."""
        known = self._runs.by_id.get(run)
        if known and self._waiting[self._like(known)].pop(run, None):
            self._begun[run] = known

    def rest(self, units: Iterable[Unit]) -> Rest:
        """What is not to be looked at, and which runs are, given all open units with an attempt."""
        for stage, run in units:
            if stage == "train" and run not in self._begun:
                self.begin(run)
        present, behind = list(self._begun.values()), {}
        for alike in self._waiting.values():
            shown = list(islice(alike.values(), self._ahead))
            present += shown
            if len(alike) > len(shown):
                behind[shown[-1].id] = len(alike) - len(shown)
        present.sort(key=lambda run: self._runs.places[run.id])
        return replace(self._rest, present=tuple(present), behind=behind)

    def close(self, closed: Closed) -> None:
        """Leave this out from now on."""
        if closed.runs or closed.jobs:
            self._rest = self._rest.plus(closed, self._runs.by_id)
            self._closed |= closed.jobs
            for run in closed.runs:
                self._begun.pop(run, None)

    def _like(self, run: Run) -> tuple[Unit, str]:
        return self._runs.fetch_units[run.id], self._runs.bases[run.id]
