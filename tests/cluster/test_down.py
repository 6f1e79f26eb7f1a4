"""`down` leaves the machine as it was, however far `up` came and whoever died since."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.conftest import require_rig
from tests.cluster.rig import controlplane, lifecycle, node, processes
from tests.cluster.rig.cgroups import hierarchies
from tests.cluster.rig.settings import TOOLS_IMAGE, Options, Rig, RigError

pytestmark = pytest.mark.cluster

WATCHED_FOLDERS = (
    *("/run/netns", "/run/containerd", "/run/runc", "/run/xtables.lock", "/etc/cni", "/opt/cni"),
    *("/var/lib/cni", "/var/lib/kubelet", "/var/lib/containerd", "/var/log/pods", "/var/log/containers"),
)
"""Default places of the programs of a node."""
WATCHED_SETTINGS = (
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_max",
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A second cluster, beside the one that may be up."""
    require_rig()
    rig = Rig(f"passing-{os.getpid()}", tmp_path / "home")
    try:
        yield rig
    finally:
        lifecycle.down(rig)


@pytest.fixture
def before(rig: Rig) -> dict[str, set[str]]:
    return traces(rig)


def traces(rig: Rig) -> dict[str, set[str]]:
    """What a cluster could leave on the machine, by kind."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {
        "files": {
            str(path)
            for folder in WATCHED_FOLDERS
            for path in [Path(folder), *Path(folder).rglob("*")]
            if path.exists()
        },
        # Who builds images on this machine meanwhile mounts too, elsewhere.
        "mounts": {mount for mount in mounts if mount.startswith(("/run", "/proc", "/sys", str(rig.home)))},
        "cgroups": {str(path) for hierarchy in hierarchies() for path in hierarchy.glob("passing-*")},
        "links": set(os.listdir("/sys/class/net")),
        "settings": {f"{name} {value}" for name in WATCHED_SETTINGS if (value := setting(name))},
        "home": {str(path) for path in rig.home.parent.iterdir()},
    }


def left_behind(rig: Rig, before: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is there and was not, or was there and is not."""
    return {kind: changed for kind, found in traces(rig).items() if (changed := found ^ before[kind])}


def setting(name: str) -> str:
    try:
        return (Path("/proc/sys") / name).read_text().strip()
    except FileNotFoundError:
        return ""


def namespaces(pid: int | str) -> set[str]:
    found = set()
    for kind in ("net", "mnt"):
        with suppress(OSError):  # it ended while we looked
            found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return found


def inhabitants(wanted: set[str]) -> list[str]:
    """Pids of processes in any of these namespaces."""
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and namespaces(pid) & wanted]


def own_namespaces(rig: Rig) -> set[str]:
    everyone = set().union(*(namespaces(process.pid) for process in processes.recorded(rig)))
    return everyone - namespaces("self")


def run_a_pod(rig: Rig) -> None:
    cluster = Cluster(rig)
    cluster.kubectl("run", "sleeper", f"--image={TOOLS_IMAGE}", "--", "sleep", "infinity")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s")


@pytest.mark.parametrize("killed", [(), ("etcd", *controlplane.NAMES), ("orch-node-1.containerd",)])
def test_a_cluster_with_a_running_pod_goes_without_a_trace(
    rig: Rig, before: dict[str, set[str]], killed: tuple[str, ...]
) -> None:
    lifecycle.up(rig, Options(nodes=1))
    run_a_pod(rig)
    own = own_namespaces(rig)
    assert len(own) == 3, "a network for the control plane, network and mounts for the node"
    assert len(inhabitants(own)) > len(list(processes.recorded(rig))), "shims and containers live there too"
    for name in killed:
        processes.stop(rig, name, signal.SIGKILL)

    lifecycle.down(rig)

    assert left_behind(rig, before) == {}
    assert inhabitants(own) == []
    lifecycle.down(rig)  # again: nothing to do


def test_a_start_that_failed_halfway_goes_without_a_trace(
    rig: Rig, before: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "CONTAINERD", "version = 'not a containerd configuration'\n")
    with pytest.raises(RigError, match=r"orch-node-1.containerd: its socket: it ended; the end of "):
        lifecycle.up(rig, Options(nodes=1))
    own = own_namespaces(rig)
    assert inhabitants(own)

    lifecycle.down(rig)

    assert left_behind(rig, before) == {}
    assert inhabitants(own) == []


def test_a_folder_that_is_no_cluster_is_left_alone(rig: Rig) -> None:
    rig.home.mkdir()
    (rig.home / "thesis.txt").write_text("years of work")
    with pytest.raises(RigError, match="not a cluster's folder"):
        lifecycle.down(rig)
    assert (rig.home / "thesis.txt").exists()
    (rig.home / "thesis.txt").unlink()
    rig.home.rmdir()


def test_a_program_that_reuses_a_pid_is_not_ended(rig: Rig) -> None:
    rig.create(Options(nodes=0))
    held = processes.start(rig, "network", ["sleep", "infinity"])
    stranger = processes.Process(held.name, held.pid, held.started + 1, held.argv)
    assert held.alive()
    assert not stranger.alive()
