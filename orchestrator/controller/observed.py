"""What the controller knows of a sweep: its Jobs, its records and the user's commands, by what they are for.

Pure. A *unit* is what attempts belong to: a run's training, or a fetch, a baseline or an evaluation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.cluster.base import Event, ObservedJob
from orchestrator.controller.outcome import AttemptRecord
from orchestrator.controller.rest import Rest
from orchestrator.controller.stuck import ENDED_LATE_S
from orchestrator.sweep.naming import ANNOTATION_RUN, ANNOTATION_RUNS, LABEL_ATTEMPT, LABEL_STAGE
from trainer.results import Stage

FENCE_S = 60.0
"""A pod that its node does not report any more may still be writing for so long after it was given up."""
ALL_RUNS = "*"
T = TypeVar("T")


class EvalRequest(BaseModel):
    """One `orch eval --after`: what is measured unlike `spec.eval` says. None: as there."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    tasks: list[str] | None = None
    limit: int | None = None
    evalTeacher: bool = True


class Control(BaseModel):
    """The user's commands, `spec.control`. They are not part of what a sweep is.

    `suspend` starts nothing new and leaves running Jobs alone. `cancel` holds run ids, run names or `*`.
    `retry` holds names of Jobs: their failures and those before them no longer count. `evals` are measured
    besides `spec.eval`. `prune` ends Jobs of runs that the sweep no longer has.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    suspend: bool = False
    cancel: list[str] = Field(default_factory=list)
    retry: list[str] = Field(default_factory=list)
    evals: list[EvalRequest] = Field(default_factory=list)
    prune: bool = False


def stored_control(stored: Mapping[str, Any]) -> Control:
    """The commands in a stored Sweep object."""
    return Control.model_validate(stored.get("spec", {}).get("control") or {})


class Unit(NamedTuple):
    """What attempts belong to; of a training the id is the run's, else a hash of what is done."""

    stage: Stage
    id: str


@dataclass(frozen=True)
class Observed:
    """A sweep's surroundings at one moment.

    `created` counts how often this controller made each Job, `conflicts` are names that others hold,
    `unreadable` those of attempts whose record does not fit the schema. Of Jobs that do not get on: `since`
    when (Unix seconds) their present cause was first seen, and what events `said` of them. `rest` sums up
    what is left out. `histories` are worked out from the others where they are None.
    """

    jobs: tuple[ObservedJob, ...] = ()
    records: Mapping[str, AttemptRecord] = field(default_factory=dict)
    control: Control = field(default_factory=Control)
    uid: str | None = None
    created: Mapping[str, int] = field(default_factory=dict)
    conflicts: frozenset[str] = frozenset()
    unreadable: frozenset[str] = frozenset()
    since: Mapping[str, float] = field(default_factory=dict)
    said: Mapping[str, Sequence[Event]] = field(default_factory=dict)
    rest: Rest = field(default_factory=Rest)
    histories: Mapping[Unit, History] | None = None

    @cached_property
    def by_name(self) -> dict[str, ObservedJob]:
        """The Jobs by name."""
        return {job.name: job for job in self.jobs}

    @cached_property
    def recorded(self) -> frozenset[str]:
        """Names of the Jobs whose attempt is over and stored, readable or not."""
        return frozenset(self.records) | self.unreadable


@dataclass(frozen=True)
class History:
    """A unit's attempts: records by attempt, its Jobs, the one not recorded yet, and whether a pod lives."""

    records: tuple[AttemptRecord, ...] = ()
    jobs: tuple[ObservedJob, ...] = ()
    job: ObservedJob | None = None
    fenced: bool = False
    runs: tuple[str, ...] = ()

    @property
    def last(self) -> AttemptRecord | None:
        return self.records[-1] if self.records else None

    @cached_property
    def done(self) -> AttemptRecord | None:
        return next((record for record in self.records if record.state == "done"), None)

    @property
    def over(self) -> bool:
        """Whether it is done, stored and let go: nothing of it changes any more."""
        quiet = not self.fenced and all(job.finished and job.retired for job in self.jobs)
        return quiet and self.job is None and self.done is not None

    @property
    def attempt(self) -> int:
        """Number of the newest attempt known, 0 for none."""
        recorded = self.last.attempt if self.last else 0
        return max(recorded, attempt_of(self.job) if self.job else 0)


def unit_of(job: ObservedJob) -> Unit:
    return Unit(cast(Stage, job.labels.get(LABEL_STAGE, "")), job.annotations.get(ANNOTATION_RUN, ""))


def attempt_of(job: ObservedJob) -> int:
    text = job.labels.get(LABEL_ATTEMPT, "")
    return int(text) if text.isdecimal() else 1


