"""What the evidence of a finished Job says: one rule each, in order; the first that knows decides.

Pure. The order matters: a disruption explains an exit code, never the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.cluster.base import Condition, ObservedJob, ObservedPod
from orchestrator.sweep.naming import ANNOTATION_DIGEST, ANNOTATION_RUN, LABEL_STAGE
from trainer.results import ExitCode, Record, load_record

EVIDENCE_LIMIT = 600
"""Characters of an evidence sentence."""
OUTLIVED_S = 120.0
"""A pod that runs so long after its trainer ended runs for another container's sake. More than its grace: a
native sidecar that does not end when it is told to is killed after that."""
TRAINER_ENDED = "TrainerEnded"
"""Reason of a condition that no Job controller sets."""


class FailureClass(StrEnum):
    """Why an attempt failed. Each class but the last has a budget of its own (`spec.retry`)."""

    PREEMPTED = "preempted"
    NODE_LOST = "nodeLost"
    GPU_FAULT = "gpuFault"
    OOM_HOST = "oomHost"
    OOM_CUDA = "oomCuda"
    IMAGE_PULL = "imagePull"
    CONFIG = "config"
    UNSCHEDULABLE = "unschedulable"
    STORAGE = "storage"
    DEADLINE = "deadline"
    STALLED = "stalled"
    DIVERGED = "diverged"
    USER_ERROR = "userError"
    INTERNAL = "internal"
    UNVERIFIED = "unverified"
    LOST = "lost"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Seen:
    """What the rules look at: the finished Job, its decisive pod and the trainer's record if it is ours."""

    job: ObservedJob
    pod: ObservedPod | None
    record: Record | None
    foreign: Record | None = None

    @property
    def complete(self) -> bool:
        return "Complete" in self.job.conditions

    @property
    def exit_code(self) -> int | None:
        """The container's exit code; death by signal n is 128 + n, as a shell says it."""
        code = self.pod.exit_code if self.pod else None
        return 128 - code if code is not None and code < 0 else code


Verdict = tuple[FailureClass | None, str]
"""A failure class (None: done) and the sentence that says what was seen."""


def look(job: ObservedJob) -> Seen:
    """The decisive pod and the record, which counts only if it speaks of this Job's run, stage and config."""
    pod = decisive(job)
    record = load_record(pod.message) if pod and pod.message else None
    if record is not None and not _ours(record, job):
        return Seen(job, pod, None, foreign=record)
    return Seen(job, pod, record)


def decisive(job: ObservedJob) -> ObservedPod | None:
    """The pod that ended last: a suspended and resumed Job has several."""
    return max(job.pods, key=lambda pod: (pod.finished_at or 0.0, pod.started_at or 0.0), default=None)


def outlived(job: ObservedJob, now: float) -> ObservedJob:
    """A Job whose trainer has ended for good, though another container keeps its pod running (a sidecar that
    is no restartable init container), as it would be had the pod ended with its trainer; else `job` itself.

    The trainer is the last pod's, and no pod restarts it. `now` is in Unix seconds.
    """
    pod = decisive(job)
    if job.finished or job.deleting or job.suspended or pod is None or pod.phase != "Running":
        return job
    if pod.gone_by is not None:
        return job  # it was told to go, all of it
    if pod.exit_code is None or pod.finished_at is None or now < pod.finished_at + OUTLIVED_S:
        return job
    if any(one.living for one in job.pods if one is not pod):
        return job
    good = pod.exit_code == 0
    said = Condition(TRAINER_ENDED, "the trainer ended, another container of its pod goes on")
    ended = replace(pod, phase="Succeeded" if good else "Failed", ready=False)
    return replace(
        job,
        conditions={**job.conditions, "Complete" if good else "Failed": said},
        pods=tuple(ended if one is pod else one for one in job.pods),
    )


