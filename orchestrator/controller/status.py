"""What is told of a sweep: the state of each run, and a status that does not grow with their number.

Pure.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.controller.advice import after
from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.evaluation import Evaluation
from orchestrator.controller.observed import Observed
from orchestrator.controller.outcome import AttemptRecord, FailureClass
from orchestrator.controller.owed import Owed
from orchestrator.controller.rest import FAILURES_SHOWN, Best, best_of, better, newest_failures
from orchestrator.controller.settling import settled
from orchestrator.controller.world import Next, World
from orchestrator.errors import JobRefusedError
from orchestrator.sweep.expand import Run
from orchestrator.sweep.spec import Sweep
from trainer.results import Stage

State = Literal["pending", "running", "trained", "evaluating", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
FINAL: frozenset[State] = frozenset({"done", "failed", "cancelled"})
TEXT_LIMIT = 300
MESSAGE_LIMIT = 8000  # of a condition; with FAILURES_SHOWN no status comes near the API server's 1.5 MiB
TOLD_AFTER_S = 15.0
"""A Job that waits is no news before that: every pod is unschedulable for a moment."""


@dataclass(frozen=True)
class RunState:
    """Where a run is. `stage`, `job` and `attempts` are of what it does now or did last.

    `failure` and `evidence` are of its last failed attempt, `remedy` says what followed from it, `record` is
    the newest record of that stage.
    """

    run: Run
    state: State
    stage: Stage
    attempts: int
    job: str | None = None
    failure: FailureClass | None = None
    evidence: str = ""
    remedy: str = ""
    record: AttemptRecord | None = None


class Condition(BaseModel):
    """A condition of a Sweep, as Kubernetes spells them."""

    type: str
    status: Literal["True", "False"]
    reason: str
    message: str = ""
    lastTransitionTime: str | None = None


class Failure(BaseModel):
    """One of the last failures, truncated; `remedy` says what followed, or what someone can do."""

    run: str
    stage: Stage
    attempt: int
    failure: FailureClass = Field(alias="class")
    evidence: str
    remedy: str = ""

    model_config = ConfigDict(populate_by_name=True)


class SweepStatus(BaseModel):
    """The status of a Sweep. `active` counts unfinished Jobs; `control` identifies the commands seen, and
    `observedGeneration` the spec they came with.

    `finished`: nothing runs and nothing will start unless someone changes something.
    """

    counts: dict[str, int] = Field(default_factory=dict)
    conditions: list[Condition] = Field(default_factory=list)
    active: int = 0
    finished: bool = False
    best: Best | None = None
    gpuHours: float = 0.0
    failures: list[Failure] = Field(default_factory=list)
    control: str = ""
    observedGeneration: int | None = None
    owed: list[Owed] | None = None

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def run_states(
    sweep: Sweep, runs: Sequence[Run], observed: Observed, now: float, max_memory: int | None = None
) -> tuple[RunState, ...]:
    """Where each run is, in the sweep's order; `max_memory` in bytes, `now` in Unix seconds."""
    world, _ = settled(World(sweep, Catalogue.of(runs), observed, now, max_memory))
    return states(world, Evaluation(world))


def states(world: World, evaluation: Evaluation) -> tuple[RunState, ...]:
    """As run_states, of a world whose finished attempts are recorded."""
    return tuple(_state(world, evaluation, run) for run in world.present)


def _state(world: World, evaluation: Evaluation, run: Run) -> RunState:
    train = world.trains[run.id]
    state = _trained(run, train, evaluation) if train.verb == "done" else _training(world, run, train)
    if run.id in world.cancelled and state.state != "done":
        return replace(state, state="cancelled")
    return state


def _training(world: World, run: Run, train: Next) -> RunState:
    if train.verb == "busy":
        return _told(run, "running" if train.running else "pending", "train", train)
    if train.verb == "failed":
        return _told(run, "failed", "train", train)
    fetch = world.next(world.runs.fetch_units[run.id])
    if fetch.verb == "failed":
        return _told(run, "failed", "fetch", fetch)
    told = _told(run, "pending", "train", train)
    return replace(told, attempts=train.attempt - 1)


def _trained(run: Run, train: Next, evaluation: Evaluation) -> RunState:
    steps = evaluation.of(run.id)
    failed = next((step for step in steps if step and step.verb == "failed"), None)
    if failed:
        stage: Stage = failed.record.stage if failed.record else "eval"
        return _told(run, "failed", stage, failed)
    if not steps:
        return _told(run, "done", "train", train)
    if all(step and step.verb == "done" for step in steps):
        return _told(run, "done", "eval", steps[-1] or train)
    busy = next((step for step in steps if step and step.verb == "busy"), None)
    return _told(run, "evaluating", "eval", busy) if busy else _told(run, "trained", "train", train)


def _told(run: Run, state: State, stage: Stage, step: Next) -> RunState:
    job = step.job.name if step.job else (step.record.job if step.record else None)
    return RunState(
        run, state, stage, step.attempt, job, step.failure, step.evidence, step.remedy, step.record
    )


