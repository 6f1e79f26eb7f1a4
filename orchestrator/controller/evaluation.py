"""Which adapters are measured together, and when: as soon as a Job is full or no further adapter can come.

With `adaptersPerJob: 1` (the default) every adapter is measured as soon as it exists. With more, up to three
adapters wait for others, which saves loading the models. Baselines are measured once, before the first
adapter: inside its Job if that one Job holds every adapter there will be, else in a Job of their own.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from orchestrator.controller.observed import Unit
from orchestrator.controller.requests import Measurement, fetch_unit, measure_fetch
from orchestrator.controller.world import Next, World
from orchestrator.sweep.spec import EvalSpec
from trainer.config import FetchConfig


@dataclass(frozen=True)
class Start:
    """An eval or baseline Job to create."""

    what: Measurement
    step: Next


@dataclass(frozen=True)
class Evaluation:
    """The evaluations of a world. `may_train` says whether trainings that wait may still start."""

    world: World
    may_train: bool = True

    @cached_property
    def known(self) -> dict[Unit, tuple[Measurement, Next]]:
        """The eval Jobs there have been, as far as they measure what the sweep still asks for."""
        found = {}
        units = (unit for unit in self.world.histories if unit.stage == "eval")
        for unit in sorted(units):  # so that of equals every controller prefers the same
            what = self._measurement(unit, self.world.histories[unit].runs)
            if what:
                found[unit] = (what, self.world.next(unit))
        return found

    def _measurement(self, unit: Unit, runs: tuple[str, ...]) -> Measurement | None:
        bases = self.world.runs.bases
        base = next((bases[run] for run in runs if run in bases), None)
        if base is None:
            return None
        candidates = (Measurement(self.world.name, one, base, runs) for one in self.world.protocols)
        return next((what for what in candidates if what.unit == unit), None)

    @cached_property
    def by_run(self) -> dict[tuple[str, str], Next]:
        """How far each (protocol, run id) is; of two Jobs that measure it the further one counts."""
        rank = {"failed": 0, "start": 1, "busy": 2, "done": 3}
        found: dict[tuple[str, str], Next] = {}
        for what, step in self.known.values():
            for run in what.runs:
                other = found.get((what.protocol, run))
                if other is None or rank[step.verb] > rank[other.verb]:
                    found[what.protocol, run] = step
        return found

    def of(self, run: str) -> list[Next | None]:
        """The run's evaluations, one a protocol; None: no Job yet. A failed baseline fails its waiters."""
        steps = [self.by_run.get((protocol, run)) for protocol in self.world.protocols]
        base = self.world.runs.bases[run]
        return [
            step or self.groups[protocol, base].broken
            for step, protocol in zip(steps, self.world.protocols, strict=True)
        ]

    @cached_property
    def groups(self) -> dict[tuple[str, str], Group]:
        """The runs of each protocol and base."""
        members: dict[str, list[str]] = {}
        for run in self.world.present:
            members.setdefault(self.world.runs.bases[run.id], []).append(run.id)
        return {
            (protocol, base): Group(self, protocol, base, tuple(runs))
            for protocol in self.world.protocols
            for base, runs in members.items()
        }

    def starts(self) -> Iterator[Start]:
        """The eval and baseline Jobs to create now: attempts to repeat, then what became ready."""
        for what, step in self.known.values():
            if step.verb == "start" and set(what.runs) - self.world.cancelled:
                yield Start(what, step)
        for group in self.groups.values():
            yield from group.starts()


@dataclass(frozen=True)
class Group:
    """The runs that one protocol measures on one base."""

    evaluation: Evaluation
    protocol: str
    base: str
    members: tuple[str, ...]

    @property
    def world(self) -> World:
        return self.evaluation.world

    @cached_property
    def ready(self) -> list[str]:
        """Runs with an adapter that no Job measures yet, in the order in which they came out."""
        trained = [
            run
            for run in self.members
            if self.world.trains[run].verb == "done"
            and run not in self.world.cancelled
            and (self.protocol, run) not in self.evaluation.by_run
        ]
        return sorted(trained, key=self._finished_at)

    def _finished_at(self, run: str) -> float:
        record = self.world.trains[run].record
        return (record.finished_at if record else None) or 0.0

    @cached_property
    def more_to_come(self) -> bool:
        """Whether another run of this base may still bring an adapter."""
        return any(self._may_come(run) for run in self.members if run not in self.world.cancelled)

    def _may_come(self, run: str) -> bool:
        verb = self.world.trains[run].verb
        if verb != "start":
            return verb == "busy"
        fetched = self.world.next(self.world.runs.fetch_units[run]).verb != "failed"
        return fetched and self.evaluation.may_train

    @property
    def baseline(self) -> Measurement:
        return Measurement(self.world.name, self.protocol, self.base)

    @property
    def _per_job(self) -> int:
        return self.world.sweep.spec.eval.adaptersPerJob

    @cached_property
    def _siblings(self) -> list[str]:
        """Verbs of this group's eval Jobs: each of them measures the baselines if nobody has."""
        known = self.evaluation.known.values()
        verbs: list[str] = [
            step.verb for what, step in known if what.protocol == self.protocol and what.base == self.base
        ]
        closed = (self.protocol, self.base) in self.world.observed.rest.measured
        return [*verbs, "done"] if closed else verbs

    @cached_property
    def _needs_baseline(self) -> bool:
        """Whether neither a baseline Job nor an eval Job has measured the baselines, and they are wanted."""
        wanted = EvalSpec.model_validate_json(self.protocol).baselines
        return bool(wanted) and not (
            "done" in self._siblings or self.world.next(self.baseline.unit).verb == "done"
        )

    @cached_property
    def _alone(self) -> bool:
        """Whether one Job holds every adapter there will be: then it measures the baselines too."""
        return not self.more_to_come and len(self.ready) <= self._per_job

    @cached_property
    def text(self) -> FetchConfig | None:
        """The text and task rows to fetch before anything is measured."""
        return measure_fetch(self.protocol)

    @cached_property
    def _text_step(self) -> Next | None:
        return self.world.next(fetch_unit(self.text)) if self.text else None

    @cached_property
    def broken(self) -> Next | None:
        """The final failure of the text or the baselines, when adapters wait for them in vain."""
        if self._text_step and self._text_step.verb == "failed":
            return self._text_step
        if not self._needs_baseline or self._alone or {"busy", "start"} & set(self._siblings):
            return None
        step = self.world.next(self.baseline.unit)
        return step if step.verb == "failed" else None

    def starts(self) -> Iterator[Start]:
        """What to create for this group now."""
        batches = list(self._batches())
        if not batches or (self._text_step and self._text_step.verb != "done"):
            return
        if self._needs_baseline:
            if {"busy", "start"} & set(self._siblings):
                return  # the first Job is measuring them
            if not self._alone:
                step = self.world.next(self.baseline.unit)
                if step.verb == "start":
                    yield Start(self.baseline, step)
                return
        for runs in batches:
            what = Measurement(self.world.name, self.protocol, self.base, tuple(runs))
            step = self.world.next(what.unit)
            if step.verb == "start":
                yield Start(what, step)

    def _batches(self) -> Iterator[Sequence[str]]:
        for first in range(0, len(self.ready), self._per_job):
            batch = self.ready[first : first + self._per_job]
            if len(batch) == self._per_job or not self.more_to_come:
                yield batch
