"""What `orch doctor` thinks of what Jobs need: nodes with GPUs, a volume, priorities, a queue. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.client.findings import Finding, Seen, missing, ok, unseen
from orchestrator.profile import Profile, Toleration

GPU = "nvidia.com/gpu"
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Node:
    """What of a node decides whether Jobs run there."""

    name: str
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Node:
        """From a v1 Node."""
        gpus = str(value.get("status", {}).get("allocatable", {}).get(GPU, "0"))
        return cls(
            name=value["metadata"]["name"],
            gpus=int(gpus) if gpus.isdecimal() else 0,
            labels=value["metadata"].get("labels") or {},
            taints=tuple(value.get("spec", {}).get("taints") or ()),
        )


def gpus(lab: Profile, seen: Seen) -> Iterator[Finding]:
    """GPUs by the profile's types, and what keeps Jobs from them; `seen` holds Nodes."""
    if seen.denied:
        yield unseen("gpus", "nodes", seen)
        return
    nodes: Sequence[Node] = seen.value or []
    offering = [node for node in nodes if node.gpus]
    if not offering:
        yield Finding(
            "gpus",
            "unknown",
            f"none of {len(nodes)} nodes offers {GPU} now, as where pools scale from zero",
            "elsewhere: install NVIDIA's device plugin",
        )
        return
    yield from _types(lab, offering)
    yield from _open(lab, offering)


def _types(lab: Profile, nodes: Sequence[Node]) -> Iterator[Finding]:
    types = {value: kind for kind, values in lab.gpuTypes.items() for value in values}
    found: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    unlabelled = [node.name for node in nodes if lab.gpuTypeLabel not in node.labels]
    for node in nodes:
        value = node.labels.get(lab.gpuTypeLabel)
        if value is not None:
            (found if value in types else unknown)[types.get(value, value)] += node.gpus
    if found:
        yield ok("gpus", ", ".join(f"{count} × {kind}" for kind, count in sorted(found.items())))
    if unknown:
        yield missing(
            "gpu-types",
            "gpuTypes in the profile lacks "
            + ", ".join(f"{v} ({n} GPUs)" for v, n in sorted(unknown.items())),
            'add them in orch.toml, such as: H100 = ["' + next(iter(sorted(unknown))) + '"]',
        )
    if unlabelled:
        yield missing(
            "gpu-types",
            f"{_names(unlabelled)} lack the label {lab.gpuTypeLabel}: no gpuType finds them",
            "install NVIDIA's GPU feature discovery, or set gpuTypeLabel in orch.toml",
        )


def _open(lab: Profile, nodes: Sequence[Node]) -> Iterator[Finding]:
    closed = {
        node.name: taint for node in nodes for taint in node.taints if not tolerated(taint, lab.tolerations)
    }
    elsewhere = [
        node.name
        for node in nodes
        if any(node.labels.get(key) != value for key, value in lab.nodeSelector.items())
    ]
    if closed:
        taint = next(iter(closed.values()))
        yield missing(
            "gpu-nodes",
            f"Jobs do not tolerate the taint {_taint(taint)} of {_names(list(closed))}",
            "add it to tolerations in orch.toml, if Jobs are meant to run there",
        )
    if len(elsewhere) == len(nodes):
        wanted = ", ".join(f"{key}={value}" for key, value in lab.nodeSelector.items())
        yield missing("gpu-nodes", f"no GPU node has {wanted}", "correct nodeSelector in orch.toml")
    if not closed and len(elsewhere) < len(nodes):
        yield ok("gpu-nodes", f"{len(nodes) - len(elsewhere)} of {len(nodes)} GPU nodes are open to Jobs")


def tolerated(taint: Mapping[str, str], tolerations: Sequence[Toleration]) -> bool:
    """Whether a pod with these tolerations may start on a node with this taint."""
    if taint.get("effect") == "PreferNoSchedule":
        return True
    return any(
        one.effect in (None, taint.get("effect"))
        and one.key in (None, taint["key"])
        and (one.operator == "Exists" or (one.value or "") == taint.get("value", ""))
        for one in tolerations
    )


