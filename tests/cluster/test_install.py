"""`orch install`, `uninstall` and `doctor` on a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.client import uninstall as uninstalls
from orchestrator.client.bundle import Options, bundle, cluster_scoped
from orchestrator.client.install import apply, plan
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.paths import SWEEPS
from tests.cluster.cluster import Cluster

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
CONTROLLER = f"registry.test/controller@sha256:{'a' * 64}"
TRAINER = f"registry.test/trainer@sha256:{'b' * 64}"
FIRST = ("--yes", "--controller-image", CONTROLLER, "--image", TRAINER)


def _orch(kubeconfig: Path, *words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user calls it; without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        cwd=ROOT,
        input=input or "",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def installed(cluster: Cluster, namespace: str) -> str:
    """A namespace with orch in it."""
    done = _orch(cluster.kubeconfig, "install", "-n", namespace, *FIRST)
    assert done.returncode == 0, done.stderr
    return namespace


@contextmanager
def _user(
    cluster: Cluster, namespace: str, role: str, folder: Path, kind: str = "clusterrole"
) -> Iterator[Path]:
    """The kubeconfig of an account that has a role in one namespace alone."""
    cluster.kubectl("create", "serviceaccount", "ann", "-n", namespace)
    cluster.kubectl(
        "create",
        "rolebinding",
        "ann",
        "-n",
        namespace,
        f"--{kind}={role}",
        f"--serviceaccount={namespace}:ann",
    )
    token = cluster.kubectl("create", "token", "ann", "-n", namespace).stdout.strip()
    value = yaml.safe_load(cluster.kubeconfig.read_text())
    value["users"] = [{"name": user["name"], "user": {"token": token}} for user in value["users"]]
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(value))
    yield path


def _versions(cluster: Cluster, namespace: str) -> dict[str, str]:
    """Every object of an installation and its version."""
    kinds = "deployments,serviceaccounts,roles,rolebindings,configmaps,persistentvolumeclaims,networkpolicies"
    selector = ("-l", "app.kubernetes.io/part-of=orch", "-o", "json")
    here = json.loads(cluster.kubectl("get", kinds, "-n", namespace, *selector).stdout)["items"]
    shared = json.loads(cluster.kubectl("get", "crd,priorityclasses,clusterroles", *selector).stdout)["items"]
    # The status of a Deployment or a definition moves by itself; what is wanted of it does not.
    return {
        f"{one['kind']}/{one['metadata']['name']}": str(
            one["metadata"].get("generation") or one["metadata"]["resourceVersion"]
        )
        for one in (*here, *shared)
    }


def test_the_second_time_nothing_is_written(cluster: Cluster, installed: str):
    before = _versions(cluster, installed)
    assert len(before) == len(bundle(Options())) - 1
    again = _orch(cluster.kubeconfig, "install", "-n", installed)
    assert (again.returncode, again.stderr) == (0, "")
    assert "0 to create, 0 to change, 20 unchanged" in again.stdout
    assert _versions(cluster, installed) == before


@pytest.mark.parametrize("how", [(), ("--server-side", "--force-conflicts")], ids=["client", "server"])
def test_kubectl_makes_the_same(how: tuple[str, ...], cluster: Cluster, namespace: str, tmp_path: Path):
    """What kustomize and kubectl made is, to `orch install`, unchanged."""
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{os.path.relpath(MANIFESTS, tmp_path)}]\nnamespace: {namespace}\n"
        f"images: [{{name: localhost/orch-controller, newName: {CONTROLLER.partition('@')[0]}, "
        f"digest: {CONTROLLER.partition('@')[2]}}}]\n"
    )
    cluster.kubectl("apply", *how, "-k", str(tmp_path))
    api = Api.connect(kubeconfig=cluster.kubeconfig, namespace=namespace)
    changes = plan(api, Options(namespace=namespace, controller_image=CONTROLLER))
    assert [(one.object["kind"], one.verdict, one.fields) for one in changes if one.fields] == []
    assert {one.verdict for one in changes} == {"unchanged", "kept"}


def test_it_asks_before_it_writes(cluster: Cluster, namespace: str):
    done = _orch(cluster.kubeconfig, "install", "-n", namespace, *FIRST[1:])
    assert (done.returncode, done.stderr) == (
        2,
        "orch: asks before it changes a cluster, got no terminal; give --yes\n",
    )
    done = _orch(cluster.kubeconfig, "install", "-n", namespace, "--dry-run", *FIRST[1:])
    assert "+ Deployment orch-controller  create" in done.stdout
    assert cluster.kubectl("get", "deployments", "-n", namespace, "-o", "name").stdout == ""


def test_what_the_lab_set_up_is_never_reset(cluster: Cluster, installed: str):
    toml = f'# ours\nimage = "{TRAINER}"\nmaxMemory = "8Gi"\n'
    patch = json.dumps({"data": {"orch.toml": toml}})
    cluster.kubectl("patch", "configmap", "orch-profile", "-n", installed, "--type=merge", "-p", patch)
    cluster.kubectl("scale", "deployment", "orch-controller", "-n", installed, "--replicas=2")
    again = _orch(cluster.kubeconfig, "install", "-n", installed, "--size", "9Gi", "--yes")
    assert again.returncode == 2
    assert "Deployment orch-controller: others own what would change" in again.stderr
    assert "--force-conflicts" in again.stderr
    newer = TRAINER.replace("b", "c")
    again = _orch(
        cluster.kubeconfig, "install", "-n", installed, "--image", newer, "--yes", "--force-conflicts"
    )
    assert again.returncode == 0, again.stderr
    assert "spec.replicas: 2 → 1" in again.stdout
    stored = json.loads(cluster.kubectl("get", "cm", "orch-profile", "-n", installed, "-o", "json").stdout)
    assert stored["data"]["orch.toml"] == toml.replace(TRAINER, newer)
    claim = json.loads(cluster.kubectl("get", "pvc", "orch", "-n", installed, "-o", "json").stdout)
    assert claim["spec"]["resources"]["requests"]["storage"] == "500Gi"


def test_dry_run_prints_what_it_would_send(cluster: Cluster, namespace: str):
    done = _orch(cluster.kubeconfig, "install", "-n", namespace, "--dry-run", "-o", "yaml")
    assert list(yaml.safe_load_all(done.stdout)) == bundle(Options(namespace=namespace))
    applied = cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", input=done.stdout
    )
    assert len(applied.stdout.splitlines()) == 20


def test_who_administrates_a_namespace_can_install_there(cluster: Cluster, namespace: str, tmp_path: Path):
    """Once a cluster's admin has made what namespaces share."""
    shared = _orch(cluster.kubeconfig, "install", "--crd-only", "--yes")
    assert shared.returncode == 0, shared.stderr
    with _user(cluster, namespace, "admin", tmp_path) as ann:
        _await_right(cluster, ann, namespace)
        done = _orch(ann, "install", "-n", namespace, *FIRST)
        assert done.returncode == 0, done.stderr
        assert "? CustomResourceDefinition sweeps.orch.dev  no right: you may not change it" in done.stdout
        assert "? PriorityClass orch-low  no right" in done.stdout
        assert "wrote 12 objects" in done.stdout
        told = json.loads(_orch(ann, "doctor", "-n", namespace, "-o", "json").stdout)
    states = {one["check"]: one["state"] for one in told["checks"]}
    assert states["rights"] == "ok"
    assert states["gpus"] == states["priorities"] == states["crd"] == "unknown"
    assert states["namespace"] == states["controller"] == "missing"


