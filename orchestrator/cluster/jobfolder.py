"""One local Job's folder: its manifest, its supervisor's files, and the same told in Kubernetes' shape.

job.json      manifest, uid, creation; written with the folder
lock          held by the supervisor as long as it lives
pid.json      supervisor and devices: the Job has started
log           stdout and stderr
termination   the termination message
ready         made by the trainer
reserve       room for exit.json on a full volume, while it runs
exit.json     how it ended; last
deleting      asked to go
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.cluster.base import Condition, ObservedJob, ObservedPod
from orchestrator.cluster.container import GRACE_S
from orchestrator.cluster.slots import UNSCHEDULABLE, Share
from orchestrator.cluster.statefiles import read_state
from orchestrator.cluster.supervisor import end_stragglers
from orchestrator.sweep.quantity import read_quantity
from trainer.durable import fsync_folder, remove_asides, write_bytes, write_json
from trainer.results import RECORD_LIMIT

FALLBACK_BYTES = 2048
"""FallbackToLogsOnError: this much of the log's end stands for a missing termination message."""
PATIENCE_S = 15.0
"""Beyond the grace period, before a supervisor that does not end is ended itself."""

State = Literal["pending", "running", "ended", "lost"]


@dataclass(frozen=True)
class JobFolder:
    """Files of one Job. Whoever changes its state holds the scheduling lock, or is its supervisor."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def deleting(self) -> bool:
        return (self.root / "deleting").exists()

    def create(self, manifest: Mapping[str, Any]) -> bool:
        """Make the folder with its manifest in one step; False when there is one already."""
        aside = self.root.with_name(f".{self.name}.{uuid.uuid4().hex[:8]}")
        aside.mkdir(parents=True)
        job = {
            "uid": str(uuid.uuid4()),
            "created_at": time.time(),
            "order": time.time_ns(),
            "cwd": os.getcwd(),
            "manifest": manifest,
        }
        try:
            # Kubernetes makes the file too: the trainer writes in place.
            (aside / "termination").touch()
            write_json(aside / "job.json", job)
            os.rename(aside, self.root)
        except OSError:
            for file in aside.iterdir():
                file.unlink()
            aside.rmdir()
            if self.root.is_dir():
                return False
            raise
        fsync_folder(self.root.parent)
        return True

    def job(self) -> dict[str, Any]:
        """job.json. FileNotFoundError when the Job is gone."""
        job: dict[str, Any] | None = read_state(self.root / "job.json")
        if job is None:
            raise FileNotFoundError(self.root / "job.json")
        return job

    def state(self) -> State:
        if (self.root / "exit.json").exists():
            return "ended"
        if not (self.root / "pid.json").exists():
            return "pending"
        if self.alive():
            return "running"
        # It may have ended between the two looks.
        return "ended" if (self.root / "exit.json").exists() else "lost"

    def alive(self) -> bool:
        """Whether the supervisor holds its lock: the kernel drops it with the process."""
        try:
            handle = os.open(self.root / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def devices(self) -> tuple[str, ...]:
        """The GPUs it was started on."""
        return tuple((read_state(self.root / "pid.json") or {}).get("devices", ()))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the live supervisor."""
        started = read_state(self.root / "pid.json")
        if started and self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(started["pid"], number)

    def bury(self, message: str = "") -> None:
        """Nobody reports any more: end what is left of it, and say that it is lost."""
        end_stragglers(self.job()["uid"])
        remove_asides(self.root)
        if not (self.root / "exit.json").exists():
            lost = {"exit_code": None, "exit_reason": None, "message": message, "finished_at": time.time()}
            write_json(self.root / "exit.json", lost)

    def ask_to_end(self) -> None:
        """Mark it as going and send SIGTERM: the supervisor forwards it and kills after the grace."""
        if not self.deleting:
            write_bytes(self.root / "deleting", b"")
        self.signal(signal.SIGTERM)

    def overdue(self) -> bool:
        """Whether it should have gone by now: grace and some patience are over since it was asked."""
        pod = self.job()["manifest"]["spec"]["template"]["spec"]
        limit: float = pod.get("terminationGracePeriodSeconds", GRACE_S) + PATIENCE_S
        return time.time() > (self.root / "deleting").stat().st_mtime + limit

    def observe(self, never: bool = False) -> ObservedJob:
        """The Job in Kubernetes' shape; `never`: it waits for GPUs this machine does not have."""
        job = self.job()
        started = read_state(self.root / "pid.json")
        ended = read_state(self.root / "exit.json")
        manifest = job["manifest"]
        pod = None
        if ended is not None:
            pod = _ended_pod(job, started or {}, ended, self._message(manifest, ended))
        elif started is not None:
            pod = _pod(
                job,
                phase="Running",
                ready=(self.root / "ready").exists(),
                started_at=started["started_at"],
            )
        elif never:
            why = Condition("Unschedulable", UNSCHEDULABLE)
            pod = _pod(
                job,
                phase="Pending",
                node=None,
                conditions={"PodScheduled": why},
                waiting_reason=why.reason,
                waiting_message=why.message,
            )
        return ObservedJob(
            name=self.name,
            uid=job["uid"],
            labels=manifest["metadata"].get("labels", {}),
            annotations=manifest["metadata"].get("annotations", {}),
            created_at=job["created_at"],
            deleting=self.deleting,
            conditions=_conditions(manifest, ended),
            pods=(pod,) if pod else (),
            gpus=len(started["devices"]) if started else asked_gpus(manifest),
        )

    def _message(self, manifest: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
        """The termination message as Kubernetes gives it: its last 4,096 bytes, or the log's end."""
        message = _tail(self.root / "termination", RECORD_LIMIT) or ended.get("message") or ""
        policy = _container(manifest).get("terminationMessagePolicy")
        if not message and ended["exit_code"] and policy == "FallbackToLogsOnError":
            message = _tail(self.log, FALLBACK_BYTES)
        return message


def asked_gpus(manifest: Mapping[str, Any]) -> int:
    """The GPUs in the limits of the Job's container."""
    return int(_container(manifest).get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0))


