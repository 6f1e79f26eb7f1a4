"""A cluster that is simulated in virtual time: Jobs start at once, last as long as we say, and end well.

What changes wakes the controller as `serve` would be woken. Its own share of the CPU is counted apart.
"""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from bench.fake_kubelet import FakePod, done_record
from orchestrator.cluster.base import (
    Change,
    Cluster,
    Condition,
    Created,
    Event,
    ObservedJob,
    ObservedPod,
    OpenPart,
)
from orchestrator.cluster.kube.recordtext import RecordText
from orchestrator.cluster.openindex import OpenIndex
from orchestrator.controller.observed import runs_of
from orchestrator.render import DUMP_MOUNT
from orchestrator.sweep.naming import ANNOTATION_RUN, LABEL_STAGE, LABEL_SWEEP

P = ParamSpec("P")
R = TypeVar("R")
COMPLETE = {"Complete": Condition("CompletionsReached")}


def counted(method: Callable[P, R]) -> Callable[P, R]:
    """The CPU time of a call is the simulation's, not the controller's."""

    @wraps(method)
    def timed(*args: P.args, **kwargs: P.kwargs) -> R:
        began = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            args[0].cpu_s += time.thread_time() - began  # type: ignore[attr-defined]

    return timed


@dataclass(frozen=True, slots=True)
class Stored:
    """A record under its Job's name."""

    name: str
    record: RecordText


