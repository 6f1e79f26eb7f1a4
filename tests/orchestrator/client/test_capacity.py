"""What `orch doctor` makes of nodes, GPUs, volumes, priorities and queues."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.client import capacity
from orchestrator.client.capacity import Node
from orchestrator.client.findings import Seen
from orchestrator.profile import Profile, Toleration

LABEL = "nvidia.com/gpu.product"
H100 = "NVIDIA-H100-80GB-HBM3"
DENIED = Seen(denied="nodes is forbidden")
LAB = Profile()
TAINT = {"key": "nvidia.com/gpu", "effect": "NoSchedule", "value": "present"}
OTHER = {"key": "team", "effect": "NoSchedule", "value": "vision"}


def _node(name: str = "n1", gpus: int = 8, product: str | None = H100, *taints: dict[str, str]) -> Node:
    return Node(name, gpus, {LABEL: product} if product else {}, taints)


def _told(found: Any) -> list[tuple[str, str]]:
    listed = list(found)
    assert [one for one in listed if one.state == "missing" and not one.remedy] == []
    return [(one.check, one.state) for one in listed]


def test_a_node_is_read_as_the_api_server_tells_it():
    value = {
        "metadata": {"name": "n1", "labels": {LABEL: H100}},
        "spec": {"taints": [TAINT]},
        "status": {"allocatable": {"nvidia.com/gpu": "8", "cpu": "96"}, "capacity": {"nvidia.com/gpu": "9"}},
    }
    assert Node.read(value) == _node("n1", 8, H100, TAINT)
    assert Node.read({"metadata": {"name": "n2"}}) == Node("n2")


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([_node()], [("gpus", "ok"), ("gpu-nodes", "ok")]),
        ([_node("n1", 8, H100, TAINT)], [("gpus", "ok"), ("gpu-nodes", "ok")]),
        ([_node("n1", 8, H100, OTHER)], [("gpus", "ok"), ("gpu-nodes", "missing")]),
        ([_node(), _node("n2", 8, H100, OTHER)], [("gpus", "ok"), ("gpu-nodes", "missing")]),
        ([_node("n1", 4, "NVIDIA-X9")], [("gpu-types", "missing"), ("gpu-nodes", "ok")]),
        ([_node("n1", 4, None)], [("gpu-types", "missing"), ("gpu-nodes", "ok")]),
        ([Node("cpu")], [("gpus", "unknown")]),
        ([], [("gpus", "unknown")]),
    ],
    ids=["fine", "tolerated", "closed", "one closed", "unknown type", "no label", "no GPUs", "no nodes"],
)
def test_gpus(nodes: list[Node], told: list[tuple[str, str]]):
    assert _told(capacity.gpus(LAB, Seen(nodes))) == told


def test_gpus_are_counted_by_the_profile_s_types():
    nodes = [_node(), _node("n2"), _node("n3", 4, "NVIDIA-H100-NVL"), _node("n4", 2, "NVIDIA-L4")]
    first = next(capacity.gpus(LAB, Seen(nodes)))
    assert first.message == "20 × H100, 2 × L4"


def test_nodes_that_may_not_be_seen():
    assert _told(capacity.gpus(LAB, DENIED)) == [("gpus", "unknown")]


def test_a_selector_that_no_gpu_node_meets():
    lab = Profile(nodeSelector={"pool": "training"})
    assert _told(capacity.gpus(lab, Seen([_node()])))[1] == ("gpu-nodes", "missing")
    there = Node("n2", 8, {LABEL: H100, "pool": "training"})
    (_, last) = capacity.gpus(lab, Seen([_node(), there]))
    assert last.message == "1 of 2 GPU nodes are open to Jobs"


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        (Toleration(key="team", operator="Exists"), True),
        (Toleration(key="team", operator="Exists", effect="NoSchedule"), True),
        (Toleration(key="team", operator="Exists", effect="NoExecute"), False),
        (Toleration(key="team", value="vision"), True),
        (Toleration(key="team", value="text"), False),
        (Toleration(key="team"), False),
        (Toleration(operator="Exists"), True),
        (Toleration(key="other", operator="Exists"), False),
    ],
)
def test_tolerations_are_the_scheduler_s(toleration: Toleration, tolerated: bool):
    assert capacity.tolerated(OTHER, [toleration]) is tolerated
    assert capacity.tolerated({**OTHER, "effect": "PreferNoSchedule"}, [])


def _claim(phase: str | None, *modes: str, storage_class: str | None = "nfs") -> Seen:
    spec: dict[str, Any] = {"accessModes": list(modes or ["ReadWriteMany"])}
    if storage_class:
        spec["storageClassName"] = storage_class
    status = {"phase": phase, "capacity": {"storage": "500Gi"}} if phase else {}
    return Seen({"spec": spec, "status": status})


NFS = Seen({"metadata": {"name": "nfs"}, "volumeBindingMode": "Immediate"})
LOCAL = Seen({"metadata": {"name": "local"}, "volumeBindingMode": "WaitForFirstConsumer"})
TWO = Seen([Node("a"), Node("b")])


@pytest.mark.parametrize(
    ("claim", "storage_class", "nodes", "states", "words"),
    [
        (_claim("Bound"), NFS, TWO, ["ok", "ok"], "bound, 500Gi of nfs"),
        (_claim("Bound"), DENIED, DENIED, ["ok", "ok"], "bound"),
        (_claim("Bound", "ReadWriteOnce"), NFS, TWO, ["missing", "ok"], "bound"),
        (_claim("Bound", "ReadWriteOnce"), NFS, DENIED, ["missing", "ok"], "bound"),
        (_claim("Bound", "ReadWriteOnce"), LOCAL, Seen([Node("a")]), ["ok", "ok"], "bound"),
        (_claim("Pending"), LOCAL, TWO, ["ok", "ok"], "waits for the first Job"),
        (_claim("Pending"), NFS, TWO, ["ok", "missing"], "is Pending"),
        (_claim("Pending"), Seen(), TWO, ["ok", "missing"], "no storage class nfs"),
        (_claim("Pending", storage_class=None), Seen(), TWO, ["ok", "missing"], "no default storage class"),
        (_claim("Lost"), NFS, TWO, ["ok", "missing"], "is Lost"),
        (_claim(None), NFS, TWO, ["ok", "missing"], "not seen yet"),
        (Seen(), Seen(), TWO, ["missing"], "no claim orch"),
        (DENIED, Seen(), TWO, ["unknown"], "cannot be looked at"),
    ],
)
def test_volume(claim: Seen, storage_class: Seen, nodes: Seen, states: list[str], words: str):
    found = list(capacity.volume("orch", claim, storage_class, nodes))
    assert [one.state for one in found] == states
    assert words in found[-1].message


def test_priorities():
    there = {name: Seen({}) for name in LAB.priorityClasses.values()}
    assert _told(capacity.priorities(LAB, there)) == [("priorities", "ok")]
    (one,) = capacity.priorities(LAB, {**there, "orch-high": Seen()})
    assert one.message.startswith("there is no PriorityClass orch-high")
    assert _told(capacity.priorities(LAB, {**there, "orch-high": DENIED})) == [("priorities", "unknown")]


def _queue(status: str | None) -> Seen:
    conditions = (
        [{"type": "Active", "status": status, "message": "ClusterQueue is inactive"}] if status else []
    )
    return Seen({"spec": {"clusterQueue": "all"}, "status": {"conditions": conditions}})


@pytest.mark.parametrize(
    ("served", "seen", "state"),
    [
        (True, _queue("True"), "ok"),
        (True, _queue(None), "ok"),
        (True, _queue("False"), "missing"),
        (True, Seen(), "missing"),
        (True, DENIED, "unknown"),
        (False, Seen(), "missing"),
    ],
)
def test_queue(served: bool, seen: Seen, state: str):
    assert _told(capacity.queue("gpu", served, seen)) == [("queue", state)]