def asked_share(manifest: Mapping[str, Any]) -> Share:
    """The cores and memory in the requests of the Job's container; a core if it asks for none."""
    requests = _container(manifest).get("resources", {}).get("requests", {})
    cores, memory = read_quantity(str(requests.get("cpu", 1))), read_quantity(str(requests.get("memory", 0)))
    return Share(float(cores), float(memory))


def _container(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    container: Mapping[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
    return container


def _tail(path: Path, size: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _pod(job: Mapping[str, Any], **state: Any) -> ObservedPod:
    return ObservedPod(**{"uid": job["uid"], "node": socket.gethostname(), **state})


def _ended_pod(
    job: Mapping[str, Any], started: Mapping[str, Any], ended: Mapping[str, Any], message: str
) -> ObservedPod | None:
    """The pod of a finished Job. A lost one leaves no pod, unless its container had said something."""
    if ended["exit_code"] is None and not message:
        return None
    good = _conditions(job["manifest"], ended).get("Complete") is not None
    return _pod(
        job,
        phase="Succeeded" if good else "Failed",
        pod_reason=ended.get("pod_reason"),
        exit_code=ended["exit_code"],
        exit_reason=ended["exit_reason"],
        message=message,
        started_at=ended.get("started_at", started.get("started_at")),
        finished_at=ended["finished_at"],
    )


def _conditions(manifest: Mapping[str, Any], ended: Mapping[str, Any] | None) -> dict[str, Condition]:
    """The Job's final condition, worded as the Job controller does; none while it is not finished."""
    if ended is None:
        return {}
    code = ended["exit_code"]
    if code == 0 and not ended.get("pod_reason"):
        return {"Complete": Condition("CompletionsReached", "Reached expected number of succeeded pods")}
    rules = manifest["spec"].get("podFailurePolicy", {}).get("rules", [])
    for index, rule in enumerate(rules):
        if code in rule.get("onExitCodes", {}).get("values", []):
            name = _container(manifest)["name"]
            said = f"Container {name} failed with exit code {code} matching FailJob rule at index {index}"
            return {"Failed": Condition("PodFailurePolicy", said)}
    return {"Failed": Condition("BackoffLimitExceeded", "Job has reached the specified backoff limit")}