class SimulatedCluster(Cluster):
    """`lasts` gives the seconds that a Job's pod runs; `woken` gets the sweep of every change.

    `now` is in virtual Unix seconds, and `move` brings it forward. `writes` counts requests by what they do.
    What is open is looked up as in a cluster (see OpenIndex), and that is the controller's CPU.
    """

    def __init__(self, lasts: Callable[[ObservedJob], float], woken: Callable[[str], None]) -> None:
        self.now = 1_800_000_000.0
        self.cpu_s = 0.0
        self.writes: dict[str, int] = defaultdict(int)
        self._lasts = lasts
        self._woken = woken
        self._sweeps: dict[str, dict[str, Any]] = {}
        self._jobs: dict[str, OpenIndex[ObservedJob]] = defaultdict(OpenIndex)
        self._records: dict[str, OpenIndex[Stored]] = defaultdict(OpenIndex)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._running = 0

    def clock(self) -> float:
        return self.now

    @property
    def next_at(self) -> float:
        """When the next thing happens by itself; infinity for never."""
        return self._due[0][0] if self._due else float("inf")

    @property
    def unfinished(self) -> bool:
        """Whether a Job still runs."""
        return self._running > 0

    @counted
    def move(self, to: float) -> None:
        """Let everything happen that is due by then."""
        while self._due and self._due[0][0] <= to:
            at, _, act = heapq.heappop(self._due)
            self.now = max(self.now, at)
            act()
        self.now = max(self.now, to)

    # The door

    def put_sweep(self, sweep: Mapping[str, Any]) -> bool:
        name = str(sweep["metadata"]["name"])
        self._sweeps[name] = {**sweep, "metadata": {"name": name, "uid": f"uid-{name}", "generation": 1}}
        self._woken(name)
        return True

    def sweeps(self) -> list[dict[str, Any]]:
        return list(self._sweeps.values())

    def sweep(self, name: str) -> dict[str, Any] | None:
        return self._sweeps.get(name)

    @counted
    def put_status(self, sweep: str, status: Mapping[str, Any]) -> None:
        self.writes["status"] += 1
        self._sweeps[sweep] = {**self._sweeps[sweep], "status": dict(status)}
        self._woken(sweep)

    @counted
    def jobs(self, sweep: str) -> list[ObservedJob]:
        return self._jobs[sweep].all()

    @counted
    def records(self, sweep: str) -> dict[str, Mapping[str, Any]]:
        return {one.name: one.record for one in self._records[sweep].all()}

    def open_part(self, sweep: str, closed: Set[str]) -> OpenPart:
        jobs, kept = self._jobs[sweep].open(closed), self._records[sweep]
        records = {one.name: one.record for one in kept.open(closed)}
        return OpenPart(jobs, records, complete=len(kept) - len(records) == len(closed))

    @counted
    def create_job(self, manifest: Mapping[str, Any]) -> Created:
        metadata = manifest["metadata"]
        name, sweep = metadata["name"], metadata["labels"][LABEL_SWEEP]
        if self._jobs[sweep].get(name):
            return Created.EXISTS
        self.writes["job"] += 1
        gpus = manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        job = ObservedJob(
            name,
            f"uid-{name}",
            metadata["labels"],
            metadata["annotations"],
            self.now,
            gpus=int(gpus.get("nvidia.com/gpu", 0)),
            retired=False,
        )
        self._set(job)
        self._running += 1
        self._later(0.5, lambda: self._start(sweep, name))
        return Created.CREATED

    @counted
    def put_record(self, sweep: str, job: str, record: Mapping[str, Any]) -> bool:
        self.writes["record"] += 1
        new = self._records[sweep].get(job) is None
        if new:
            self._records[sweep].set(job, Stored(job, RecordText(json.dumps(record))))
        self._woken(sweep)
        return new

    @counted
    def retire_job(self, name: str, after_s: int) -> None:
        self.writes["retire"] += 1
        sweep = name.split("--", 1)[0]
        self._set(replace(self._job(sweep, name), retired=True))
        self._later(after_s, lambda: self._gone(sweep, name))

    def delete_job(self, name: str, uid: str | None = None) -> None:
        self._gone(name.split("--", 1)[0], name)

    def taken(self, name: str) -> bool:
        return self._jobs[name.split("--", 1)[0]].get(name) is not None

    def said(self, job: ObservedJob) -> tuple[Event, ...]:
        return ()

    def refreshed(self, job: ObservedJob) -> ObservedJob:
        return job

    def put_control(self, sweep: str, change: Change) -> bool:
        raise NotImplementedError

    def put_event(self, sweep: str, event: Event) -> None:
        self.writes["event"] += 1

    def logs(self, job: str, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        return iter(())

    def wait(self, timeout_s: float) -> None:
        self.move(self.now + timeout_s)

    # What happens by itself

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + delay_s, next(self._order), act))

    def _set(self, job: ObservedJob) -> None:
        sweep = job.labels[LABEL_SWEEP]
        self._jobs[sweep].set(job.name, job)
        self._woken(sweep)

    def _job(self, sweep: str, name: str) -> ObservedJob:
        job = self._jobs[sweep].get(name)
        if job is None:
            raise KeyError(name)
        return job

    def _start(self, sweep: str, name: str) -> None:
        job = self._job(sweep, name)
        pod = ObservedPod(f"pod-{name}", "Running", ready=True, node="node", created_at=job.created_at)
        self._set(replace(job, pods=(replace(pod, started_at=self.now),)))
        self._later(self._lasts(job), lambda: self._end(sweep, name))

    def _end(self, sweep: str, name: str) -> None:
        job = self._job(sweep, name)
        adapters = tuple(f"{DUMP_MOUNT}/{sweep}/{run}" for run in runs_of(job))
        said = FakePod(name, sweep, job.labels[LABEL_STAGE], job.annotations[ANNOTATION_RUN], adapters)
        ended = {"phase": "Succeeded", "ready": False, "exit_code": 0, "finished_at": self.now}
        pod = replace(job.pods[0], message=done_record(said), **ended)
        self._running -= 1
        self._set(replace(job, pods=(pod,), conditions=COMPLETE))

    def _gone(self, sweep: str, name: str) -> None:
        if self._jobs[sweep].get(name):
            self._jobs[sweep].drop(name)
            self._woken(sweep)