def _ours(record: Record, job: ObservedJob) -> bool:
    stage = job.labels.get(LABEL_STAGE)
    if record.status == "failed" and record.run_id is None:
        return True  # flags it could not read: it never learnt which run it is
    # A baseline is an evaluation without adapters: the trainer need not know the difference.
    stages = {"baseline", "eval"} if stage == "baseline" else {stage}
    if record.stage not in stages or record.run_id != job.annotations.get(ANNOTATION_RUN):
        return False
    # A training's identity is its digest; the id of every other Job is a hash of its settings already.
    return stage != "train" or record.config_digest in (None, job.annotations.get(ANNOTATION_DIGEST))


def _stranger(record: Record, job: ObservedJob) -> str:
    """Of what a record speaks that is not ours: of another config, when it has the run's name."""
    if (record.run_id, record.stage) == (job.annotations.get(ANNOTATION_RUN), job.labels.get(LABEL_STAGE)):
        return f"its record speaks of config {str(record.config_digest)[:8]}, not of this run's"
    return f"its record speaks of {record.run_id!r}, not of this attempt"


PREEMPTED = {"PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet"}
_NODE_LOST = {"DeletionByTaintManager", "DeletionByPodGC"}
_EXIT_CLASS: Mapping[int, FailureClass] = {
    ExitCode.USAGE: FailureClass.USER_ERROR,
    ExitCode.DATA: FailureClass.USER_ERROR,
    ExitCode.INTERNAL: FailureClass.INTERNAL,
    ExitCode.AGAIN: FailureClass.PREEMPTED,
    ExitCode.STALLED: FailureClass.STALLED,
    ExitCode.DIVERGED: FailureClass.DIVERGED,
    ExitCode.CUDA_OOM: FailureClass.OOM_CUDA,
    1: FailureClass.INTERNAL,  # what Python and foreign launchers make of any exception
    126: FailureClass.CONFIG,
    127: FailureClass.CONFIG,
    143: FailureClass.PREEMPTED,  # SIGTERM before the trainer could catch it
}
_EXIT_MEANS: Mapping[int, str] = {
    ExitCode.USAGE: "bad config or usage",
    ExitCode.DATA: "bad data",
    ExitCode.INTERNAL: "internal error",
    ExitCode.AGAIN: "checkpointed, to be run again",
    ExitCode.STALLED: "no progress",
    ExitCode.DIVERGED: "diverged",
    ExitCode.CUDA_OOM: "CUDA out of memory",
    126: "the command cannot be run",
    127: "no such command",
    143: "ended by SIGTERM before a checkpoint",
}
_GPU_FAULT = re.compile(
    r"uncorrectable|\bECC\b|\bXid\b|fallen off the bus|unspecified launch failure|"
    r"illegal instruction was encountered|hardware stack error",
    re.IGNORECASE,
)
_VOLUME = re.compile(
    r"No space left on device|Disk quota exceeded|Read-only file system|Input/output error|Remote I/O error|"
    r"Stale file handle|Transport endpoint is not connected|Cannot send after transport endpoint shutdown"
)
_RULE_EXIT = re.compile(r"failed with exit code (\d+)")


def _success(seen: Seen) -> Verdict | None:
    if not (seen.complete and seen.record and seen.record.status == "done"):
        return None
    ended = seen.job.conditions["Complete"]
    if ended.reason == TRAINER_ENDED:
        return None, f"its done record is there; {ended.message}, which the Job's deletion ends"
    return None, "the Job is Complete and its done record is there"


def _done_but_not_complete(seen: Seen) -> Verdict | None:
    if not seen.complete and seen.record and seen.record.status == "done":
        return (
            FailureClass.UNVERIFIED,
            "a done record, but the Job is not Complete; the next attempt confirms it",
        )
    return None


def _disrupted(seen: Seen) -> Verdict | None:
    for pod in seen.job.pods:
        target = pod.conditions.get("DisruptionTarget")
        if target and target.reason in PREEMPTED | _NODE_LOST:
            lost = target.reason in _NODE_LOST
            failure = FailureClass.NODE_LOST if lost else FailureClass.PREEMPTED
            return failure, sentence(f"the pod was disrupted: {target.reason}", target.message)
    return None


def _suspended(seen: Seen) -> Verdict | None:
    if seen.job.suspended and not seen.complete:
        return FailureClass.PREEMPTED, "the Job was suspended by its queue while it ran"
    return None


