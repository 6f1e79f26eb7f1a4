"""Which Jobs are a sweep's, and which pods are theirs.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.cluster.base import Created, ObservedJob
from orchestrator.cluster.kube.decode import KeptJob, KeptPod
from orchestrator.sweep.naming import ANNOTATION_RUN, LABEL_RUN, LABEL_SWEEP


def joined(jobs: Iterable[KeptJob], pods: Iterable[KeptPod], uid: str | None) -> list[ObservedJob]:
    """The Jobs that the sweep with this uid owns, each with its pods, oldest first.

    A living pod without its Job is shown as a Job that is being deleted: its run must not start again beside
    it. That is so for a Job of the sweep's former uid too.
    """
    groups: dict[str, list[KeptPod]] = {}
    for one in pods:
        groups.setdefault(one.group, []).append(one)
    known = {kept.uid: kept for kept in jobs}
    found = (joined_one(known.get(one), groups.get(one, []), uid) for one in (known.keys() | groups))
    return sorted(filter(None, found), key=lambda one: (one.created_at, one.name))


def joined_one(kept: KeptJob | None, pods: Sequence[KeptPod], uid: str | None) -> ObservedJob | None:
    """One Job of the sweep with this uid and the pods it owns; None for one that is to be left out."""
    if kept is not None and kept.owner == uid:
        return replace(kept.job, pods=tuple(one.pod for one in pods))
    return _ghost(pods) if any(one.living for one in pods) else None


def _ghost(pods: Sequence[KeptPod]) -> ObservedJob:
    first = pods[0]
    return ObservedJob(
        name=first.job,
        uid=first.owner,
        labels=first.labels,
        annotations={ANNOTATION_RUN: first.labels.get(LABEL_RUN, "")},
        created_at=first.pod.created_at or 0.0,
        deleting=True,
        pods=tuple(one.pod for one in pods),
    )


def whose(there: KeptJob, manifest: Mapping[str, Any]) -> Created:
    """Whether a Job that has our name is ours, goes with a former Sweep of this name, or is another's."""
    ours = next((one["uid"] for one in manifest["metadata"].get("ownerReferences", [])), "")
    if there.owner == ours and not there.job.deleting:
        return Created.EXISTS
    former = there.sweep == manifest["metadata"]["labels"][LABEL_SWEEP] and there.owner
    return Created.GOING if former or there.job.deleting else Created.CONFLICT
