"""The cluster itself: what every test above it takes for granted."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.rig.settings import TOOLS_IMAGE, RigError

USER = 10001


def pod(name: str, script: str, **spec: Any) -> str:
    """A pod of the tests' own image that runs a shell script once, as restricted Pod Security wants it."""
    container = {
        "name": "main",
        "image": TOOLS_IMAGE,
        "command": ["sh", "-c", script],
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **spec.pop("container", {}),
    }
    security = {"runAsNonRoot": True, "runAsUser": USER, "seccompProfile": {"type": "RuntimeDefault"}}
    body = {"restartPolicy": "Never", "securityContext": security, "containers": [container], **spec}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body})


def run(cluster: Cluster, namespace: str, name: str, manifest: str, phase: str = "Succeeded") -> str:
    """Run a pod until it is in that phase; what it wrote."""
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=manifest)
    until = f"--for=jsonpath={{.status.phase}}={phase}"
    cluster.kubectl("wait", "-n", namespace, until, f"pod/{name}", "--timeout=60s")
    return cluster.kubectl("logs", "-n", namespace, name).stdout


def get(cluster: Cluster, *arguments: str) -> Any:
    return json.loads(cluster.kubectl("get", *arguments, "--output=json").stdout)


def test_both_nodes_are_ready_and_offer_gpus(cluster: Cluster) -> None:
    nodes = get(cluster, "nodes")["items"]

    assert [node["metadata"]["name"] for node in nodes] == ["orch-node-1", "orch-node-2"] == cluster.nodes
    for node in nodes:
        conditions = {one["type"]: one["status"] for one in node["status"]["conditions"]}
        assert conditions["Ready"] == "True"
        assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
        assert node["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"


def test_a_restricted_pod_runs_and_its_logs_are_read(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")

    assert run(cluster, namespace, "hello", pod("hello", "echo hello from $(id -u)")) == "hello from 10001\n"


def test_a_command_is_run_in_a_running_pod(cluster: Cluster, namespace: str) -> None:
    run(cluster, namespace, "waits", pod("waits", "sleep infinity"), phase="Running")

    assert cluster.kubectl("exec", "-n", namespace, "waits", "--", "hostname").stdout == "waits\n"


@pytest.mark.parametrize("number", [0, 1])
def test_a_pod_of_each_node_reaches_the_api_and_is_nobody_there(
    cluster: Cluster, namespace: str, number: int
) -> None:
    manifest = pod("asks", "kubectl get secrets 2>&1; echo exit $?", nodeName=cluster.nodes[number])

    said = run(cluster, namespace, "asks", manifest)

    assert f'User "system:serviceaccount:{namespace}:default" cannot list resource "secrets"' in said
    assert said.endswith("exit 1\n")


def test_pods_of_two_nodes_reach_each_other(cluster: Cluster, namespace: str) -> None:
    first, second = cluster.nodes
    serve = "echo over there > /tmp/index.html; httpd -f -p 8080 -h /tmp"
    writable = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
    mount = {"container": {"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}}
    run(cluster, namespace, "server", pod("server", serve, nodeName=first, **writable, **mount), "Running")
    address = get(cluster, "-n", namespace, "pod", "server")["status"]["podIP"]

    ask = f"until wget -q -O - http://{address}:8080/; do sleep 0.2; done"
    assert run(cluster, namespace, "client", pod("client", ask, nodeName=second)) == "over there\n"


def test_gpus_are_counted(cluster: Cluster, namespace: str) -> None:
    gpus = {"resources": {"limits": {"nvidia.com/gpu": "8"}}}
    for name in ("first", "second"):
        run(cluster, namespace, name, pod(name, "sleep infinity", container=gpus), "Running")
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=pod("third", "true", container=gpus))
    refused = "--for=jsonpath={.status.conditions[?(@.type=='PodScheduled')].reason}=Unschedulable"
    cluster.kubectl("wait", "-n", namespace, refused, "pod/third", "--timeout=30s")

    scheduled = {
        one["metadata"]["name"]: one["spec"].get("nodeName")
        for one in get(cluster, "-n", namespace, "pods")["items"]
    }
    assert {scheduled["first"], scheduled["second"]} == set(cluster.nodes)
    assert scheduled["third"] is None
    message = get(cluster, "-n", namespace, "pod", "third")["status"]["conditions"][0]["message"]
    assert "2 Insufficient nvidia.com/gpu" in message

    cluster.kubectl("delete", "-n", namespace, "pod", "first", "--grace-period=1")
    cluster.kubectl(
        "wait", "-n", namespace, "--for=jsonpath={.status.phase}=Succeeded", "pod/third", "--timeout=60s"
    )


def test_an_image_is_found_by_its_digest(cluster: Cluster, namespace: str) -> None:
    pinned = cluster.digest(TOOLS_IMAGE)
    assert pinned.startswith("orch.test/tools@sha256:")

    manifest = pod("pinned", "echo pinned", container={"image": pinned})
    assert run(cluster, namespace, "pinned", manifest) == "pinned\n"
    status = get(cluster, "-n", namespace, "pod", "pinned")["status"]["containerStatuses"][0]
    assert status["imageID"] == pinned


def test_an_image_nobody_loaded_is_not_found(cluster: Cluster, namespace: str) -> None:
    manifest = pod("absent", "true", container={"image": "orch.test/absent:1"})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=manifest)

    waiting = "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImagePull"
    cluster.kubectl("wait", "-n", namespace, waiting, "pod/absent", "--timeout=60s")


def test_pods_of_both_nodes_write_one_volume(cluster: Cluster, namespace: str) -> None:
    folder = cluster.volume(namespace, "shared")
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(claim))
    for number, node in enumerate(cluster.nodes):
        manifest = pod(
            f"writer-{number}",
            f"echo from {node} > /volume/{number}",
            nodeName=node,
            volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "shared"}}],
            container={"volumeMounts": [{"name": "v", "mountPath": "/volume"}]},
        )
        run(cluster, namespace, f"writer-{number}", manifest)

    assert sorted(file.read_text() for file in folder.iterdir()) == [
        f"from {node}\n" for node in cluster.nodes
    ]
    assert {file.stat().st_uid for file in folder.iterdir()} == {USER}


