"""A sweep, its runs and its surroundings at one moment, and what each unit does next.

Pure. Everything that is derived here is derived again at the next step: the controller remembers nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from orchestrator.cluster.base import ObservedJob
from orchestrator.controller.observed import (
    ALL_RUNS,
    History,
    Observed,
    Unit,
    attempt_of,
    histories,
    runs_of,
    unit_of,
)
from orchestrator.controller.outcome import (
    AttemptRecord,
    FailureClass,
    Outcome,
    classify,
    gpu_seconds,
    outcome,
)
from orchestrator.controller.requests import base_of, fetch_of, job_of, protocols
from orchestrator.controller.retry import Limits, Overrides, after_failure, bad_nodes, overrides_after
from orchestrator.sweep.expand import Run
from orchestrator.sweep.naming import ANNOTATION_DIGEST
from orchestrator.sweep.spec import Sweep
from trainer.config import FetchConfig, ModelSettings

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
    runs: tuple[Run, ...]
    observed: Observed
    now: float
    max_memory: int | None = None

    @property
    def name(self) -> str:
        return self.sweep.metadata.name

    @cached_property
    def histories(self) -> dict[Unit, History]:
        return histories(self.observed, self.now)

    @cached_property
    def by_id(self) -> dict[str, Run]:
        return {run.id: run for run in self.runs}

    @cached_property
    def bases(self) -> dict[str, ModelSettings]:
        """The base of each run by its id."""
        return {run.id: base_of(run.config) for run in self.runs}

    @cached_property
    def fetches(self) -> dict[str, FetchConfig]:
        """What must be on the volume before each run, by run id."""
        return {run.id: fetch_of(run.config) for run in self.runs}

    @cached_property
    def protocols(self) -> tuple[str, ...]:
        return protocols(self.sweep.spec.eval, self.observed.control.evals)

    @cached_property
    def cancelled(self) -> frozenset[str]:
        """Ids of the runs that the user has cancelled."""
        named = set(self.observed.control.cancel)
        return frozenset(run.id for run in self.runs if named & {run.id, run.name, *run.also, ALL_RUNS})

    @cached_property
    def live_jobs(self) -> tuple[ObservedJob, ...]:
        """Jobs that are not finished: they hold places of the window."""
        return tuple(
            job for job in self.observed.jobs if not job.finished and job.name not in self.observed.records
        )

    @cached_property
    def gpu_seconds(self) -> float:
        """GPU-seconds of all attempts up to now."""
        recorded = sum(record.gpu_seconds for record in self.observed.records.values())
        return recorded + sum(gpu_seconds(job, self.now) for job in self.live_jobs)

    @cached_property
    def trains(self) -> dict[str, Next]:
        """What each run's training does next, by run id."""
        return {run.id: self.next(Unit("train", run.id)) for run in self.runs}

    @cached_property
    def _bad_nodes(self) -> tuple[str, ...]:
        return bad_nodes(self.observed.records.values())

    def limits(self, unit: Unit) -> Limits:
        """How far remedies of this unit may go: only a training's micro-batch can be cut."""
        run = self.by_id.get(unit.id) if unit.stage == "train" else None
        spec = self.sweep.spec
        batch = run.config.per_device_train_batch_size if run else 1
        return Limits(spec.resources, spec.retry, self.max_memory, batch, self._bad_nodes)

    def next(self, unit: Unit) -> Next:
        """What the unit does next; an attempt follows only one that is recorded and has no pod any more."""
        history = self.histories.get(unit, NOTHING)
        if history.done:
            return Next("done", history.done.attempt, record=history.done)
        if history.job:
            return Next("busy", attempt_of(history.job), history.job, history.last)
        failed = self._refused(unit, history)
        if failed:
            return failed
        limits, last = self.limits(unit), history.last
        step = Next("start", history.attempt + 1, overrides=overrides_after(history.records, limits))
        if last:
            verdict = after_failure(history.records, limits, self.observed.control.retry)
            step = replace(
                step, record=last, failure=last.failure, evidence=last.evidence, remedy=verdict.why
            )
            if not verdict.again:
                return replace(step, verb="failed", attempt=last.attempt)
        return (
            replace(step, verb="busy", remedy="waiting for its last pod to end") if False else step
        )

    def _refused(self, unit: Unit, history: History) -> Next | None:
        """An attempt whose Job cannot be made: another's name, or gone again and again without a record."""
        attempt = history.attempt + 1
        name = job_of(self.name, unit, attempt)
        if name in self.observed.conflicts:
            evidence = f"a Job named {name} exists and is not this sweep's; delete it or rename the sweep"
            return Next(
                "failed", attempt, record=history.last, failure=FailureClass.CONFIG, evidence=evidence
            )
        made = self.observed.created.get(name, 0)
        if made > self.sweep.spec.retry.lost:
            evidence = f"its Job {name} was made {made} times and vanished each time without a record"
            return Next("failed", attempt, record=history.last, failure=FailureClass.LOST, evidence=evidence)
        return None


def settled(world: World) -> tuple[World, tuple[AttemptRecord, ...]]:
    """The world with every finished attempt recorded, and the records that are new."""
    new = tuple(_new_records(world))
    if not new:
        return world, ()
    records = {**world.observed.records, **{record.job: record for record in new}}
    return replace(world, observed=replace(world.observed, records=records)), new


def _new_records(world: World) -> Iterator[AttemptRecord]:
    for job in world.observed.jobs:
        if job.name in world.observed.records:
            continue
        record = record_of(world, job)
        if record:
            yield record


def record_of(world: World, job: ObservedJob) -> AttemptRecord | None:
    """The record of a finished Job, with what it ran with and what follows from it; None before it is."""
    result = classify(job)
    return _record(world, job, result) if result else None


def record_as(world: World, job: ObservedJob, failure: FailureClass, evidence: str) -> AttemptRecord:
    """The record of a Job that was ended from outside, whatever it reported."""
    return _record(world, job, outcome(job, failure, evidence, None))


def _record(world: World, job: ObservedJob, result: Outcome) -> AttemptRecord:
    if result.finished_at is None or any(pod.finished_at is None for pod in job.pods):
        # Nobody saw its end, so it is now: the fence around a lost node's pod counts from here.
        ended = {"finished_at": world.now, "gpu_seconds": gpu_seconds(job, world.now)}
        result = result.model_copy(update=ended)
    unit, attempt = unit_of(job), attempt_of(job)
    limits = world.limits(unit)
    history = world.histories.get(unit, NOTHING)
    former = [record for record in history.records if record.attempt < attempt]
    record = AttemptRecord(
        job=job.name,
        sweep=world.name,
        run_id=unit.id,
        stage=unit.stage,
        attempt=attempt,
        digest=job.annotations.get(ANNOTATION_DIGEST, ""),
        runs=runs_of(job),
        overrides=overrides_after(former, limits).to_json(),
        **dict(result),
    )
    if record.state == "done":
        return record
    verdict = after_failure([*former, record], limits, world.observed.control.retry)
    return record.model_copy(update={"remedy": verdict.why})
