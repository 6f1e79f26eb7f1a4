"""One node: containerd, kubelet and kube-proxy in the node's own network and mounts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cluster.rig import cgroups, credentials, processes
from tests.cluster.rig.network import inside_node
from tests.cluster.rig.settings import (
    DNS_SERVICE_ADDRESS,
    NODE_LABELS,
    PAUSE_IMAGE,
    PODS,
    Node,
    Rig,
)

SOCKET = "/run/containerd/containerd.sock"
"""Inside the node's mounts, where /run is the node's own."""

CONTAINERD = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "/usr/sbin/runc"
        SystemdCgroup = false
"""


def program(node: Node, name: str) -> str:
    """The name under which a node's program is recorded."""
    return f"{node.name}.{name}"


def start_containerd(rig: Rig, node: Node) -> None:
    """Start the node's containerd; its socket is there on return."""
    folder = node.folder
    cni = folder / "cni"
    cni.mkdir(exist_ok=True)
    (cni / "10-bridge.conflist").write_text(json.dumps(_pod_network(node)))
    config = folder / "containerd.toml"
    config.write_text(CONTAINERD.format(pause=PAUSE_IMAGE, cni=cni))
    name = program(node, "containerd")
    processes.start(rig, name, [*inside_node(rig, node), "containerd", f"--config={config}"])
    socket = folder / SOCKET.lstrip("/")
    processes.wait_until(rig, name, socket.exists, 20, "its socket")


def start_kubelet(rig: Rig, node: Node, binaries: Path) -> None:
    """Start the node's kubelet and kube-proxy, which need the API server."""
    cgroup = f"{rig.name}/{node.name}"
    cgroups.create(cgroup)
    kubelet, proxy = node.folder / "kubelet.json", node.folder / "kube-proxy.json"
    kubelet.write_text(json.dumps(_kubelet(rig, node, cgroup), indent=1))
    proxy.write_text(json.dumps(_kube_proxy(rig, node), indent=1))
    inside = inside_node(rig, node)
    flags = [
        f"--config={kubelet}",
        f"--kubeconfig={credentials.kubeconfig(rig, f'system:node:{node.name}')}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        "--node-labels=" + ",".join(f"{key}={value}" for key, value in NODE_LABELS.items()),
    ]
    processes.start(rig, program(node, "kubelet"), [*inside, str(binaries / "kubelet"), *flags])
    kube_proxy = [*inside, str(binaries / "kube-proxy"), f"--config={proxy}"]
    processes.start(rig, program(node, "kube-proxy"), kube_proxy)


def _pod_network(node: Node) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": node.pods}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, portmap]}


def _kubelet(rig: Rig, node: Node, cgroup: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(rig.home / "pki" / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "protectKernelDefaults": True,
        "oomScoreAdj": 0,  # below 0 is for those who may lower it
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE_ADDRESS],
        # The disk belongs to the machine: how full it is must not decide what a test sees.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
    }
    grace = rig.options.node_grace
    if grace is not None:  # a quarter of the lease is its rhythm of renewal
        config |= {"nodeLeaseDurationSeconds": max(grace // 2, 4), "nodeStatusUpdateFrequency": "2s"}
    return config


def _kube_proxy(rig: Rig, node: Node) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(credentials.kubeconfig(rig, "system:kube-proxy"))},
        "hostnameOverride": node.name,
        "mode": "iptables",
        "clusterCIDR": PODS,
        # These sysctls are the machine's and cannot be written from a network namespace.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
            "udpTimeout": "0s",
            "udpStreamTimeout": "0s",
        },
    }
