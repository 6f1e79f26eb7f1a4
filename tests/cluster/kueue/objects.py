"""Kueue's objects, and what it takes from Jobs and puts into them: PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster.kube.paths import Resource
from tests.cluster.rig.settings import GPU_RESOURCE

GROUP, VERSION = "kueue.x-k8s.io", "v1beta1"
QUEUE_NAME, JOB_UID = f"{GROUP}/queue-name", f"{GROUP}/job-uid"
STOPPING = f"{GROUP}/stopping"
"""An annotation that stays until all three patches of an eviction are made."""
QUEUES = Resource(f"apis/{GROUP}/{VERSION}", "localqueues")
WORKLOADS = Resource(f"apis/{GROUP}/{VERSION}", "workloads")
MANAGED_LABELS = (
    "job-name",
    "controller-uid",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/controller-uid",
)
"""The Job controller's own labels of a template: no part of a Workload."""
Object = dict[str, Any]


@dataclass(frozen=True)
class Flavor:
    """A ResourceFlavor: a kind of nodes."""

    name: str = "default-flavor"
    node_labels: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()


def definitions() -> list[Object]:
    """CustomResourceDefinitions of what is used of Kueue's API; their fields are not checked."""
    return [_definition("LocalQueue", QUEUES.plural), _definition("Workload", WORKLOADS.plural)]


def local_queue(name: str) -> Object:
    """A LocalQueue of that name."""
    meta, spec = {"name": name}, {"clusterQueue": "cluster-queue"}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "LocalQueue", "metadata": meta, "spec": spec}


def _definition(kind: str, plural: str) -> Object:
    whole = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": whole},
        "subresources": {"status": {}},
    }
    names = {"kind": kind, "plural": plural, "singular": kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def placed_meta(job: Object) -> Object:
    meta = job["spec"]["template"]["metadata"]
    labels = {key: one for key, one in meta.get("labels", {}).items() if key not in MANAGED_LABELS}
    return {"labels": labels, "annotations": meta.get("annotations", {})}


def placed_spec(job: Object) -> Object:
    spec = job["spec"]["template"]["spec"]
    return {"nodeSelector": spec.get("nodeSelector", {}), "tolerations": spec.get("tolerations", [])}


def replaced(now: Mapping[str, str], then: Mapping[str, str]) -> dict[str, str | None]:
    """A merge patch that makes `then` of `now`."""
    return {**dict.fromkeys(now.keys() - then.keys()), **then}


def finished(job: Object) -> bool:
    ends = [one for one in job["status"].get("conditions", []) if one["type"] in ("Complete", "Failed")]
    return any(one["status"] == "True" for one in ends)


def gpus_of(job: Object) -> int:
    containers = job["spec"]["template"]["spec"]["containers"]
    return sum(int(one["resources"].get("limits", {}).get(GPU_RESOURCE, 0)) for one in containers)


def condition_of(workload: Object, kind: str) -> Object | None:
    told = workload.get("status", {}).get("conditions", [])
    return next((one for one in told if one["type"] == kind), None)


def holds(workload: Object, kind: str) -> bool:
    return (condition_of(workload, kind) or {}).get("status") == "True"


def reserved(workload: Object) -> int:
    """GPUs of the quota that a Workload holds."""
    given = workload.get("status", {}).get("admission")
    if not given or holds(workload, "Finished"):
        return 0
    return sum(int(one["resourceUsage"][GPU_RESOURCE]) for one in given["podSetAssignments"])
