"""Why an unfinished Job does not get on: PURE. What is stuck never ends by itself.

A Job that lacks something which nobody will bring (an image, a Secret) is ended after a while, one that an
outage holds after a long while; one that waits for room waits as long as it takes, and says for what.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.base import Event, ObservedJob, ObservedPod
from orchestrator.controller.evidence import PREEMPTED, FailureClass, sentence

PATIENCE_S = 60.0
"""What is refused or absent and does not come by then will not come."""
OUTAGE_S = 900.0
"""A registry or a volume that is out of order has so long to come back."""
ENDED_LATE_S = 60.0
"""A pod whose deletion deadline passed so long ago is on a node that does not answer."""
SILENCE_S = 15.0
"""A Job that does not start and does not say why is asked about after this long."""

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError"})
_IMAGE_FOR_GOOD = frozenset({"InvalidImageName", "ErrImageNeverPull", "SignatureValidationFailed"})
_CONTAINER = frozenset({"CreateContainerConfigError", "CreateContainerError"})
_STARTING = frozenset({None, "", "ContainerCreating", "PodInitializing"})
_VOLUME = frozenset({"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"})
_GETS_ON = frozenset({"Pulling", "Pulled", "Created", "Started"})
"""Said of a pod, each shows that what was said before is mended."""
_REFUSED = re.compile(
    r"not found|manifest unknown|unauthorized|denied|forbidden|invalid reference|no match for platform", re.I
)
_ABSENT = re.compile(
    r'(secret|configmap|persistentvolumeclaim|serviceaccount)s? "[^"]*" not found|'
    r"no PriorityClass with name|violates PodSecurity|denied (the )?request|references non-existent|"
    r"couldn't find key|runAsNonRoot|(max|min)imum \w+ usage per|is invalid",
    re.I,
)
_OUTAGE = re.compile(
    r"failed calling webhook|Internal error|timed? ?out|etcdserver|connection refused|deadline exceeded|"
    r"registered CSI drivers|code = NotFound|not yet ready to handle",
    re.I,
)


@dataclass(frozen=True)
class Cause:
    """Why a Job does not get on. It is ended when that lasts `ends_after_s`; None: it may wait for ever."""

    failure: FailureClass
    evidence: str
    ends_after_s: float | None = None


def cause(job: ObservedJob, now: float, said: Sequence[Event] = ()) -> Cause | None:
    """What keeps an unfinished Job from starting, or from ending; None when it gets on.

    `said` are the events about the Job and its pods, newest last; `now` is in Unix seconds.
    """
    living = [pod for pod in job.pods if pod.living]
    for pod in living:
        if pod.node and pod.gone_by is not None and now > pod.gone_by + ENDED_LATE_S:
            return _does_not_end(pod, now - pod.gone_by)
    if job.finished:
        return None
    if job.deleting:
        held = "is being deleted, and something holds it: see its finalizers"
        return None if living else Cause(FailureClass.LOST, held, PATIENCE_S)
    if job.suspended:
        return Cause(FailureClass.UNSCHEDULABLE, "suspended: waits for its queue to admit it")
    if not living:
        return _without_pod(job, said)
    return _of_pod(living[-1], said) if living[-1].phase == "Pending" else None


def unclear(job: ObservedJob, now: float) -> bool:
    """Whether a Job fails to start and does not say enough, so that only its events can tell why."""
    if job.finished or job.deleting or job.suspended:
        return False
    living = [pod for pod in job.pods if pod.living]
    if any(pod.phase == "Running" or pod.waiting_reason not in _STARTING | _IMAGE for pod in living):
        return False
    ended = max((pod.finished_at or 0.0 for pod in job.pods if not pod.living), default=0.0)
    return now - max(job.created_at, ended) >= SILENCE_S


def _does_not_end(pod: ObservedPod, late_s: float) -> Cause:
    evidence = f"node {pod.node} does not answer: the pod had to end {late_s:.0f} s ago and has not"
    target = pod.conditions.get("DisruptionTarget")
    if target and target.reason in PREEMPTED:
        return Cause(FailureClass.PREEMPTED, f"{target.reason}; {evidence}", 0.0)
    return Cause(FailureClass.NODE_LOST, evidence, 0.0)


def _of_pod(pod: ObservedPod, said: Sequence[Event]) -> Cause | None:
    reason, message = str(pod.waiting_reason), pod.waiting_message
    if reason in _IMAGE_FOR_GOOD:
        return Cause(FailureClass.IMAGE_PULL, sentence(reason, message), PATIENCE_S)
    if reason in _IMAGE:
        # While it pulls anew a pod keeps its reason, and a back-off need not say what it was about.
        failed = _newest(said, frozenset({"Failed", "Pulled"}))
        told = failed.message if failed and failed.warning and "pull" in failed.message else message
        refused = _REFUSED.search(f"{told} {message}")
        return Cause(FailureClass.IMAGE_PULL, sentence(reason, told), PATIENCE_S if refused else OUTAGE_S)
    if reason in _CONTAINER:
        return Cause(FailureClass.CONFIG, sentence(reason, message), _patience(message) or OUTAGE_S)
    if reason in ("Unschedulable", "SchedulingGated"):
        absent = re.search(r'persistentvolumeclaim "[^"]*" not found', message)
        failure = FailureClass.CONFIG if absent else FailureClass.UNSCHEDULABLE
        return Cause(failure, sentence(reason, message), PATIENCE_S if absent else None)
    newest = _newest(said, _VOLUME | _GETS_ON)
    if pod.waiting_reason not in _STARTING or newest is None or not newest.warning:
        return None
    for_good = None if newest.reason == "FailedCreatePodSandBox" else _patience(newest.message)
    return Cause(FailureClass.CONFIG, sentence(newest.reason, newest.message), for_good)


def _without_pod(job: ObservedJob, said: Sequence[Event]) -> Cause | None:
    newest = _newest(said, frozenset({"FailedCreate", "SuccessfulCreate"}))
    if newest is None or not newest.warning:
        return None
    if "exceeded quota" in newest.message or "unknown for quota" in newest.message:
        return Cause(FailureClass.UNSCHEDULABLE, sentence("no pod can be made: quota", newest.message))
    # Where a pod has ended already, the Job may just not have heard of it.
    patience_s = None if job.pods else _patience(newest.message)
    return Cause(FailureClass.CONFIG, sentence(newest.reason, newest.message), patience_s)


def _patience(message: str) -> float | None:
    """How long to wait for what is absent or refused; None when the message tells of neither."""
    return PATIENCE_S if _ABSENT.search(message) and not _OUTAGE.search(message) else None


def _newest(said: Sequence[Event], reasons: frozenset[str]) -> Event | None:
    return next((one for one in reversed(said) if one.reason in reasons), None)
