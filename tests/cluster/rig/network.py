"""Namespaces: one network for the control plane (and the tests), network and mounts for each node."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cluster.rig import processes
from tests.cluster.rig.settings import CONTROL_ADDRESS, Node, Rig, RigError
from tests.cluster.rig.shell import run

CONTROL = "network"
"""The process that holds the control plane's network namespace open."""
BRIDGE = "nodes"

PRIVATE_FOLDERS = ("run", "var/lib", "var/log")
"""Folders each node has of its own, so that no default path of any program reaches the machine's."""

SYSCTLS = {"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
"""What the kubelet wants, and would otherwise write machine-wide: files laid over /proc/sys say so."""

HOLD = "exec sleep infinity"
FORWARD = ("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def holder(node: Node) -> str:
    """Name of the process that holds a node's namespaces open."""
    return f"{node.name}.holder"


def inside_control(rig: Rig) -> list[str]:
    """The words that run a command in the network of the control plane."""
    return ["nsenter", f"--net={rig.netns}", "--"]


def inside_node(rig: Rig, node: Node) -> list[str]:
    """The words that run a command in a node's network and mounts."""
    return ["nsenter", f"--target={_alive(rig, holder(node))}", "--net", "--mount", "--"]


def create_control(rig: Rig) -> None:
    """The control plane's network: a bridge, to which the nodes are joined by a veth pair each."""
    held = processes.start(rig, CONTROL, ["unshare", "--net", "--", "sh", "-c", HOLD])
    _wait_for_namespace(held.pid, "net", rig, CONTROL)
    rig.netns.unlink(missing_ok=True)
    rig.netns.symlink_to(f"/proc/{held.pid}/ns/net")
    ip = [*inside_control(rig), "ip"]
    run([*ip, "link", "set", "lo", "up"])
    run([*ip, "link", "add", BRIDGE, "type", "bridge"])
    run([*ip, "address", "add", f"{CONTROL_ADDRESS}/24", "dev", BRIDGE])
    run([*ip, "link", "set", BRIDGE, "up"])
    run([*inside_control(rig), *FORWARD])  # what leads nowhere is refused at once


def create_node(rig: Rig, node: Node) -> None:
    """A node's namespaces, its address, and the routes to and from its pods."""
    script = [f"mount --bind {node.folder / folder} /{folder}" for folder in PRIVATE_FOLDERS]
    for folder in PRIVATE_FOLDERS:
        (node.folder / folder).mkdir(parents=True, exist_ok=True)
    for name, value in SYSCTLS.items():
        source = node.folder / "sysctl" / name.replace("/", ".")
        source.parent.mkdir(exist_ok=True)
        source.write_text(value + "\n")
        script.append(f"mount --bind {source} /proc/sys/{name}")
    (node.folder / "resolv.conf").write_text("")  # no name server: a lookup fails at once
    script.append(f"mount --bind {node.folder / 'resolv.conf'} /etc/resolv.conf")
    # Shared inside (a kubelet's mounts must reach its containers), private to the outside.
    script += ["mount --make-rshared /", f"touch {node.folder / 'mounted'}", HOLD]
    (node.folder / "mounted").unlink(missing_ok=True)
    unshare = ["unshare", "--net", "--mount", "--propagation=private", "--", "sh", "-ec"]
    held = processes.start(rig, holder(node), [*unshare, " && ".join(script)])
    processes.wait_until(rig, held.name, (node.folder / "mounted").exists, 10, "its mounts")
    _join(rig, node, held.pid)


def _join(rig: Rig, node: Node, pid: int) -> None:
    control, inside = [*inside_control(rig), "ip"], [*inside_node(rig, node), "ip"]
    port = f"node-{node.number}"
    run([*control, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(pid)])
    run([*control, "link", "set", port, "master", BRIDGE, "up"])
    run([*control, "route", "add", node.pods, "via", node.address])
    run([*inside, "link", "set", "lo", "up"])
    run([*inside, "address", "add", f"{node.address}/24", "dev", "eth0"])
    run([*inside, "link", "set", "eth0", "up"])
    run([*inside, "route", "add", "default", "via", CONTROL_ADDRESS])
    run([*inside_node(rig, node), *FORWARD])
    for other in rig.nodes:
        if other.number < node.number:
            run([*inside, "route", "add", other.pods, "via", other.address])
            run([*inside_node(rig, other), "ip", "route", "add", node.pods, "via", node.address])


def _alive(rig: Rig, name: str) -> int:
    process = processes.find(rig, name)
    if process is None or not process.alive():
        raise RigError(f"{name}: the namespaces are not held; `make cluster-down`, then `make cluster-up`")
    return process.pid


def _wait_for_namespace(pid: int, kind: str, rig: Rig, name: str) -> None:
    own = os.readlink(f"/proc/self/ns/{kind}")
    processes.wait_until(
        rig, name, lambda: os.readlink(Path(f"/proc/{pid}/ns/{kind}")) != own, 10, "a namespace"
    )
