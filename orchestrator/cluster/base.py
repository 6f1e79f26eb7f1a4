"""What the controller sees of a place where Jobs run, and the few things it can do to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


@dataclass(frozen=True)
class Condition:
    """A Kubernetes condition that is True."""

    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class ObservedPod:
    """The last seen state of a pod (locally: of the process that stands for it). Times in Unix seconds.

    `gone_by`: it was told to go, and its grace ends then.
    """

    uid: str
    phase: str  # Pending, Running, Succeeded, Failed
    ready: bool = False
    node: str | None = None
    gone_by: float | None = None
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    pod_reason: str | None = None  # Evicted, DeadlineExceeded, …
    waiting_reason: str | None = None  # ImagePullBackOff, CreateContainerConfigError, …
    waiting_message: str = ""
    exit_code: int | None = None
    exit_reason: str | None = None  # Completed, Error, OOMKilled, StartError
    message: str = ""  # the termination message
    created_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def living(self) -> bool:
        """Whether it may still write into the run's folder."""
        return self.phase in ("Pending", "Running")


@dataclass(frozen=True)
class ObservedJob:
    """A Job as its owner (the Job controller) reports it, with the pods known for it.

    A Job that is gone while a pod of it still lives is shown with `deleting`. `retired`: nobody need arrange
    its deletion.
    """

    name: str
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    created_at: float
    suspended: bool = False
    deleting: bool = False
    conditions: Mapping[str, Condition] = field(default_factory=dict)  # Complete, Failed, …
    pods: tuple[ObservedPod, ...] = ()
    gpus: int = 0
    retired: bool = True

    @property
    def finished(self) -> bool:
        """Only Complete and Failed are final."""
        return "Complete" in self.conditions or "Failed" in self.conditions


class Created(Enum):
    """What became of a create: made, there already and ours, held by a Job that is going, or by another's."""

    CREATED = "created"
    EXISTS = "exists"
    GOING = "going"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Event:
    """Something worth telling the owner of a sweep; `reason` is a CamelCase word that people search for.

    `moment`: the sweep `ended` or `halted`, which is told outside the cluster, too.
    """

    reason: str
    message: str
    warning: bool = False
    moment: str = ""


@dataclass(frozen=True)
class OpenPart:
    """Jobs of a sweep, and records by Job name, but those closed; `complete`: all closed have a record."""

    jobs: Sequence[ObservedJob]
    records: Mapping[str, Mapping[str, Any]]
    complete: bool


Change = Callable[[dict[str, Any]], dict[str, Any]]
"""From what is stored to what is wanted."""


class Cluster(Protocol):
    """The one door to where Jobs run. Sweeps, Jobs and records are JSON-like dicts at this door."""

    def put_sweep(self, sweep: Mapping[str, Any]) -> bool:
        """Store the Sweep object by metadata.name; False when an equal one is stored already."""

    def sweeps(self) -> list[dict[str, Any]]:
        """All stored Sweep objects (metadata with uid, spec, status), by name."""

    def sweep(self, name: str) -> dict[str, Any] | None:
        """The stored Sweep object of that name, None when there is none."""

    def put_control(self, sweep: str, change: Change) -> bool:
        """Change spec.control {suspend, cancel[], retry[], evals[], prune}; False if that changes nothing.

        No command of another that comes meanwhile is lost: `change` is then asked again.
        """

    def put_status(self, sweep: str, status: Mapping[str, Any]) -> None:
        """Store status if it differs from what is stored. StatusRefusedError when it is not taken."""

    def jobs(self, sweep: str) -> list[ObservedJob]:
        """The sweep's Jobs, finished ones included as long as they exist."""

    def create_job(self, manifest: Mapping[str, Any]) -> Created:
        """Create the Job; harmless when it exists already. JobRefusedError when it is not taken."""

    def taken(self, name: str) -> bool:
        """Whether a Job of that name exists, whoever's it is."""

    def said(self, job: ObservedJob) -> tuple[Event, ...]:
        """What was lately said of the Job and its living pods, newest last; of one second, warnings first."""

    def refreshed(self, job: ObservedJob) -> ObservedJob:
        """The Job with its pods as they are this moment: what cannot be undone is not done on hearsay."""

    def delete_job(self, name: str, uid: str | None = None) -> None:
        """Delete the Job and end its pods (SIGTERM, grace, SIGKILL); absent is fine, another's uid is left.

        JobRefusedError when it may not be deleted.
        """

    def retire_job(self, name: str, after_s: int) -> None:
        """Let a finished Job, which is recorded, be deleted `after_s` from its end; absent is fine."""

    def records(self, sweep: str) -> Mapping[str, Mapping[str, Any]]:
        """Attempt records of a sweep by Job name."""

    def open_part(self, sweep: str, closed: Set[str]) -> OpenPart:
        """What a sweep has but what has one of the `closed` names; that set may grow, never lose a name."""
        # Jobs before records: a Job recorded and gone in between is then seen twice rather than never.
        jobs, records = self.jobs(sweep), self.records(sweep)
        return OpenPart(
            [job for job in jobs if job.name not in closed],
            {job: record for job, record in records.items() if job not in closed},
            closed <= records.keys(),
        )

    def put_record(self, sweep: str, job: str, record: Mapping[str, Any]) -> bool:
        """Store an attempt's record once: False when one exists, which then stays as it is.

        JobRefusedError when it is not taken.
        """

    def put_event(self, sweep: str, event: Event) -> None:
        """Tell people what happened to a sweep, once however often it is told."""

    def logs(self, job: str, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """Log lines of a Job's newest pod; follow goes on until it ends."""

    def wait(self, timeout_s: float) -> None:
        """Return when something may have changed, at the latest after `timeout_s`."""