def _taint(taint: Mapping[str, str]) -> str:
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint.get('effect', '')}"


def _names(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more nodes" if more > 0 else "")


def volume(name: str, seen: Seen, storage_class: Seen, nodes: Seen) -> Iterator[Finding]:
    """Whether the claim has a volume that all nodes may write to; `storage_class` is the one it asks for."""
    if seen.absent:
        yield missing("volume", f"there is no claim {name}", "run `orch install --storage-class …`")
        return
    if seen.denied:
        yield unseen("volume", f"claim {name}", seen)
        return
    spec, phase = seen.value["spec"], seen.value.get("status", {}).get("phase")
    yield _access(name, spec.get("accessModes") or [], nodes)
    asked = spec.get("storageClassName")
    if phase == "Bound":
        size = seen.value["status"].get("capacity", {}).get("storage", "?")
        yield ok("volume", f"claim {name} is bound, {size}{f' of {asked}' if asked else ''}")
    elif phase == "Pending" and storage_class.value and _waits(storage_class.value):
        yield ok("volume", f"claim {name} waits for the first Job, as its class {asked} does")
    else:
        yield missing(
            "volume",
            f"claim {name} is {phase or 'not seen yet'}{_why(asked, storage_class)}",
            f"see kubectl describe pvc {name}; to use another class, delete it and run "
            "`orch install --storage-class …`",
        )


def _access(name: str, modes: Sequence[str], nodes: Seen) -> Finding:
    if "ReadWriteMany" in modes:
        return ok("volume-access", f"claim {name} is ReadWriteMany")
    if nodes.value is not None and len(nodes.value) == 1:
        return ok("volume-access", f"claim {name} is {', '.join(modes)}: enough for the only node")
    return missing(
        "volume-access",
        f"claim {name} is {', '.join(modes)}: the first run pins all others to its node",
        "use a storage class with ReadWriteMany",
    )


def _waits(storage_class: Mapping[str, Any]) -> bool:
    return storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"


def _why(asked: str | None, storage_class: Seen) -> str:
    if storage_class.absent:
        return f": there is no storage class {asked}" if asked else ": there is no default storage class"
    return ""


def priorities(lab: Profile, seen: Mapping[str, Seen]) -> Iterator[Finding]:
    """Whether the PriorityClasses of the profile exist; `seen` by name."""
    denied = next((one for one in seen.values() if one.denied), None)
    if denied:
        yield unseen("priorities", "PriorityClasses", denied)
        return
    lacking = [name for name in lab.priorityClasses.values() if seen[name].absent]
    if lacking:
        yield missing(
            "priorities",
            f"there is no PriorityClass {', '.join(lacking)}: Jobs that name it get no pod",
            "run `orch install --crd-only` as the cluster's admin, or correct priorityClasses in orch.toml",
        )
    else:
        yield ok("priorities", f"PriorityClasses {', '.join(lab.priorityClasses.values())} exist")


def queue(name: str, served: bool, seen: Seen) -> Iterator[Finding]:
    """Whether Kueue is there, and the LocalQueue that sweeps would name."""
    if not served:
        yield missing("queue", "the cluster has no Kueue", "install it, or leave scheduling.queue out")
    elif seen.denied:
        yield unseen("queue", f"LocalQueue {name}", seen)
    elif seen.absent:
        yield missing("queue", f"there is no LocalQueue {name}", "see manifests/overlays/kueue/queues")
    else:
        conditions = {one["type"]: one for one in seen.value.get("status", {}).get("conditions") or []}
        active = conditions.get("Active", {})
        if active.get("status") == "False":
            why = active.get("message", "")
            yield missing("queue", f"LocalQueue {name} is not active: {why}", "see its ClusterQueue")
        else:
            yield ok("queue", f"LocalQueue {name} leads to {seen.value['spec'].get('clusterQueue')}")
