"""A cluster in memory with a virtual clock: Jobs are a dict, states are set by the test, calls are logged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.cluster.base import Change, Cluster, Condition, Created, Event, ObservedJob, ObservedPod
from orchestrator.errors import JobRefusedError
from orchestrator.sweep.naming import ANNOTATION_DIGEST, ANNOTATION_RUN, LABEL_STAGE, LABEL_SWEEP

COMPLETE = {"Complete": Condition("CompletionsReached")}
FAILED = {"Failed": Condition("BackoffLimitExceeded", "Job has reached the specified backoff limit")}


class FakeCluster(Cluster):
    """A Cluster; `calls` is what was done to it, `on_wait` lets a test move the world."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stored: dict[str, dict[str, Any]] = {}
        self.made: dict[str, ObservedJob] = {}
        self.stored_records: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.events: list[tuple[str, Event]] = []
        self.events_of: dict[str, tuple[Event, ...]] = {}
        self.foreign: set[str] = set()
        self.refusal: JobRefusedError | None = None
        self.on_wait: Callable[[FakeCluster], None] = lambda cluster: None

    def clock(self) -> float:
        return self.now

    def put_sweep(self, sweep: Mapping[str, Any]) -> bool:
        name = sweep["metadata"]["name"]
        self.calls.append(("put_sweep", name))
        changed = self.stored.get(name) != sweep
        self.stored[name] = json.loads(json.dumps(sweep))
        return changed

    def sweeps(self) -> list[dict[str, Any]]:
        return [self.stored[name] for name in sorted(self.stored)]

    def sweep(self, name: str) -> dict[str, Any] | None:
        return self.stored.get(name)

    def put_control(self, sweep: str, change: Change) -> bool:
        before = self.stored[sweep]["spec"].get("control") or {}
        after = change(dict(before))
        self.stored[sweep]["spec"]["control"] = after
        return after != before

    def put_status(self, sweep: str, status: Mapping[str, Any]) -> None:
        if self.stored[sweep].get("status") != status:
            self.calls.append(("put_status", sweep))
            self.stored[sweep]["status"] = dict(status)

    def jobs(self, sweep: str) -> list[ObservedJob]:
        return [job for job in self.made.values() if job.labels[LABEL_SWEEP] == sweep]

    def create_job(self, manifest: Mapping[str, Any]) -> Created:
        if self.refusal:
            raise self.refusal
        metadata = manifest["metadata"]
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        gpus = container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)
        return self.add(metadata["name"], metadata["labels"], metadata["annotations"], int(gpus))

    def add(
        self, name: str, labels: Mapping[str, str], annotations: Mapping[str, str], gpus: int = 0
    ) -> Created:
        self.calls.append(("create_job", name))
        if name in self.foreign:
            return Created.CONFLICT
        if name in self.made:
            return Created.EXISTS
        self.made[name] = ObservedJob(
            name, f"uid-{len(self.calls)}", labels, annotations, self.now, gpus=gpus
        )
        return Created.CREATED

    def taken(self, name: str) -> bool:
        return name in self.made or name in self.foreign

    def said(self, job: ObservedJob) -> tuple[Event, ...]:
        self.calls.append(("said", job.name))
        return self.events_of.get(job.name, ())

    def refreshed(self, job: ObservedJob) -> ObservedJob:
        return self.made.get(job.name, job)

    def delete_job(self, name: str, uid: str | None = None) -> None:
        self.calls.append(("delete_job", name))
        self.made.pop(name, None)

    def records(self, sweep: str) -> dict[str, dict[str, Any]]:
        return {name: record for name, record in self.stored_records.items() if record["sweep"] == sweep}

    def put_record(self, sweep: str, job: str, record: Mapping[str, Any]) -> bool:
        self.calls.append(("put_record", job))
        if job in self.stored_records:
            return False
        self.stored_records[job] = json.loads(json.dumps(record))
        return True

    def retire_job(self, name: str, after_s: int) -> None:
        self.calls.append(("retire_job", name))
        if name in self.made:
            self.set_state(name, retired=True)

    def put_event(self, sweep: str, event: Event) -> None:
        self.events.append((sweep, event))

    def logs(self, job: str, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        return iter(())

    def wait(self, timeout_s: float) -> None:
        self.now += timeout_s
        self.on_wait(self)

    # What a test does to the world.

    def set_state(self, name: str, **changes: Any) -> None:
        self.made[name] = replace(self.made[name], **changes)

    def start(self, name: str, *, ready: bool = False, node: str = "node-a") -> None:
        """Its pod runs."""
        pod = ObservedPod(f"pod-{name}", "Running", ready=ready, node=node, started_at=self.now)
        self.set_state(name, pods=(pod,))

    def finish(self, name: str, *, message: str | None = None, seconds: float = 60.0) -> None:
        """Its pod ends well after `seconds`, with a done record or `message`, and the Job is Complete."""
        self._end(name, 0, "Succeeded", done_record(self.made[name]) if message is None else message, seconds)
        self.set_state(name, conditions=COMPLETE)

    def fail(self, name: str, exit_code: int | None, *, message: str = "", seconds: float = 60.0) -> None:
        """Its pod ends with `exit_code` (None: nothing is known of it) and the Job is Failed."""
        self._end(name, exit_code, "Failed", message, seconds)
        self.set_state(name, conditions=FAILED)

    def _end(self, name: str, exit_code: int | None, phase: str, message: str, seconds: float) -> None:
        if not self.made[name].pods:
            self.start(name)
        pod = self.made[name].pods[-1]
        started = pod.started_at if pod.started_at is not None else self.now
        changes = {"phase": phase, "exit_code": exit_code, "message": message, "ready": False}
        ended = replace(pod, **changes, started_at=started, finished_at=started + seconds)
        self.set_state(name, pods=(*self.made[name].pods[:-1], ended))


def done_record(job: ObservedJob, **more: Any) -> str:
    """The trainer's message of success for this Job."""
    return record_message(job, status="done", exit_code=0, **more)


def record_message(job: ObservedJob, **values: Any) -> str:
    """A trainer's record about this Job, as its termination message."""
    record = {
        "v": 1,
        "stage": job.labels[LABEL_STAGE],
        "run_id": job.annotations[ANNOTATION_RUN],
        "config_digest": job.annotations[ANNOTATION_DIGEST],
    }
    return json.dumps(record | values)