def _await_right(cluster: Cluster, kubeconfig: Path, namespace: str) -> None:
    """The controller manager adds our ClusterRoles to `admin` on its own time."""
    value = "{.rules[?(@.apiGroups[0]=='events.k8s.io')].verbs}"
    cluster.kubectl("wait", f"--for=jsonpath={value}", "clusterrole/admin", "--timeout=60s")


def test_doctor_says_what_is_missing(cluster: Cluster, installed: str):
    done = _orch(cluster.kubeconfig, "doctor", "-n", installed, "--queue", "gpu", "-o", "json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    states = {one["check"]: one["state"] for one in told["checks"]}
    assert told["ok"] is False
    assert states == {
        "api": "ok",
        "crd": "ok",
        "namespace": "ok",
        "rights": "ok",
        "controller": "missing",
        "controller-image": "ok",
        "lease": "missing",
        "network": "ok",
        "profile": "ok",
        "image": "ok",
        "hub-token": "ok",
        "volume-access": "ok",
        "volume": "missing",
        "gpus": "ok",
        "gpu-nodes": "ok",
        "priorities": "ok",
        "queue": "missing",
    }
    text = _orch(cluster.kubeconfig, "doctor", "-n", installed)
    assert "✗ controller: 0 of 1 ready" in text.stdout
    assert "✓ crd: Sweeps are defined as in this orch" in text.stdout


def test_doctor_says_what_a_user_may_not_see(cluster: Cluster, installed: str, tmp_path: Path):
    with _user(cluster, installed, "orch-user", tmp_path, kind="role") as ann:
        told = json.loads(_orch(ann, "doctor", "-n", installed, "-o", "json").stdout)
    states = {one["check"]: one["state"] for one in told["checks"]}
    assert states["rights"] == states["profile"] == states["network"] == "ok"
    assert {check for check, state in states.items() if state == "unknown"} == {
        "crd",
        "namespace",
        "gpus",
        "priorities",
    }


def _sweep(name: str) -> dict[str, Any]:
    spec = {"groups": [{"name": "a", "runs": [{"name": "a"}]}]}
    return {"apiVersion": "orch.dev/v1alpha1", "kind": "Sweep", "metadata": {"name": name}, "spec": spec}


def test_uninstalling_says_what_goes_with_it(cluster: Cluster, installed: str):
    api = Api.connect(kubeconfig=cluster.kubeconfig, namespace=installed)
    api.post(SWEEPS.path(installed), _sweep("one"))
    record = {
        "metadata": {
            "name": "rec",
            "labels": {"app.kubernetes.io/managed-by": "orch", "orch.dev/record": "v1"},
        }
    }
    api.post(f"/api/v1/namespaces/{installed}/configmaps", record)
    with cluster.namespace("other") as other:
        api.post(SWEEPS.path(other), _sweep("theirs"))
        removal = uninstalls.plan(api)
        assert (removal.sweeps, removal.jobs, removal.records) == (1, 0, 1)
        assert all(not cluster_scoped(one) for one in removal.objects)
        [why] = {one.why for one in removal.kept if one.label.startswith("CustomResourceDefinition")}
        assert other in why
        done = _orch(cluster.kubeconfig, "uninstall", "-n", installed, "--yes")
        assert done.returncode == 0, done.stderr
        left = cluster.kubectl("get", "sweeps", "-n", other, "-o", "name").stdout.split()
        assert left == ["sweep.orch.dev/theirs"]
    kinds = "deployments,roles,rolebindings,networkpolicies,sweeps,configmaps,persistentvolumeclaims"
    for gone in ("configmap/rec", "deployment/orch-controller"):
        cluster.kubectl("wait", "--for=delete", gone, "-n", installed, "--timeout=60s")
    left = cluster.kubectl("get", kinds, "-n", installed, "-o", "name").stdout.split()
    assert left == ["configmap/kube-root-ca.crt", "persistentvolumeclaim/orch"]


def test_sweeps_stay_with_their_definition(cluster: Cluster, installed: str):
    api = Api.connect(kubeconfig=cluster.kubeconfig, namespace=installed)
    api.post(SWEEPS.path(installed), _sweep("one"))
    done = _orch(cluster.kubeconfig, "uninstall", "-n", installed, "--yes", "--keep-crd", "--delete-volume")
    assert done.returncode == 0, done.stderr
    for gone in ("deployment/orch-controller", "pvc/orch"):
        cluster.kubectl("wait", "--for=delete", gone, "-n", installed, "--timeout=60s")
    kinds = "deployments,sweeps,persistentvolumeclaims"
    left = cluster.kubectl("get", kinds, "-n", installed, "-o", "name").stdout.split()
    assert left == ["sweep.orch.dev/one"]
    again = apply(api, plan(api, Options(namespace=installed, controller_image=CONTROLLER)))
    assert "Deployment" in {one.object["kind"] for one in again}


QUEUES = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "localqueues.kueue.x-k8s.io"},
    "spec": {
        "group": "kueue.x-k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "LocalQueue", "plural": "localqueues"},
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                },
            }
        ],
    },
}
"""A stand-in for Kueue's own definition, which no module carries."""