def runs_of(job: ObservedJob) -> tuple[str, ...]:
    """The runs whose adapters an eval Job measures."""
    return tuple(filter(None, job.annotations.get(ANNOTATION_RUNS, "").split(",")))


def read_records(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, AttemptRecord]:
    """Stored records by Job name; what does not fit the schema is left out, so its attempt is run again."""
    records = {job: _read(value) for job, value in stored.items()}
    return {job: record for job, record in records.items() if record is not None}


def _read(value: Mapping[str, Any]) -> AttemptRecord | None:
    try:
        return AttemptRecord.model_validate(dict(value.items()))  # one look: it may be text
    except ValidationError:
        return None


class RecordReader:
    """As read_records, but a record that was read before is not parsed again: it never changes."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, tuple[Mapping[str, Any], AttemptRecord | None]]] = {}

    def __call__(self, sweep: str, stored: Mapping[str, Mapping[str, Any]]) -> dict[str, AttemptRecord]:
        """The records of a sweep by Job name."""
        known, now = self._known.get(sweep, {}), {}
        for job, value in stored.items():
            old = known.get(job)
            now[job] = old if old is not None and old[0] == value else (value, _read(value))
        self._known[sweep] = now
        return {job: record for job, (_, record) in now.items() if record is not None}

    def forget(self, sweep: str) -> None:
        """Drop what was read of a sweep."""
        self._known.pop(sweep, None)


def histories(observed: Observed, now: float, before: Observed | None = None) -> dict[Unit, History]:
    """Every unit with an attempt, and all that is known of it at `now` (Unix seconds).

    Of `before`, an earlier state with its histories, those of units that nothing happened to are kept.
    """
    before = before or Observed()
    known = dict(before.histories or {})
    jobs, records = Changes.of(before.by_name, observed.by_name), Changes.of(before.records, observed.records)
    changed: dict[Unit, tuple[list[ObservedJob], list[AttemptRecord]]] = defaultdict(lambda: ([], []))
    for job in jobs.new:
        changed[unit_of(job)][0].append(job)
    for record in records.new:
        changed[Unit(record.stage, record.run_id)][1].append(record)
    told = (observed.by_name.get(name) for name in observed.unreadable ^ before.unreadable)
    touched = [*map(unit_of, (*jobs.gone, *filter(None, told)))]
    touched += [Unit(record.stage, record.run_id) for record in records.gone]
    touched += [unit for unit, history in known.items() if history.fenced and history.last]
    for unit in dict.fromkeys((*changed, *touched)):
        old, (more_jobs, more_records) = known.pop(unit, History()), changed[unit]
        # A Job or record that changed takes the place of what was known by its name.
        mine = {job.name: job for job in (*old.jobs, *more_jobs) if job.name in observed.by_name}
        kept = {record.job: record for record in (*old.records, *more_records)}
        written = [record for job, record in kept.items() if job in observed.records]
        if mine or written:
            known[unit] = _history(written, list(mine.values()), observed, now)
    return known


class Changes(NamedTuple, Generic[T]):
    """What is new or another object than before, and what is no more."""

    new: list[T]
    gone: list[T]

    @classmethod
    def of(cls, before: Mapping[str, T], after: Mapping[str, T]) -> Changes[T]:
        new = [one for name, one in after.items() if before.get(name) is not one]
        gone = [before[name] for name in before.keys() - after.keys()]
        return cls(new, gone)


def _history(
    records: list[AttemptRecord],
    jobs: list[ObservedJob],
    observed: Observed,
    now: float,
) -> History:
    ordered = tuple(sorted(records, key=lambda record: record.attempt))
    open_jobs = sorted((job for job in jobs if job.name not in observed.recorded), key=attempt_of)
    runs = next((record.runs for record in ordered if record.runs), ())
    return History(
        records=ordered,
        jobs=tuple(jobs),
        job=open_jobs[-1] if open_jobs else None,
        fenced=any(_alive(job, observed, now) for job in jobs),
        runs=runs or next((runs_of(job) for job in jobs if runs_of(job)), ()),
    )


def _alive(job: ObservedJob, observed: Observed, now: float) -> bool:
    """Whether a pod of the Job may still write into the run's folder."""
    living = [pod for pod in job.pods if pod.living]
    if job.name not in observed.recorded:
        return bool(living)
    record = observed.records.get(job.name)
    ended = (record.finished_at if record else None) or job.created_at
    return any(
        pod.gone_by is None or now < max(ended, pod.gone_by + ENDED_LATE_S) + FENCE_S for pod in living
    )
