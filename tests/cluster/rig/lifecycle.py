"""From nothing to Ready nodes, and back to nothing."""

from __future__ import annotations

import json
import shutil
import signal
import time

from tests.cluster.rig import (
    cgroups,
    controlplane,
    credentials,
    images,
    network,
    node,
    processes,
    tools,
)
from tests.cluster.rig.kubectl import kubectl
from tests.cluster.rig.settings import (
    DNS_SERVICE_ADDRESS,
    GPU_RESOURCE,
    GPUS_PER_NODE,
    Node,
    Options,
    Rig,
    RigError,
    beside,
)

HIDDEN = ("/run", "/var/run", "/var/lib", "/var/log", "/proc", "/sys", "/dev")
"""Places a node has for itself: a cluster's folder below one of them would not be seen from inside."""

NO_DNS = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "kube-dns", "namespace": "kube-system"},
    "spec": {"clusterIP": DNS_SERVICE_ADDRESS, "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]},
}
"""A name server without endpoints: kube-proxy refuses at once what would otherwise wait for a timeout."""


def up(rig: Rig, options: Options) -> None:
    """Start a cluster, or leave one that runs as it is; a failed start leaves its logs for `down`."""
    if reason := tools.why_not():
        raise RigError(reason)
    if is_up(rig):
        tools.say("is up already")
        return
    refuse_remains(rig)
    if any(rig.home.is_relative_to(hidden) for hidden in HIDDEN):
        raise RigError(f"ORCH_CLUSTER_HOME: a node has its own {', '.join(HIDDEN)}, got {rig.home}")
    tools.install_packages()
    binaries = tools.build()
    began = time.monotonic()
    rig.create(options)
    credentials.create(rig)
    network.create_control(rig)
    for one in rig.nodes:
        network.create_node(rig, one)
        node.start_containerd(rig, one)
    controlplane.start(rig, binaries)
    for one in rig.nodes:
        node.start_kubelet(rig, one, binaries)
    for one in rig.nodes:  # the kubelets need no image to become Ready
        images.load_own(rig, one, binaries)
    kubectl(rig, "apply", "-f", "-", input=json.dumps(NO_DNS))
    for one in rig.nodes:
        make_ready(rig, one)
    # No pod is taken before the controller manager has made its account.
    kubectl(rig, "wait", "--for=create", "serviceaccount/default", "--timeout=60s")
    tools.say(f"Ready after {time.monotonic() - began:.0f} s; export KUBECONFIG={rig.kubeconfig}")


def is_up(rig: Rig) -> bool:
    """Whether every program of the cluster runs."""
    recorded = list(processes.recorded(rig))
    return bool(recorded) and all(process.alive() for process in recorded)


def refuse_remains(rig: Rig) -> None:
    """RigError when the folder of a cluster is there."""
    if rig.home.exists():
        ended = [process.name for process in processes.recorded(rig) if not process.alive()]
        raise RigError(f"{rig.home}: a cluster is there, and ended are {ended}; `make cluster-down` first")


def make_ready(rig: Rig, one: Node) -> None:
    """Wait until a node is Ready and give it its GPUs (a kubelet that starts anew takes them away)."""
    name = f"node/{one.name}"
    kubectl(rig, "wait", "--for=create", name, "--timeout=60s")
    kubectl(rig, "wait", "--for=condition=Ready", name, "--timeout=60s")
    gpus = {GPU_RESOURCE: str(GPUS_PER_NODE)}
    # The kubelet would copy capacity to allocatable itself, within ten seconds.
    patch = {"status": {"capacity": gpus, "allocatable": gpus}}
    kubectl(rig, "patch", name, "--subresource=status", f"--patch={json.dumps(patch)}")


def down(rig: Rig) -> None:
    """End and remove all that `up` started, however far it came; without a cluster, do nothing.

    One that was interrupted, or failed, is gone on with by the next: each step finds done what was done, and
    the mark that makes the folder ours goes last.
    """
    if not rig.mark.exists():
        remove_unmarked(rig)
        return
    for one in rig.nodes:  # so that nothing starts the containers anew
        processes.stop(rig, node.program(one, "kubelet"))
        processes.stop(rig, node.program(one, "kube-proxy"))
        cgroups.kill(f"{rig.name}/{one.name}")
    for name in reversed(controlplane.NAMES):
        # An API server asked to end serves open watches for up to a minute.
        processes.stop(rig, name, signal.SIGKILL)
    for one in rig.nodes:
        processes.stop(rig, node.program(one, "containerd"))
    processes.stop(rig, "etcd")
    # The holders: their namespaces go with them, and all mounts inside. Then what no record names: shims.
    for process in processes.recorded(rig):
        processes.stop(rig, process.name, signal.SIGKILL)
    cgroups.remove(rig.name)
    remove_folder(rig)


def remove_folder(rig: Rig) -> None:
    """Remove the folder of a cluster of which nothing runs: what is in it, then the mark, then itself."""
    for path in rig.home.iterdir():
        if path == rig.mark:
            continue
        if not path.is_symlink() and path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    rig.mark.unlink()
    rig.home.rmdir()


def remove_unmarked(rig: Rig) -> None:
    """Remove a folder in which `up` made nothing yet, or `down` left nothing; RigError for another."""
    if not rig.home.exists():
        return
    unborn = beside(rig.mark)
    if any(path != unborn for path in rig.home.iterdir()):
        raise RigError(f"{rig.home}: not a cluster's folder (no {rig.mark.name}); left as it is")
    unborn.unlink(missing_ok=True)
    rig.home.rmdir()


def start(rig: Rig, name: str) -> None:
    """Start an ended program as it was started before, and wait until it does its work again."""
    nodes = [one for one in rig.nodes if name == node.program(one, "kubelet")]
    for one in nodes:
        # So that Ready means the new kubelet, whatever the old one said last.
        unknown = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
        patch = f"--patch={json.dumps(unknown)}"
        kubectl(rig, "patch", f"node/{one.name}", "--subresource=status", patch)
    processes.restart(rig, name)
    if name == "kube-apiserver":
        controlplane.wait_for_api(rig, tools.binaries())
    for one in nodes:
        make_ready(rig, one)
