"""`orch uninstall`: what would go, and what would go with it; then removing it, the controller first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from orchestrator.client.bundle import Object, Options, bundle, cluster_scoped, label, path
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import Forbidden, NotFound
from orchestrator.cluster.kube.paths import CONFIG_MAPS, JOBS, SWEEPS, Resource
from orchestrator.sweep.naming import LABEL_MANAGED_BY, LABEL_RECORD, MANAGED_BY

JOBS_OF_ORCH = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
RECORDS = f"{JOBS_OF_ORCH},{LABEL_RECORD}"
NEEDED_BY_JOBS = {
    "ServiceAccount orch-trainer",
    "NetworkPolicy orch-default-deny",
    "NetworkPolicy orch-dns",
    "NetworkPolicy orch-fetch",
}


@dataclass(frozen=True)
class Kept:
    """What stays, and why."""

    label: str
    why: str


@dataclass(frozen=True)
class Removal:
    """What goes: objects in the order of their removal, and how many Sweeps, Jobs and records with them."""

    namespace: str
    objects: tuple[Object, ...]
    kept: tuple[Kept, ...]
    sweeps: int = 0
    jobs: int = 0
    records: int = 0


def plan(api: Api, *, keep_crd: bool = False, delete_volume: bool = False) -> Removal:
    """What removing orch from the namespace of `api` takes away; writes nothing.

    With `keep_crd` Sweeps, their Jobs and records stay, and all that is shared with other namespaces.
    """
    here = api.namespace
    elsewhere = None if keep_crd else _namespaces_with_sweeps(api)
    shared = why_shared(keep_crd, elsewhere, here)
    goes, kept = [], [Kept(f"Namespace {here}", f"`kubectl delete namespace {here}` removes what is left")]
    # The controller first: it would act on what vanishes. Its account and rights last.
    for one in sorted(bundle(Options(namespace=here)), key=lambda one: one["kind"] != "Deployment"):
        why = _why_kept(one, shared, keep_crd, delete_volume)
        if one["kind"] == "Namespace" or not _exists(api, one):
            continue
        if why:
            kept.append(Kept(label(one), why))
        else:
            goes.append(one)
    if keep_crd:
        return Removal(here, tuple(goes), tuple(kept))
    return Removal(
        here,
        tuple(goes),
        tuple(kept),
        sweeps=_count(api, SWEEPS),
        jobs=_count(api, JOBS, JOBS_OF_ORCH),
        records=_count(api, CONFIG_MAPS, RECORDS),
    )


def remove(api: Api, removal: Removal, *, keep_crd: bool = False) -> Iterator[str]:
    """Remove it; what went, in words. Pods get their time to checkpoint."""
    controller = [one for one in removal.objects if one["kind"] == "Deployment"]
    for one in controller:
        api.delete(path(one))
        yield label(one)
    if not keep_crd:
        # Before their definition: without it the garbage collector may not find out whose the Jobs were.
        for resource, selector, what in (
            (SWEEPS, "", f"{removal.sweeps} Sweeps"),
            (JOBS, JOBS_OF_ORCH, f"{removal.jobs} Jobs"),
            (CONFIG_MAPS, RECORDS, f"{removal.records} records"),
        ):
            query = f"?{urlencode({'labelSelector': selector})}" if selector else ""
            api.delete(resource.path(removal.namespace) + query)
            yield what
    for one in removal.objects[len(controller) :]:
        api.delete(path(one))
        yield label(one)


def why_shared(keep_crd: bool, elsewhere: set[str] | None, here: str) -> str:
    """Why what namespaces share stays, empty when it goes; `elsewhere` are those with Sweeps, if seen."""
    if keep_crd:
        return "--keep-crd"
    if elsewhere is None:
        return "you may not see whether other namespaces have Sweeps"
    others = sorted(elsewhere - {here})
    return f"Sweeps in {', '.join(others)} need it" if others else ""


def _why_kept(one: Object, shared: str, keep_crd: bool, delete_volume: bool) -> str:
    if cluster_scoped(one):
        return shared
    if keep_crd and label(one) in NEEDED_BY_JOBS:
        return "Jobs that still run need it"
    if one["kind"] == "PersistentVolumeClaim" and not delete_volume:
        return "models, runs and results; --delete-volume removes them"
    return ""


def _namespaces_with_sweeps(api: Api) -> set[str] | None:
    """None when this user may not see them."""
    try:
        return {str(one["metadata"]["namespace"]) for one in _items(api, SWEEPS.path(None))}
    except Forbidden:
        return None


def _count(api: Api, resource: Resource, selector: str = "") -> int:
    return sum(1 for _ in _items(api, resource.path(api.namespace), selector))


def _items(api: Api, path: str, selector: str = "") -> Iterator[dict[str, Any]]:
    try:
        for page in api.pages(path, labelSelector=selector):
            yield from json.loads(page)["items"]
    except NotFound:
        return


def _exists(api: Api, one: Object) -> bool:
    """Whether it is there, or might be."""
    try:
        api.get(path(one))
    except NotFound:
        return False
    except Forbidden:
        return True
    return True
