"""The restricted Pod Security standard, as the API server enforces it, takes every pod that orch makes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from orchestrator.client.bundle import Options, bundle
from orchestrator.profile import Profile, Toleration, Volume
from orchestrator.render import JobRequest, render_job
from orchestrator.render.render import STAGES
from orchestrator.sweep.spec import Resources, Scheduling
from tests.cluster.cluster import Cluster
from trainer.results import Stage

PINNED = f"registry.test/trainer@sha256:{'a' * 64}"
PROFILES = {
    "plain": Profile(image=PINNED),
    "everything": Profile(
        image=PINNED,
        imagePullSecrets=["pull"],
        modelsSubPath="models",
        hubTokenSecret="hub",
        nodeSelector={"pool": "training"},
        tolerations=[Toleration(operator="Exists")],
        env={"HTTPS_PROXY": "http://proxy:3128"},
        volumes=[
            Volume(name="datasets", mountPath="/datasets", claim="datasets"),
            Volume(name="certificates", mountPath="/etc/lab/ca", configMap="lab-ca"),
        ],
        maxMemory="900Gi",
        shmSize="64Gi",
    ),
}
RESOURCES = {
    "cpu": Resources(gpus=0, cpu=0.5, memory="1Gi"),
    "gpus": Resources(gpus=8, gpuType=["H100", "A100"], cpu=96, memory="900Gi", maxDuration="2d"),
}
SCHEDULING = {"none": Scheduling(), "queue": Scheduling(queue="gpu", priority="low")}


def _pod(stage: Stage, profile: str, resources: str, scheduling: str) -> dict[str, Any]:
    request = JobRequest(
        sweep="s",
        sweep_uid="7e1f2a34-0000-4000-8000-000000000000",
        stage=stage,
        run_id="a-12345678",
        attempt=1,
        args=("train", "--dataset-name", "$(HOME) {{ x }}"),
        digest="1" * 64,
        resources=RESOURCES[resources],
        scheduling=SCHEDULING[scheduling],
        avoid_nodes=("n1",),
    )
    job = render_job(request, PROFILES[profile])
    return _named(job["spec"]["template"], f"{stage}-{profile}-{resources}-{scheduling}")


def _named(template: dict[str, Any], name: str) -> dict[str, Any]:
    metadata = {**template["metadata"], "name": name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.fixture
def enforced(cluster: Cluster, namespace: str) -> str:
    """A namespace labelled as `orch install` labels it, with the accounts and classes that pods name."""
    kinds = {"Namespace", "ServiceAccount", "PriorityClass"}
    objects = [one for one in bundle(Options(namespace=namespace)) if one["kind"] in kinds]
    command = ("apply", "--server-side", "--force-conflicts", "-f", "-")
    cluster.kubectl(*command, input=yaml.safe_dump_all(objects))
    return namespace


def _tried(cluster: Cluster, namespace: str, pods: list[dict[str, Any]]) -> list[str]:
    """What kubectl says of making them, line by line; nothing is made."""
    items = json.dumps({"apiVersion": "v1", "kind": "List", "items": pods})
    done = cluster.kubectl("create", "-n", namespace, "--dry-run=server", "-f", "-", input=items, check=False)
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_every_pod_of_a_job_is_taken(cluster: Cluster, enforced: str):
    pods = [
        _pod(stage, profile, resources, scheduling)
        for stage in STAGES
        for profile in PROFILES
        for resources in RESOURCES
        for scheduling in SCHEDULING
    ]
    said = _tried(cluster, enforced, pods)
    assert said == [f"pod/{pod['metadata']['name']} created (server dry run)" for pod in pods]


def test_the_controller_s_pod_is_taken(cluster: Cluster, enforced: str):
    objects = bundle(Options(namespace=enforced, controller_image=PINNED))
    [deployment] = [one for one in objects if one["kind"] == "Deployment"]
    said = _tried(cluster, enforced, [_named(deployment["spec"]["template"], "controller")])
    assert said == ["pod/controller created (server dry run)"]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("securityContext", "runAsNonRoot"), False, "runAsNonRoot != true"),
        (("securityContext", "seccompProfile"), None, "seccompProfile"),
        (("containers", 0, "securityContext", "capabilities"), {}, "unrestricted capabilities"),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True, "allowPrivilegeEscalation"),
        (("hostNetwork",), True, "host namespaces"),
    ],
)
def test_a_pod_that_is_not_restricted_is_refused(
    place: tuple[str | int, ...], value: Any, words: str, cluster: Cluster, enforced: str
):
    """Else the tests above would prove nothing."""
    pod = _pod("train", "plain", "cpu", "none")
    inner: Any = pod["spec"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    [said] = _tried(cluster, enforced, [pod])
    assert "violates PodSecurity" in said
    assert words in said
