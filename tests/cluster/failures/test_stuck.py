"""Attempts that never end by themselves: what is missing, no room, a node that does not answer."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator.cluster.base import ObservedJob
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.cluster import KubeCluster
from orchestrator.controller import stuck
from tests.cluster.cluster import Cluster
from tests.cluster.failures.lab import PROFILE, FailureLab, failure_lab
from tests.cluster.failures.page import keep
from tests.cluster.failures.scenes import BROKEN, CONFIG_MAP, Play, Scene

CLASSES = {"noimage": "imagePull", "badname": "imagePull"}
"""The others: config."""


@pytest.fixture(scope="module")
def broken(
    cluster: Cluster,
    stand_in: str,
    impatient: None,
    sweeps_defined: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FailureLab]:
    """A namespace where the fetch of every sweep is made with another fault."""
    with failure_lab(cluster, PROFILE.format(image=stand_in), tmp_path_factory.mktemp("profile")) as lab:
        limits = {"limits": [{"type": "Container", "max": {"memory": "40Mi"}}]}
        kind = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": limits}
        lab.apply(json.dumps(kind))
        for name, one in BROKEN.items():
            with lab.profile_with(one.profile, one.tables):
                lab.begin({name: one.play(name)})
                lab.made(lab.job(name, name, stage="fetch"))
        yield lab


@pytest.mark.parametrize("name", BROKEN)
def test_what_nobody_will_bring_is_recorded_and_then_ended(name: str, broken: FailureLab) -> None:
    [record] = broken.ended(name, name, "fetch")
    assert record["class"] == CLASSES.get(name, "config"), record["evidence"]
    job = broken.job(name, name, stage="fetch")
    if name != "nopython":  # that one ends by itself
        broken.until(lambda: broken.witness.ended(job) or None, "the Job to be deleted", 60)
    status = broken.finished(name, 60)
    assert (status["counts"]["failed"], status["active"]) == (1, 0)
    keep(name, broken.row(name, name, stage="fetch", stuck=True))


def test_a_volume_that_came_late_is_not_held_against_a_pod_that_pulls_its_image(
    cluster: Cluster, broken: FailureLab
) -> None:
    kube = KubeCluster(Api.connect(kubeconfig=cluster.kubeconfig, namespace=broken.namespace))

    def fetch() -> ObservedJob:
        [job] = kube.jobs("late")
        return job

    def told(reason: str) -> bool | None:
        return True if any(one.reason == reason for one in kube.said(fetch())) else None

    with socket.create_server((cluster.address, 0)) as registry:  # takes calls and never answers
        image = f"{cluster.address}:{registry.getsockname()[1]}/slow:1"
        with broken.profile_with({"image": image, "allowImageTags": True}, CONFIG_MAP):
            broken.begin({"late": Play({"late": Scene("its ConfigMap comes late")})})
            broken.made(broken.job("late", "late", stage="fetch"))
        broken.until(lambda: told("FailedMount"), "the absent ConfigMap to be noticed", 60)
        assert stuck.cause(fetch(), time.time(), kube.said(fetch()))
        broken.kubectl("create", "configmap", "absent")
        broken.until(lambda: told("Pulling"), "the image to be pulled", 60)
        assert told("FailedMount"), "it is told for an hour"
        assert stuck.cause(fetch(), time.time(), kube.said(fetch())) is None


def test_a_lost_node_costs_an_attempt_and_its_pod_that_lives_on_writes_nothing(
    lab: FailureLab, cluster: Cluster, impatient: None
) -> None:
    pod, kubelet = lab.trains("lost", "lost"), f"{cluster.nodes[-1]}.kubelet"
    assert lab.get("pod", pod)["spec"]["nodeName"] == cluster.nodes[-1]
    job = lab.job("lost", "lost")
    cluster.stop(kubelet, signal.SIGKILL)
    try:
        lab.until(lambda: lab.witness.leaving(job) or None, "the pod to be told to go", 60)
        # Its grace of a minute passes on a node where nobody heeds it: not to be waited for here.
        lab.kubectl("delete", "pod", pod, "--grace-period=1", "--wait=false")
        assert [one.get("class") for one in lab.ended("lost", "lost")] == ["nodeLost", None]
        shown = lab.witness.shown(job)
        first, _ = lab.journal("lost", "lost", "start")
        assert first.pod not in [one.pod for one in lab.journal("lost", "lost", "end")], "it lives on"
    finally:
        cluster.start(kubelet)
    lab.until(lambda: lab.witness.ended(job) or None, "the node to end what it was told to", 60)
    [(_, code)] = [one for one in lab.exits("lost", "lost") if one[0] == first.pod]
    assert code == "75"
    assert len(lab.journal("lost", "lost", "trained")) == 1
    keep("lost", replace(lab.row("lost", "lost"), shown=shown))