def _pod_reason(seen: Seen) -> Verdict | None:
    reason = seen.pod.pod_reason if seen.pod and not seen.complete else None
    if reason == "DeadlineExceeded":
        return FailureClass.DEADLINE, "the pod ran longer than maxDuration (DeadlineExceeded)"
    if reason == "Evicted":
        return FailureClass.STORAGE, "the kubelet evicted the pod: it used more storage than it may"
    return None


def _oom_killed(seen: Seen) -> Verdict | None:
    if seen.pod and seen.pod.exit_reason == "OOMKilled" and not seen.complete:
        return (
            FailureClass.OOM_HOST,
            f"the kernel killed it for host memory (OOMKilled, exit {seen.exit_code})",
        )
    return None


def _trainer_record(seen: Seen) -> Verdict | None:
    record = seen.record
    if record is None or record.status == "done":
        return None
    means = _EXIT_MEANS.get(record.exit_code, "failed")
    if record.stage == "fetch" and record.exit_code == ExitCode.AGAIN:
        means = "not all is here yet, to be run again"  # a fetch has no checkpoint: the hub may be at fault
    said = f"record: exit {record.exit_code}, {means}"
    return _of_failure(record.exit_code, record.error or ""), sentence(said, record.error or "")


def _of_failure(code: int, said: str) -> FailureClass:
    """An internal error may be the machine's fault: its text says so. Other codes are verdicts already."""
    if code in (ExitCode.INTERNAL, 1):
        if _VOLUME.search(said):
            return FailureClass.STORAGE
        if _GPU_FAULT.search(said):
            return FailureClass.GPU_FAULT
    return _EXIT_CLASS.get(code, FailureClass.UNKNOWN)


def _exit_code(seen: Seen) -> Verdict | None:
    code = seen.exit_code
    if code is None:
        return None
    note = f"; {_stranger(seen.foreign, seen.job)}" if seen.foreign else ""
    tail = seen.pod.message if seen.pod and not seen.foreign else ""
    if code == 0:
        return FailureClass.UNVERIFIED, f"exit 0 without a done record{note}"
    if seen.pod and seen.pod.exit_reason == "StartError":
        return FailureClass.CONFIG, sentence(f"the container did not start (StartError, exit {code})", tail)
    return _of_code(code, f"exit {code}, without a record{note}", tail)


def _of_code(code: int, said: str, tail: str = "") -> Verdict:
    means = _EXIT_MEANS.get(code) or (f"killed by signal {code - 128}" if 128 < code < 160 else "")
    return _of_failure(code, tail), sentence(f"{said} ({means})" if means else said, tail)


def _job_condition(seen: Seen) -> Verdict | None:
    if seen.complete:
        return FailureClass.UNVERIFIED, "the Job is Complete, but no done record was seen"
    failed = seen.job.conditions["Failed"]
    if failed.reason == "DeadlineExceeded":
        return FailureClass.DEADLINE, "the Job ran longer than its deadline (DeadlineExceeded)"
    if "condition DisruptionTarget" in failed.message:
        return FailureClass.PREEMPTED, sentence("the Job's condition", failed.message)
    if match := _RULE_EXIT.search(failed.message):
        return _of_code(int(match[1]), "the Job's condition", failed.message)
    return None


def _nothing_left(seen: Seen) -> Verdict:
    failed = seen.job.conditions.get("Failed")
    tail = failed.message or failed.reason if failed else ""
    return FailureClass.LOST, sentence("ended without exit code, record or reason", tail)


def sentence(said: str, detail: str) -> str:
    """What was seen, with the last lines of its own words: the end of an error says what it is."""
    detail = " ".join(detail.split())
    return f"{said}: {detail[-(EVIDENCE_LIMIT - len(said) - 2) :]}" if detail else said


RULES: tuple[Callable[[Seen], Verdict | None], ...] = (
    _success,
    _done_but_not_complete,
    _disrupted,
    _suspended,
    _pod_reason,
    _oom_killed,
    _trainer_record,
    _exit_code,
    _job_condition,
    _nothing_left,
)
