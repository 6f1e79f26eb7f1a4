"""Which attempts are over, finished or ended from outside, and the record of each: PURE.

What is ended is recorded first and deleted then: nobody can lose what was known of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.cluster.base import ObservedJob
from orchestrator.controller.evidence import outlived
from orchestrator.controller.observed import ALL_RUNS, attempt_of, histories, runs_of, unit_of
from orchestrator.controller.outcome import (
    AttemptRecord,
    FailureClass,
    Outcome,
    classify,
    gpu_seconds,
    outcome,
)
from orchestrator.controller.rest import gpu_faults
from orchestrator.controller.retry import after_failure, bad_nodes, overrides_after
from orchestrator.controller.world import NOTHING, World
from orchestrator.sweep.naming import ANNOTATION_DIGEST, split_run_id


def settled(world: World) -> tuple[World, tuple[AttemptRecord, ...]]:
    """The world with every attempt recorded that is over, and the records that are new."""
    new = tuple(_new_records(world))
    if not new:
        return world, ()
    records = {**world.observed.records, **{record.job: record for record in new}}
    before = replace(world.observed, histories=world.histories)
    after = replace(before, records=records)
    return replace(world, observed=replace(after, histories=histories(after, world.now, before))), new


def record_of(world: World, job: ObservedJob) -> AttemptRecord | None:
    """The record of a Job that is finished, or whose trainer is; None before. It says what it ran with, and
    what follows from it."""
    result = classify(outlived(job, world.now))
    return _record(world, job, result) if result else None


def record_as(world: World, job: ObservedJob, failure: FailureClass, evidence: str) -> AttemptRecord:
    """The record of a Job that is ended from outside, whatever it reports."""
    return _record(world, job, outcome(job, failure, evidence, None))


def _new_records(world: World) -> Iterator[AttemptRecord]:
    for job in world.observed.jobs:
        if job.name in world.observed.recorded:
            continue
        record = record_of(world, job) or _ended(world, job)
        if record:
            yield record


def _ended(world: World, job: ObservedJob) -> AttemptRecord | None:
    """The record of an unfinished Job that nobody wants any more, or that will never get on."""
    unwanted = "" if job.deleting else _unwanted(world, job)
    if unwanted:
        return record_as(world, job, FailureClass.CANCELLED, unwanted)
    stuck = world.causes.get(job.name)
    if stuck and stuck.ends_after_s is not None and world.held_s(job) >= stuck.ends_after_s:
        return record_as(world, job, stuck.failure, stuck.evidence)
    return None


def _unwanted(world: World, job: ObservedJob) -> str:
    """Why no run needs the Job: all are cancelled, or gone from the sweep when pruning was asked for."""
    control = world.observed.control
    if not control.cancel and not control.prune:
        return ""
    unit = unit_of(job)
    runs = {unit.id} if unit.stage == "train" else set(runs_of(job))
    runs = runs or set(world.runs.by_id)
    # A run that the file no longer has can still be cancelled by its id, or by its name without the digest.
    cancel = set(control.cancel)
    named = {run for run in runs if {run, split_run_id(run)[0], ALL_RUNS} & cancel}
    if not runs - world.cancelled - named:
        return "cancelled by its user"
    if control.prune and not any(run in world.runs.by_id for run in runs):
        return "pruned: the sweep no longer has its runs"
    return ""


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
    # Its own fault may be the one that makes its node a bad one.
    known = bad_nodes(world.gpu_faults + gpu_faults([record]))
    limits = replace(limits, bad_nodes=known)
    verdict = after_failure([*former, record], limits, world.observed.control.retry)
    return record.model_copy(update={"remedy": verdict.why})
