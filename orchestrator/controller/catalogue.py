"""The runs of a sweep with what is looked up of them, worked out once: a sweep changes rarely.

Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from sys import intern

from orchestrator.controller.observed import ALL_RUNS, Unit
from orchestrator.controller.requests import base_of, fetch_of, fetch_unit
from orchestrator.sweep.expand import Run
from trainer.config import FetchConfig


class Catalogue(tuple[Run, ...]):
    """The runs in the sweep's order."""

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Catalogue:
        """The runs as a catalogue; one that is one already keeps what it has worked out."""
        return runs if isinstance(runs, cls) else cls(runs)

    @cached_property
    def by_id(self) -> dict[str, Run]:
        return {run.id: run for run in self}

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each run in the order, by run id."""
        return {run.id: place for place, run in enumerate(self)}

    @cached_property
    def bases(self) -> dict[str, str]:
        """The base of each run (see Measurement) by its id."""
        return {run.id: intern(base_of(run.config)) for run in self}

    @cached_property
    def fetches(self) -> dict[str, FetchConfig]:
        """What must be on the volume before each run, by run id; equal ones are one object."""
        known: dict[FetchConfig, FetchConfig] = {}
        fetches = ((run.id, fetch_of(run.config)) for run in self)
        return {run: known.setdefault(fetch, fetch) for run, fetch in fetches}

    @cached_property
    def fetch_units(self) -> dict[str, Unit]:
        """The fetch that each run waits for, by run id."""
        return {run: fetch_unit(fetch) for run, fetch in self.fetches.items()}

    @cached_property
    def _named(self) -> dict[str, list[str]]:
        named: dict[str, list[str]] = {}
        for run in self:
            for name in {run.id, run.name, *run.also}:
                named.setdefault(name, []).append(run.id)
        return named

    def called(self, names: Collection[str]) -> frozenset[str]:
        """Ids of the runs that these ids and names mean."""
        if ALL_RUNS in names:
            return frozenset(self.by_id)
        return frozenset(run for name in names for run in self._named.get(name, ()))
