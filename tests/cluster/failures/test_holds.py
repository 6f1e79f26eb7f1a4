"""Attempts that wait for room: nothing fails, orch says what they wait for, and they go on by themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.failures.lab import PROFILE, FailureLab, failure_lab
from tests.cluster.failures.page import keep
from tests.cluster.failures.scenes import Play, Scene
from tests.cluster.rig.settings import GPU_RESOURCE, GPUS_PER_NODE, TOOLS_IMAGE

JOBS, GPUS = "count/jobs.batch", f"requests.{GPU_RESOURCE}"
UNTIL_ROOM = "held until there is room"
NO_JOB = "a ResourceQuota allows no further Job"
NO_GPU = "a ResourceQuota allows fewer GPUs"
NO_NODE = "no node has as many free GPUs"
FORBIDDEN = "admission of the lab adds to the pod what its Pod Security standard forbids"
APPARMOR = "container.apparmor.security.beta.kubernetes.io/trainer"


@pytest.fixture(scope="module")
def lab(
    cluster: Cluster,
    stand_in: str,
    impatient: None,
    sweeps_defined: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FailureLab]:
    """A namespace of its own: a quota holds whatever is in it."""
    with failure_lab(cluster, PROFILE.format(image=stand_in), tmp_path_factory.mktemp("profile")) as one:
        yield one


def allow(lab: FailureLab, what: str, most: int) -> None:
    """A quota that the API server heeds."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
    lab.apply(json.dumps({**quota, "spec": {"hard": {what: str(most)}}}))
    path = what.replace(".", r"\.")
    lab.kubectl("wait", "quota/few", f"--for=jsonpath={{.status.hard.{path}}}={most}", "--timeout=30s")


def test_a_full_quota_of_jobs(lab: FailureLab) -> None:
    allow(lab, JOBS, 1)
    lab.begin({"few": Play({"few": Scene(NO_JOB, attempts=1)})})
    lab.waits("few", "JobsRefused", "QuotaExceeded")
    keep("quota-jobs", lab.held("few", "few", NO_JOB, "held", UNTIL_ROOM))
    allow(lab, JOBS, 100)
    lab.goes_on("few", "JobsRefused")
    lab.kubectl("delete", "quota", "few")


def test_a_full_quota_of_gpus(lab: FailureLab) -> None:
    allow(lab, GPUS, 0)
    lab.begin({"quota": Play({"quota": Scene(NO_GPU, attempts=1)}, {"resources": {"gpus": 1}})})
    lab.waits("quota", "Waiting", "Unschedulable")
    keep("quota-gpus", lab.held("quota", "quota", NO_GPU, "unschedulable", UNTIL_ROOM))
    allow(lab, GPUS, 1)
    lab.goes_on("quota", "Waiting")
    lab.kubectl("delete", "quota", "few")


def test_no_node_has_room(lab: FailureLab) -> None:
    for node in lab.cluster.nodes:
        container = {"name": "rival", "image": TOOLS_IMAGE, "resources": {"limits": {GPU_RESOURCE: 1}}}
        spec = {"nodeName": node, "priorityClassName": "orch-high", "containers": [container]}
        rival = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"rival-{node}"}, "spec": spec}
        lab.apply(json.dumps(rival))
    lab.begin({"room": Play({"room": Scene(NO_NODE, attempts=1)}, {"resources": {"gpus": GPUS_PER_NODE}})})
    lab.waits("room", "Waiting", "Unschedulable")
    keep("room", lab.held("room", "room", NO_NODE, "unschedulable", UNTIL_ROOM))
    rivals = (f"rival-{node}" for node in lab.cluster.nodes)
    lab.kubectl("delete", "pod", *rivals, "--grace-period=1", "--wait=false")
    lab.goes_on("room", "Waiting")


def test_a_pod_that_pod_security_refuses_is_no_pod_for_ever(lab: FailureLab) -> None:
    lab.cluster.kubectl("label", "namespace", lab.namespace, "pod-security.kubernetes.io/enforce=baseline")
    scene = Scene(FORBIDDEN, attempts=1, done=False)
    lab.begin({"security": Play({"security": scene}, {"scheduling": {"queue": "gpu"}})})
    [job] = lab.until(lambda: lab.queued("security", "fetch"), "the fetch in its queue")
    template = {"metadata": {"annotations": {APPARMOR: "unconfined"}}}
    lab.kubectl("patch", "job", job, "-p", json.dumps({"spec": {"template": template}}))
    lab.suspend(job, False)
    [record] = lab.ended("security", "security", "fetch")
    assert record["class"] == "config"
    keep("security", lab.row("security", "security", stage="fetch", stuck=True))
