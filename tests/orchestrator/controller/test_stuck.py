"""Why a Job does not get on, case by case: reasons and texts as a real cluster spelled them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.cluster.base import Condition, Event, ObservedJob, ObservedPod
from orchestrator.controller.stuck import ENDED_LATE_S, OUTAGE_S, PATIENCE_S, SILENCE_S, cause, unclear

NOW = 1000.0
JOB = ObservedJob("demo--r0", "u", {}, {}, created_at=NOW - 100)
FORBIDDEN = 'Error creating: pods "demo-r0-x" is forbidden: '
QUOTA = FORBIDDEN + "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1"
PSA = FORBIDDEN + 'violates PodSecurity "restricted:latest": runAsNonRoot != true'
PRIORITY = FORBIDDEN + "no PriorityClass with name low was found"
ACCOUNT = FORBIDDEN + 'error looking up service account ml/x: serviceaccount "x" not found'
HOOK = 'Error creating: Internal error occurred: failed calling webhook "v.example": service "v" not found'
SECRET = 'MountVolume.SetUp failed for volume "token" : secret "hub-token" not found'
NFS = 'MountVolume.SetUp failed for volume "dump" : mount failed: exit status 32, Connection timed out'
NO_GPU = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
NO_CLAIM = '0/2 nodes are available: persistentvolumeclaim "dump" not found.'


CSI = "MountVolume.SetUp failed: driver name nfs.csi not found in the list of registered CSI drivers"
KYVERNO = FORBIDDEN + "admission webhook denied the request: no latest tags"
LIMITS = FORBIDDEN + "maximum memory usage per Container is 1Gi, but limit is 2Gi"
NO_QUOTA_YET = FORBIDDEN + "status unknown for quota: gpus, resources: requests.nvidia.com/gpu"
SANDBOX = 'plugin type="calico" failed: clusterinformation.crd "default" not found'
NO_IMAGE = 'Failed to pull image "x": rpc error: code = NotFound desc = failed to resolve "x": not found'
DOWN = 'Failed to pull image "x": dial tcp: i/o timeout'
BACK_OFF = 'Back-off pulling image "x"'


def pod(**changes: Any) -> ObservedPod:
    return replace(ObservedPod("p", "Pending", node="node-1"), **changes)


def waits(reason: str | None, message: str = "") -> ObservedPod:
    return pod(waiting_reason=reason, waiting_message=message)


def warned(reason: str, message: str) -> tuple[Event, ...]:
    older = Event(reason, "an older one: whatever", warning=True)
    return (older, Event(reason, message, warning=True))


def then(said: tuple[Event, ...], reason: str) -> tuple[Event, ...]:
    return (*said, Event(reason, "all is well"))


STARTS = waits("ContainerCreating")
ENDED = pod(phase="Succeeded", finished_at=NOW - 90)
ROOT = waits("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")
STALE = waits("CreateContainerConfigError", "failed to prepare subPath: stale NFS file handle")
PREEMPTION = {"DisruptionTarget": Condition("PreemptionByScheduler")}
CASES: dict[str, tuple[ObservedPod | None, tuple[Event, ...], str | None, float | None]] = {
    "runs": (pod(phase="Running"), (), None, None),
    "has ended, and its Job will say so": (pod(phase="Failed"), (), None, None),
    "is being made": (None, (), None, None),
    "pulls an image": (STARTS, (), None, None),
    "no such image": (waits("ErrImagePull", "manifest unknown"), (), "imagePull", PATIENCE_S),
    "no such image, told by events": (
        waits("ImagePullBackOff", BACK_OFF), warned("Failed", NO_IMAGE), "imagePull", PATIENCE_S,
    ),
    "a registry that is down": (
        waits("ImagePullBackOff", BACK_OFF), warned("Failed", DOWN), "imagePull", OUTAGE_S,
    ),
    "nothing is known of a pull": (waits("ImagePullBackOff", BACK_OFF), (), "imagePull", OUTAGE_S),
    "bad image name": (waits("InvalidImageName"), (), "imagePull", PATIENCE_S),
    "image never pulled": (waits("ErrImageNeverPull"), (), "imagePull", PATIENCE_S),
    "image not signed": (waits("SignatureValidationFailed"), (), "imagePull", PATIENCE_S),
    "no ConfigMap in env": (
        waits("CreateContainerConfigError", 'configmap "x" not found'), (), "config", PATIENCE_S,
    ),
    "root refused": (ROOT, (), "config", PATIENCE_S),
    "a subPath on a volume that is away": (STALE, (), "config", OUTAGE_S),
    "a busy container runtime": (waits("CreateContainerError", "deadline exceeded"), (), "config", OUTAGE_S),
    "no room": (waits("Unschedulable", NO_GPU), (), "unschedulable", None),
    "gated": (waits("SchedulingGated"), (), "unschedulable", None),
    "no claim": (waits("Unschedulable", NO_CLAIM), (), "config", PATIENCE_S),
    "no Secret to mount": (STARTS, warned("FailedMount", SECRET), "config", PATIENCE_S),
    "a Secret that came, and a pull": (STARTS, then(warned("FailedMount", SECRET), "Pulling"), None, None),
    "a volume that may come back": (STARTS, warned("FailedMount", NFS), "config", None),
    "a driver that is not there yet": (STARTS, warned("FailedMount", CSI), "config", None),
    "a network that is not there yet": (STARTS, warned("FailedCreatePodSandBox", SANDBOX), "config", None),
    "runs, whatever was said before": (pod(phase="Running"), warned("FailedMount", SECRET), None, None),
    "GPU quota": (None, warned("FailedCreate", QUOTA), "unschedulable", None),
    "a quota that is new": (None, warned("FailedCreate", NO_QUOTA_YET), "unschedulable", None),
    "Pod Security": (None, warned("FailedCreate", PSA), "config", PATIENCE_S),
    "no PriorityClass": (None, warned("FailedCreate", PRIORITY), "config", PATIENCE_S),
    "no ServiceAccount": (None, warned("FailedCreate", ACCOUNT), "config", PATIENCE_S),
    "a policy of the cluster": (None, warned("FailedCreate", KYVERNO), "config", PATIENCE_S),
    "a LimitRange": (None, warned("FailedCreate", LIMITS), "config", PATIENCE_S),
    "an outage of a webhook": (None, warned("FailedCreate", HOOK), "config", None),
    "a pod that could be made at last": (
        None, then(warned("FailedCreate", ACCOUNT), "SuccessfulCreate"), None, None,
    ),
    "a pod that ended, whatever was said before": (ENDED, warned("FailedCreate", ACCOUNT), "config", None),
    "told to go, in its grace": (pod(phase="Running", gone_by=NOW + 30), (), None, None),
    "told to go, a moment late": (pod(phase="Running", gone_by=NOW - ENDED_LATE_S), (), None, None),
    "told to go, and no word": (pod(phase="Running", gone_by=NOW - ENDED_LATE_S - 1), (), "nodeLost", 0.0),
    "told to go before it had a node": (pod(node=None, gone_by=NOW - 999), (), None, None),
    "preempted, and no word": (
        pod(phase="Running", gone_by=NOW - 999, conditions=PREEMPTION), (), "preempted", 0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("seen", "said", "failure", "ends_after_s"), CASES.values(), ids=CASES)
def test_cause(
    seen: ObservedPod | None, said: tuple[Event, ...], failure: str | None, ends_after_s: float | None
) -> None:
    found = cause(replace(JOB, pods=(seen,) if seen else ()), NOW, said)
    assert (found.failure, found.ends_after_s) == (failure, ends_after_s) if found else failure is None


def test_cause_tells_the_words_of_kubernetes() -> None:
    found = cause(JOB, NOW, warned("FailedCreate", QUOTA))
    assert found is not None
    assert found.evidence == f"no pod can be made: quota: {QUOTA}"


def test_a_job_that_its_queue_holds_waits_for_it() -> None:
    found = cause(replace(JOB, suspended=True), NOW)
    assert found is not None
    assert (found.failure, found.ends_after_s) == ("unschedulable", None)


def test_a_lost_node_is_known_though_its_job_is_going_already() -> None:
    going = replace(JOB, deleting=True, pods=(pod(phase="Running", gone_by=NOW - 99),))
    found = cause(going, NOW)
    assert found is not None
    assert "node node-1 does not answer: the pod had to end 99 s ago" in found.evidence


def test_a_job_that_is_going_or_over_is_not_judged() -> None:
    stuck = replace(JOB, pods=(waits("ErrImagePull"),))
    assert cause(replace(stuck, deleting=True), NOW) is None
    assert cause(replace(stuck, conditions={"Failed": Condition()}), NOW) is None


def test_a_job_that_is_held_after_its_end_is_given_up() -> None:
    """A finalizer that nobody removes: nothing writes any more, and the next attempt has another name."""
    found = cause(replace(JOB, deleting=True), NOW)
    assert found is not None
    assert (found.failure, found.ends_after_s) == ("lost", PATIENCE_S)
    assert cause(replace(JOB, deleting=True, pods=(pod(phase="Running"),)), NOW) is None


UNCLEAR = {
    "no pod": ((), True),
    "a pod that is being set up": ((waits("ContainerCreating"),), True),
    "a pod that says nothing yet": ((waits(None),), True),
    "a pod that says half of why": ((waits("ImagePullBackOff"),), True),
    "a pod that says why": ((waits("Unschedulable"),), False),
    "a pod that runs": ((pod(phase="Running"),), False),
    "a pod that ended just now": ((pod(phase="Succeeded", finished_at=NOW - 2),), False),
    "a pod that ended, and no other came": ((pod(phase="Failed", finished_at=NOW - 60),), True),
}


@pytest.mark.parametrize(("pods", "expected"), UNCLEAR.values(), ids=UNCLEAR)
def test_unclear(pods: tuple[ObservedPod, ...], expected: bool) -> None:
    assert unclear(replace(JOB, pods=pods), NOW) is expected


def test_nobody_is_asked_about_a_job_that_is_new_held_or_going() -> None:
    assert not unclear(replace(JOB, created_at=NOW - SILENCE_S + 1), NOW)
    assert not unclear(replace(JOB, suspended=True), NOW)
    assert not unclear(replace(JOB, deleting=True), NOW)
