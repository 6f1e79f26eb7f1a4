"""Why an unfinished Job does not get on: PURE. What is stuck never ends by itself.

A Job that lacks something which nobody will bring (an image, a Secret) is ended after a while; one that waits
for room waits as long as it takes, and says for what.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.base import Event, ObservedJob, ObservedPod
from orchestrator.controller.evidence import FailureClass, sentence

PATIENCE_S = 60.0
"""What a retry of the kubelet or of the Job controller does not mend by then, it never does."""
ENDED_LATE_S = 15.0
"""A pod whose deletion deadline passed so long ago is on a node that does not answer."""
SILENCE_S = 15.0
"""A Job that does not start and does not say why is asked about after this long."""

_IMAGE = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONTAINER = frozenset({"CreateContainerConfigError", "CreateContainerError"})
_STARTING = frozenset({None, "", "ContainerCreating", "PodInitializing"})
SET_UP = "PodReadyToStartContainers"
"""Volumes and network are there: what was said against them is past, and its image may be pulled for long."""
_VOLUME = frozenset({"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"})
_ABSENT = re.compile(
    r"not found|no PriorityClass|is forbidden|is invalid|references non-existent", re.IGNORECASE
)
_OUTAGE = re.compile(
    r"failed calling webhook|Internal error|timed? ?out|etcdserver|connection refused", re.IGNORECASE
)


@dataclass(frozen=True)
class Cause:
    """Why a Job does not get on. It is ended when that lasts `ends_after_s`; None: it may wait for ever."""

    failure: FailureClass
    evidence: str
    ends_after_s: float | None = None


def cause(job: ObservedJob, now: float, warnings: Sequence[Event] = ()) -> Cause | None:
    """What keeps an unfinished Job from starting, or from ending; None when it gets on.

    `warnings` are what was said against the Job and its pods, newest last; `now` is in Unix seconds.
    """
    living = [pod for pod in job.pods if pod.living]
    for pod in living:
        if pod.gone_by is not None and now > pod.gone_by + ENDED_LATE_S:
            where = f"node {pod.node}" if pod.node else "its node"
            evidence = (
                f"{where} does not answer: the pod had to end {now - pod.gone_by:.0f} s ago and has not"
            )
            return Cause(FailureClass.NODE_LOST, evidence, 0.0)
    if job.finished or job.deleting:
        return None
    if job.suspended:
        return Cause(FailureClass.UNSCHEDULABLE, "suspended: waits for its queue to admit it")
    if not living:
        return _without_pod(warnings)
    return _of_pod(living[-1], warnings) if living[-1].phase == "Pending" else None


def silent(job: ObservedJob, now: float) -> bool:
    """Whether a Job fails to start without a word of its own, so that only its warnings can tell why."""
    if job.finished or job.deleting or job.suspended:
        return False
    living = [pod for pod in job.pods if pod.living]
    if any(
        pod.phase == "Running" or pod.waiting_reason not in _STARTING or SET_UP in pod.conditions
        for pod in living
    ):
        return False
    ended = max((pod.finished_at or 0.0 for pod in job.pods if not pod.living), default=0.0)
    return now - max(job.created_at, ended) >= SILENCE_S


def _of_pod(pod: ObservedPod, warnings: Sequence[Event]) -> Cause | None:
    reason, message = pod.waiting_reason, pod.waiting_message
    if reason in _IMAGE:
        return Cause(FailureClass.IMAGE_PULL, sentence(str(reason), message), PATIENCE_S)
    if reason in _CONTAINER:
        return Cause(FailureClass.CONFIG, sentence(str(reason), message), PATIENCE_S)
    if reason in ("Unschedulable", "SchedulingGated"):
        if re.search(r'persistentvolumeclaim "[^"]*" not found', message):
            return Cause(FailureClass.CONFIG, sentence(str(reason), message), PATIENCE_S)
        return Cause(FailureClass.UNSCHEDULABLE, sentence(str(reason), message))
    if reason not in _STARTING or SET_UP in pod.conditions:
        return None
    said = _newest(warnings, _VOLUME)
    return _judged(said) if said else None


def _without_pod(warnings: Sequence[Event]) -> Cause | None:
    said = _newest(warnings, frozenset({"FailedCreate"}))
    if said is None:
        return None
    if "exceeded quota" in said.message:
        return Cause(FailureClass.UNSCHEDULABLE, sentence("no pod can be made: quota", said.message))
    return _judged(said)


def _judged(said: Event) -> Cause:
    """Whether a warning tells of something that is missing for good, or of an outage that may pass."""
    for_good = _ABSENT.search(said.message) and not _OUTAGE.search(said.message)
    return Cause(FailureClass.CONFIG, sentence(said.reason, said.message), PATIENCE_S if for_good else None)


def _newest(warnings: Sequence[Event], reasons: frozenset[str]) -> Event | None:
    return next((one for one in reversed(warnings) if one.reason in reasons), None)
