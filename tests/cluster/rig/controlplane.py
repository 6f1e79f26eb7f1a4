"""etcd, API server, controller manager and scheduler."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cluster.rig import credentials, processes
from tests.cluster.rig.network import inside_control
from tests.cluster.rig.settings import CONTROL_ADDRESS, SERVICES, Rig

NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
SCALE_FLAGS = ["--kube-api-qps=200", "--kube-api-burst=400", "--concurrent-job-syncs=20"]


def start(rig: Rig, binaries: Path) -> None:
    """Start all four and return when the API server is ready."""
    inside = inside_control(rig)
    processes.start(rig, "etcd", [*inside, str(binaries / "etcd"), *_etcd(rig)])
    processes.start(rig, "kube-apiserver", [*inside, str(binaries / "kube-apiserver"), *_api_server(rig)])
    wait_for_api(rig, binaries)
    for name, flags in (
        ("kube-controller-manager", _controller_manager(rig)),
        ("kube-scheduler", ["--leader-elect=false", _kubeconfig(rig, "system:kube-scheduler")]),
    ):
        processes.start(rig, name, [*inside, str(binaries / name), *flags])


def wait_for_api(rig: Rig, binaries: Path, seconds: float = 60) -> None:
    """Return when the API server says that it is ready."""
    ready = [*inside_control(rig), str(binaries / "kubectl"), "get", "--raw=/readyz"]
    ready += [f"--kubeconfig={rig.kubeconfig}"]

    def is_ready() -> bool:
        return subprocess.run(ready, capture_output=True, check=False).returncode == 0

    processes.wait_until(rig, "kube-apiserver", is_ready, seconds, "its /readyz")


def _etcd(rig: Rig) -> list[str]:
    return [
        f"--data-dir={rig.home / 'etcd'}",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _api_server(rig: Rig) -> list[str]:
    pki = rig.home / "pki"
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={CONTROL_ADDRESS}",
        f"--service-cluster-ip-range={SERVICES}",
        f"--tls-cert-file={pki / 'server.crt'}",
        f"--tls-private-key-file={pki / 'server.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--token-auth-file={pki / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki / 'accounts.key'}",
        f"--service-account-signing-key-file={pki / 'accounts.key'}",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def _controller_manager(rig: Rig) -> list[str]:
    pki, options = rig.home / "pki", rig.options
    flags = [
        _kubeconfig(rig, "system:kube-controller-manager"),
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki / 'accounts.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
    ]
    if options.scale:
        flags += SCALE_FLAGS
    if options.node_grace is not None:
        flags.append(f"--node-monitor-grace-period={options.node_grace}s")
    return flags


def _kubeconfig(rig: Rig, user: str) -> str:
    return f"--kubeconfig={credentials.kubeconfig(rig, user)}"