def test_a_pod_reaches_a_server_of_the_tests(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    import functools
    import http.server
    import threading

    (tmp_path / "model").write_text("weights\n")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer((cluster.address, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ask = f"wget -q -O - http://{cluster.address}:{server.server_port}/model"
        try:
            assert run(cluster, namespace, "client", pod("client", ask)) == "weights\n"
        finally:
            server.shutdown()


def test_a_name_lookup_fails_at_once(cluster: Cluster, namespace: str) -> None:
    manifest = pod("asks", "nslookup example.org >/dev/null 2>&1; echo exit $?", activeDeadlineSeconds=20)

    assert run(cluster, namespace, "asks", manifest) == "exit 1\n"


def test_a_pod_and_the_gpus_outlive_their_kubelet(cluster: Cluster, namespace: str) -> None:
    node = cluster.nodes[1]
    run(cluster, namespace, "lasts", pod("lasts", "sleep infinity", nodeName=node), "Running")
    [before] = get(cluster, "-n", namespace, "pod", "lasts")["status"]["containerStatuses"]

    execute = ("exec", "-n", namespace, "lasts", "--", "hostname")

    cluster.stop(f"{node}.kubelet", signal.SIGKILL)
    cluster.start(f"{node}.kubelet")

    assert get(cluster, "node", node)["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    while (reached := cluster.kubectl(*execute, check=False)).returncode:
        assert "pod does not exist" in reached.stderr, "said before a kubelet has seen its pods"
    assert reached.stdout == "lasts\n"
    [after] = get(cluster, "-n", namespace, "pod", "lasts")["status"]["containerStatuses"]
    assert after == before


def test_what_was_stored_outlives_the_control_plane(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "configmap", "-n", namespace, "kept", "--from-literal=a=b")
    for program in ("kube-apiserver", "etcd"):
        cluster.stop(program, signal.SIGKILL)
    refused = cluster.kubectl("get", "namespaces", check=False)
    assert refused.returncode == 1
    assert "refused" in refused.stderr

    for program in ("etcd", "kube-apiserver"):
        cluster.start(program)

    assert get(cluster, "-n", namespace, "configmap", "kept")["data"] == {"a": "b"}
    with pytest.raises(RigError, match="already runs as pid"):
        cluster.start("etcd")
