"""What to do next with a sweep: PURE. Records first, then Jobs to let go, to delete, to create.

Policies are one function each. A quiet world gives no action, and nothing that is done is run again.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.closing import closed
from orchestrator.controller.evaluation import Evaluation
from orchestrator.controller.observed import Observed, Unit
from orchestrator.controller.outcome import AttemptRecord, FailureClass
from orchestrator.controller.requests import (
    eval_request,
    fetch_request,
    fetch_unit,
    job_of,
    train_request,
)
from orchestrator.controller.rest import Closed
from orchestrator.controller.settling import settled
from orchestrator.controller.status import FINAL, Condition, RunState, SweepStatus, states, status_of
from orchestrator.controller.world import World
from orchestrator.render import JobRequest
from orchestrator.sweep.expand import Run
from orchestrator.sweep.spec import Sweep

HALTING = frozenset({FailureClass.USER_ERROR, FailureClass.CONFIG, FailureClass.IMAGE_PULL})
"""What one run fails by, the others of its sweep will fail by too."""


@dataclass(frozen=True)
class RecordAttempt:
    """Store how an attempt ended, under its Job's name."""

    record: AttemptRecord


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job and end its pods."""

    name: str
    uid: str
    reason: str


@dataclass(frozen=True)
class CreateJob:
    """Create a Job; `runs` are those whose adapters an eval Job measures."""

    name: str
    request: JobRequest
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class RetireJob:
    """Let a finished Job go: its outcome is recorded."""

    name: str


Action = RecordAttempt | RetireJob | DeleteJob | CreateJob


@dataclass(frozen=True)
class Plan:
    """Actions in the order in which they are done, and the status to tell afterwards.

    `closed` need not be looked at again. In `due_s` seconds something is to be done though nothing changes;
    None: in no foreseeable time.
    """

    actions: tuple[Action, ...]
    status: SweepStatus
    states: tuple[RunState, ...]
    closed: Closed = field(default_factory=Closed)
    due_s: float | None = None


def plan(
    sweep: Sweep,
    runs: Sequence[Run],
    observed: Observed,
    now: float,
    max_memory: int | None = None,
    most_creates: int | None = None,
) -> Plan:
    """What to do with a sweep at `now` (Unix seconds), creating `most_creates` Jobs at most.

    `max_memory` in bytes is the profile's limit.
    """
    world, records = settled(World(sweep, Catalogue.of(runs), observed, now, max_memory))
    evaluation = Evaluation(world)
    told = states(world, evaluation)
    blocked = _blocked(world, told)
    if blocked:
        evaluation = Evaluation(world, may_train=False)
    deletes = tuple(_deletions(world))
    wanted = _wanted(world, evaluation, told, blocked)
    creates = _window(world, wanted, most_creates)
    status = status_of(world, told, blocked, finished=_finished(world, deletes, creates))
    actions: tuple[Action, ...] = (*map(RecordAttempt, records), *_retirements(world), *deletes, *creates)
    return Plan(actions, status, told, closed(world, evaluation, told), _due_s(world))


def changes(
    runs: Sequence[Run], stored: Sequence[Run], told: Mapping[str, RunState] | None = None
) -> dict[str, str]:
    """By run id what submitting `runs` means: `+` new, `=` exists, `~` changed (same name, other config).

    `told` (states by run id) shows runs that were dropped from the sweep but have attempts: those exist too.
    """
    known = {run.id for run in stored} | {run for run, state in (told or {}).items() if state.attempts}
    names = {name for run in stored for name in (run.name, *run.also)}
    return {
        run.id: "=" if run.id in known else ("~" if names & {run.name, *run.also} else "+") for run in runs
    }


def _blocked(world: World, told: Sequence[RunState]) -> Condition | None:
    """Why no new training may start: suspended, out of GPU-hours, or a failure that the others will share."""
    if world.observed.control.suspend:
        return Condition(type="Suspended", status="True", reason="Requested", message="starts no new Job")
    hours, spent = world.sweep.spec.scheduling.gpuHours, world.gpu_seconds / 3600
    if hours is not None and spent >= hours:
        message = f"{hours:g} GPU-hours are used; raise scheduling.gpuHours to go on"
        return Condition(type="Halted", status="True", reason="GpuHoursUsed", message=message)
    return _canary_failed(world, told) or _same_failure(world, told)


def _canary_failed(world: World, told: Sequence[RunState]) -> Condition | None:
    if not world.sweep.spec.scheduling.canary or released(world):
        return None
    for state in told:
        if state.state == "failed" and state.failure in HALTING:
            message = f"{state.run.name}: {state.failure}: {state.evidence}"
            return Condition(type="Halted", status="True", reason="CanaryFailed", message=message)
    return None


def _same_failure(world: World, told: Sequence[RunState]) -> Condition | None:
    failed = [
        state
        for state in told
        if state.state == "failed" and state.stage == "train" and state.failure in HALTING
    ]
    same = Counter(map(_complaint, failed))
    for complaint, count in same.most_common(1):
        if count >= world.sweep.spec.scheduling.haltAfter:
            message = f"{count} runs fail alike: {complaint}"
            return Condition(type="Halted", status="True", reason="SameFailure", message=message)
    return None


def _complaint(state: RunState) -> str:
    """The evidence without what names the run itself."""
    names = sorted({state.run.id, state.run.name, *([state.job] if state.job else [])}, key=len, reverse=True)
    return re.sub(r"\s+", " ", re.sub("|".join(map(re.escape, names)), "…", state.evidence))


def released(world: World) -> bool:
    """Whether a canary has shown that runs of this sweep train: one is done, or past its first step."""
    return world.observed.rest.done > 0 or any(
        step.verb == "done" or (step.job and any(pod.ready for pod in step.job.pods))
        for step in world.trains.values()
    )


def _retirements(world: World) -> Iterator[RetireJob]:
    """Finished Jobs whose outcome is stored: before that, their deletion would make them run again."""
    for job in world.observed.jobs:
        if job.finished and not job.retired and job.name in world.observed.recorded:
            yield RetireJob(job.name)


def _deletions(world: World) -> Iterator[DeleteJob]:
    """Unfinished Jobs whose outcome is stored: they were ended, whoever stored it and did not come so far."""
    for job in world.observed.jobs:
        record = world.observed.records.get(job.name)
        if record and not job.finished and not job.deleting:
            yield DeleteJob(job.name, job.uid, record.evidence)


def _wanted(
    world: World, evaluation: Evaluation, told: Sequence[RunState], blocked: Condition | None
) -> Iterator[CreateJob]:
    """Jobs to create, most urgent first: what runs wait for, then measuring, then training."""
    if blocked and (blocked.type == "Suspended" or blocked.reason == "GpuHoursUsed"):
        return
    training = [] if blocked else list(_trainings(world, told))
    yield from _fetches(world, evaluation, training)
    yield from _evaluations(world, evaluation)
    yield from _train_jobs(world, training)


def _trainings(world: World, told: Sequence[RunState]) -> Iterator[Run]:
    """Runs that may start training: all that wait, or the canary alone until it is released."""
    if not world.sweep.spec.scheduling.canary or released(world):
        yield from (state.run for state in told if _waits(world, state))
        return
    first = next((state for state in told if state.state not in FINAL), None)
    if first and _waits(world, first):
        yield first.run


def _waits(world: World, state: RunState) -> bool:
    return state.state == "pending" and world.trains[state.run.id].verb == "start"


def _fetches(world: World, evaluation: Evaluation, training: Sequence[Run]) -> Iterator[CreateJob]:
    """One fetch for each model and dataset that runs wait for, and for each text of their evaluations."""
    runs = world.runs
    wanted = {runs.fetch_units[run.id]: runs.fetches[run.id] for run in training}
    texts = [group.text for group in evaluation.groups.values() if training or group.ready]
    wanted |= {fetch_unit(text): text for text in texts if text}
    for unit, fetch in wanted.items():
        step = world.next(unit)
        if step.verb == "start":
            request = fetch_request(world.sweep, world.observed.uid, fetch, step.attempt, step.overrides)
            yield _create(world, unit, request)


def _evaluations(world: World, evaluation: Evaluation) -> Iterator[CreateJob]:
    for start in evaluation.starts():
        step = start.step
        request = eval_request(world.sweep, world.observed.uid, start.what, step.attempt, step.overrides)
        yield _create(world, start.what.unit, request, start.what.runs)


def _train_jobs(world: World, training: Sequence[Run]) -> Iterator[CreateJob]:
    for run in training:
        if world.next(world.runs.fetch_units[run.id]).verb == "done":
            step = world.trains[run.id]
            request = train_request(world.sweep, world.observed.uid, run, step.attempt, step.overrides)
            yield _create(world, Unit("train", run.id), request)


def _create(world: World, unit: Unit, request: JobRequest, runs: tuple[str, ...] = ()) -> CreateJob:
    return CreateJob(job_of(world.name, unit, request.attempt), request, runs)


def _window(world: World, wanted: Iterator[CreateJob], most: int | None) -> tuple[CreateJob, ...]:
    """As many Jobs as `parallelism` leaves room for; unfinished ones hold their places."""
    room = max(0, world.sweep.spec.scheduling.parallelism - len(world.live_jobs))
    return tuple(itertools.islice(wanted, room if most is None else min(room, most)))


def _finished(world: World, deletes: Sequence[DeleteJob], creates: Sequence[CreateJob]) -> bool:
    """Whether nothing runs, ends or starts: only someone's command or change goes on from here."""
    return not (deletes or creates or world.live_jobs) and not any(
        history.fenced for history in world.histories.values()
    )


def _due_s(world: World) -> float | None:
    """When the next stuck Job will be ended. That a fence ends is found out well enough by usual turns."""
    ends = [
        max(0.0, held.ends_after_s - world.held_s(job))
        for job in world.live_jobs
        if (held := world.causes.get(job.name)) and held.ends_after_s is not None
    ]
    return min(ends, default=None)