def test_doctor_looks_for_the_queue(cluster: Cluster, installed: str):
    queue = {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "LocalQueue",
        "metadata": {"name": "gpu"},
        "spec": {"clusterQueue": "all"},
    }
    cluster.kubectl("apply", "-f", "-", input=json.dumps(QUEUES))
    try:
        cluster.kubectl("wait", "--for=condition=Established", "crd/localqueues.kueue.x-k8s.io")
        cluster.kubectl("apply", "-n", installed, "-f", "-", input=json.dumps(queue))
        told = _orch(cluster.kubeconfig, "doctor", "-n", installed, "--queue", "gpu").stdout
        assert "✓ queue: LocalQueue gpu leads to all" in told
        told = _orch(cluster.kubeconfig, "doctor", "-n", installed, "--queue", "cpu").stdout
        assert "✗ queue: there is no LocalQueue cpu" in told
    finally:
        cluster.kubectl("delete", "crd", "localqueues.kueue.x-k8s.io")


@pytest.mark.parametrize("overlay", ["gpu-pools", "kueue", "single-node"])
def test_overlays_are_taken_by_the_server(overlay: str, cluster: Cluster):
    """A dry run; only the namespace has to be there."""
    cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", str(MANIFESTS / "base/namespace.yaml")
    )
    folder = str(MANIFESTS / "overlays" / overlay)
    done = cluster.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-k", folder)
    assert done.stdout.count("(server dry run)") == (21 if overlay == "kueue" else 20)