def status_of(
    world: World, told: Sequence[RunState], blocked: Condition | None, *, finished: bool
) -> SweepStatus:
    """The status of a world; `blocked` is the condition that keeps new Jobs from starting."""
    rest = world.observed.rest
    counts: Counter[State] = Counter({"done": rest.done})
    for one in told:
        counts[one.state] += 1 + rest.behind.get(one.run.id, 0)
    total = counts.total()
    final = all(state.state in FINAL for state in told)
    conditions = [
        Condition(type="Accepted", status="True", reason="Valid", message=f"{total} runs"),
        _complete(counts, final),
    ]
    return SweepStatus(
        counts={"total": total, **{state: counts[state] for state in STATES}},
        conditions=[one for one in (*conditions, blocked, _held(world)) if one],
        active=len(world.live_jobs),
        finished=finished,
        best=_best(world),
        gpuHours=round(world.gpu_seconds / 3600, 3),
        failures=list(_failures(world, told)),
        control=control_digest(world),
    )


def refused(faults: Sequence[str]) -> SweepStatus:
    """The status of a stored sweep that no longer expands: nothing is done to it until it is put right."""
    message = "\n".join(faults)[:MESSAGE_LIMIT]
    refusal = Condition(type="Accepted", status="False", reason="Invalid", message=message)
    return SweepStatus(conditions=[refusal], finished=True)


def unrenderable(status: SweepStatus, faults: str) -> SweepStatus:
    """The status of a sweep whose Jobs cannot be made with this profile: nothing new starts."""
    halted = Condition(type="Halted", status="True", reason="CannotRender", message=faults[:MESSAGE_LIMIT])
    others = [one for one in status.conditions if one.type != halted.type]  # one of a type, says the CRD
    update = {"conditions": [*others, halted], "finished": status.active == 0}
    return status.model_copy(update=update)


def waiting(status: SweepStatus, refused: JobRefusedError) -> SweepStatus:
    """The status of a sweep whose next Job or record is not taken: it is tried again until it is."""
    held = Condition(type="JobsRefused", status="True", reason=refused.reason, message=str(refused))
    # An end that is not stored may yet turn out otherwise: nobody is told that all is done.
    conditions = [
        one.model_copy(update={"status": "False", "reason": "Progressing"}) if one.type == "Complete" else one
        for one in status.conditions
    ]
    return status.model_copy(update={"conditions": [*conditions, held], "finished": False})


def stamped(
    status: SweepStatus, before: Mapping[str, Any] | None, generation: int | None, now: float
) -> SweepStatus:
    """With the generation that was observed, and the time (Unix seconds) since which each condition holds.

    `before` is the stored status: a condition that still has its state keeps its time. No message is longer
    than MESSAGE_LIMIT.
    """
    since = {
        (one.get("type"), one.get("status")): one.get("lastTransitionTime")
        for one in (before or {}).get("conditions") or []
    }
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [
        one.model_copy(
            update={
                "lastTransitionTime": since.get((one.type, one.status)) or stamp,
                "message": one.message[:MESSAGE_LIMIT],
            }
        )
        for one in status.conditions
    ]
    return status.model_copy(update={"conditions": conditions, "observedGeneration": generation})


def control_digest(world: World) -> str:
    """8 hex that tell the user's commands apart."""
    return hashlib.sha256(world.observed.control.model_dump_json().encode()).hexdigest()[:8]


def _complete(counts: Counter[State], final: bool) -> Condition:
    if not final:
        left = sum(count for state, count in counts.items() if state not in FINAL)
        return Condition(type="Complete", status="False", reason="Progressing", message=f"{left} runs to go")
    reason = "SomeFailed" if counts["failed"] else "AllDone"
    said = ", ".join(f"{counts[state]} {state}" for state in ("done", "failed", "cancelled") if counts[state])
    return Condition(type="Complete", status="True", reason=reason, message=said or "no runs")


def _held(world: World) -> Condition | None:
    """What keeps Jobs from starting, or from ending: told when it lasts, by what most of them lack."""
    held = [
        world.causes[job.name]
        for job in world.live_jobs
        if job.name in world.causes and world.held_s(job) >= TOLD_AFTER_S
    ]
    if not held:
        return None
    counts = Counter(one.failure for one in held)
    failure, count = max(sorted(counts.items()), key=lambda one: one[1])
    evidence = next(one.evidence for one in held if one.failure is failure)
    said = f"{count} Jobs do not get on" if count > 1 else "a Job does not get on"
    reason = failure[:1].upper() + failure[1:]
    return Condition(type="Waiting", status="True", reason=reason, message=f"{said}: {evidence}"[:TEXT_LIMIT])


def _best(world: World) -> Best | None:
    observed = world.observed
    return better(observed.rest.best, best_of(observed.records.values(), world.runs.by_id))


def _failures(world: World, told: Sequence[RunState]) -> Iterator[Failure]:
    """Those whose Job could never be made, for they have no record, and then the latest of the recorded."""
    unmade = [one for one in told if one.state == "failed" and one.record is None]
    for one in unmade[:FAILURES_SHOWN]:
        yield _failure(one.run.id, one.stage, one.attempts, one)
    failed = newest_failures((*world.observed.rest.failures, *world.observed.records.values()))
    for record in failed[: max(0, FAILURES_SHOWN - len(unmade))]:
        yield _failure(record.run_id, record.stage, record.attempt, record)


def _failure(run: str, stage: Stage, attempt: int, of: RunState | AttemptRecord) -> Failure:
    return Failure(
        run=run,
        stage=stage,
        attempt=attempt,
        failure=of.failure or FailureClass.UNKNOWN,
        evidence=of.evidence[:TEXT_LIMIT],
        remedy=after(of.failure, of.remedy)[:TEXT_LIMIT],
    )
