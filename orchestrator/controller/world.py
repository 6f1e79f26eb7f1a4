"""A sweep, its runs and its surroundings at one moment, and what each unit does next.

Pure. What is derived here is derived again at the next step, from what is not over yet: see `rest`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from orchestrator.cluster.base import ObservedJob
from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.observed import (
    History,
    Observed,
    Unit,
    attempt_of,
    histories,
)
from orchestrator.controller.outcome import AttemptRecord, FailureClass, gpu_seconds
from orchestrator.controller.requests import job_of, protocols
from orchestrator.controller.rest import gpu_faults
from orchestrator.controller.retry import Limits, Overrides, after_failure, bad_nodes, overrides_after
from orchestrator.controller.stuck import Cause, cause
from orchestrator.sweep.expand import Run
from orchestrator.sweep.spec import Sweep

NOTHING = History()


@dataclass(frozen=True)
class Next:
    """What a unit does next: nothing more (done, failed), wait (busy), or start `attempt`."""

    verb: Literal["done", "busy", "start", "failed"]
    attempt: int
    job: ObservedJob | None = None
    record: AttemptRecord | None = None
    overrides: Overrides = field(default_factory=Overrides)
    failure: FailureClass | None = None
    evidence: str = ""
    remedy: str = ""

    @property
    def running(self) -> bool:
        """Whether a pod of its Job runs; else it waits for a place."""
        return self.job is not None and any(pod.phase == "Running" for pod in self.job.pods)


@dataclass(frozen=True)
class World:
    """What plan() decides from. `max_memory` (bytes) bounds a remedy; `now` is in Unix seconds."""

    sweep: Sweep
    runs: Catalogue
    observed: Observed
    now: float
    max_memory: int | None = None

    @property
    def name(self) -> str:
        return self.sweep.metadata.name

    @cached_property
    def histories(self) -> Mapping[Unit, History]:
        known = self.observed.histories
        return histories(self.observed, self.now) if known is None else known

    @property
    def present(self) -> Sequence[Run]:
        """The runs to look at, in the sweep's order: all but those that `observed.rest` sums up."""
        present = self.observed.rest.present
        return self.runs if present is None else present

    @cached_property
    def protocols(self) -> tuple[str, ...]:
        return protocols(self.sweep.spec.eval, self.observed.control.evals)

    @cached_property
    def cancelled(self) -> frozenset[str]:
        """Ids of the runs that the user has cancelled."""
        return self.runs.called(self.observed.control.cancel)

    @cached_property
    def live_jobs(self) -> tuple[ObservedJob, ...]:
        """Jobs that are not finished: they hold places of the window."""
        return tuple(
            job for job in self.observed.jobs if not job.finished and job.name not in self.observed.recorded
        )

    @cached_property
    def causes(self) -> dict[str, Cause]:
        """What keeps unfinished Jobs from getting on, by Job name."""
        said = self.observed.said
        found = ((job.name, cause(job, self.now, said.get(job.name, ()))) for job in self.live_jobs)
        return {name: one for name, one in found if one}

    def held_s(self, job: ObservedJob) -> float:
        """For how long the present cause has been seen, seconds."""
        return self.now - self.observed.since.get(job.name, self.now)

    @cached_property
    def gpu_seconds(self) -> float:
        """GPU-seconds of all attempts up to now."""
        recorded = sum(record.gpu_seconds for record in self.observed.records.values())
        return (
            self.observed.rest.gpu_seconds
            + recorded
            + sum(gpu_seconds(job, self.now) for job in self.live_jobs)
        )

    @cached_property
    def trains(self) -> dict[str, Next]:
        """What each run's training does next, by run id."""
        return {run.id: self.next(Unit("train", run.id)) for run in self.present}

    @cached_property
    def gpu_faults(self) -> Counter[str]:
        """GPU faults by node."""
        return gpu_faults(self.observed.records.values()) + Counter(self.observed.rest.gpu_faults)

    def limits(self, unit: Unit) -> Limits:
        """How far remedies of this unit may go: only a training's micro-batch can be cut."""
        run = self.runs.by_id.get(unit.id) if unit.stage == "train" else None
        spec = self.sweep.spec
        batch = run.config.per_device_train_batch_size if run else 1
        return Limits(spec.resources, spec.retry, self.max_memory, batch, bad_nodes(self.gpu_faults))

    def next(self, unit: Unit) -> Next:
        """What the unit does next; an attempt follows only one that is recorded and has no pod any more."""
        history = self.histories.get(unit, NOTHING)
        if history.done:
            return Next("done", history.done.attempt, record=history.done)
        if history.job:
            return self._busy(history.job, history.last)
        failed = self._refused(unit, history)
        if failed:
            return failed
        limits, last = self.limits(unit), history.last
        step = Next(
            "start", self._attempt_after(unit, history), overrides=overrides_after(history.records, limits)
        )
        if last:
            verdict = after_failure(history.records, limits, self.observed.control.retry)
            step = replace(
                step, record=last, failure=last.failure, evidence=last.evidence, remedy=verdict.why
            )
            if not verdict.again:
                return replace(step, verb="failed", attempt=last.attempt)
        return (
            replace(step, verb="busy", remedy="waiting for its last pod to end") if history.fenced else step
        )

    def _busy(self, job: ObservedJob, last: AttemptRecord | None) -> Next:
        held = self.causes.get(job.name)
        if held is None:
            return Next("busy", attempt_of(job), job, last)
        remedy = "" if held.ends_after_s is None else f"ended after {held.ends_after_s:.0f} s of this"
        return Next("busy", attempt_of(job), job, last, evidence=held.evidence, remedy=remedy)

    def _attempt_after(self, unit: Unit, history: History) -> int:
        """The number of the next attempt: a record that nobody can read has its number all the same."""
        attempt = history.attempt + 1
        while job_of(self.name, unit, attempt) in self.observed.unreadable:
            attempt += 1
        return attempt

    def _refused(self, unit: Unit, history: History) -> Next | None:
        """An attempt whose Job cannot be made: another's name, or gone again and again without a record."""
        attempt = self._attempt_after(unit, history)
        name = job_of(self.name, unit, attempt)
        if name in self.observed.conflicts:
            evidence = f"a Job named {name} exists and is not this sweep's; delete it or rename the sweep"
            return Next(
                "failed", attempt, record=history.last, failure=FailureClass.CONFIG, evidence=evidence
            )
        made = self.observed.created.get(name, 0)
        if made > self.sweep.spec.retry.lost and name not in self.observed.control.retry:
            evidence = f"its Job {name} was made {made} times and vanished each time without a record"
            return Next("failed", attempt, record=history.last, failure=FailureClass.LOST, evidence=evidence)
        return None