def test_the_sample_policy_refuses_an_image_that_is_not_pinned(
    cluster: Cluster, namespace: str, tmp_path: Path
):
    component = os.path.relpath(MANIFESTS / "components" / "pinned-images", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(f"components: [{component}]\n")
    cluster.kubectl("apply", "--server-side", "-k", str(tmp_path))
    try:
        container = {"name": "c", "image": "registry.test/trainer:dev"}
        template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "j", "labels": {"app.kubernetes.io/managed-by": "orch"}},
            "spec": {"suspend": True, "template": template},
        }
        refusal = _await_refusal(cluster, namespace, job)
        assert "image: must be pinned by digest (NAME@sha256:…), got 'registry.test/trainer:dev'" in refusal
        container["image"] = TRAINER
        assert _tried(cluster, namespace, job).returncode == 0
        del job["metadata"]["labels"]
        container["image"] = "registry.test/trainer:dev"
        assert _tried(cluster, namespace, job).returncode == 0
    finally:
        cluster.kubectl("delete", "-k", str(tmp_path))


def _tried(cluster: Cluster, namespace: str, value: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return cluster.kubectl(
        "create", "-n", namespace, "--dry-run=server", "-f", "-", input=json.dumps(value), check=False
    )


def _await_refusal(cluster: Cluster, namespace: str, job: dict[str, Any]) -> str:
    """The API server puts a new policy to work on its own time; it tells nobody when."""
    for _ in range(300):
        done = _tried(cluster, namespace, job)
        if done.returncode:
            return done.stderr
    raise AssertionError("the policy refused nothing in 300 tries")
