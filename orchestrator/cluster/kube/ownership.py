"""Which Jobs are a sweep's, and which pods are theirs.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.cluster.base import ObservedJob
from orchestrator.cluster.kube.decode import KeptJob, KeptPod
from orchestrator.sweep.naming import ANNOTATION_RUN, LABEL_RUN


def joined(jobs: Iterable[KeptJob], pods: Iterable[KeptPod], uid: str | None) -> list[ObservedJob]:
    """The Jobs that the sweep with this uid owns, each with its pods, oldest first.

    A living pod without its Job is shown as a Job that is being deleted: its run must not start again beside
    it. That is so for a Job of the sweep's former uid too.
    """
    by_owner: dict[str, list[KeptPod]] = {}
    for one in pods:
        by_owner.setdefault(one.owner, []).append(one)
    found = []
    for kept in jobs:
        mine = by_owner.pop(kept.uid, [])
        if kept.owner == uid:
            found.append(replace(kept.job, pods=tuple(one.pod for one in mine)))
        elif any(one.living for one in mine):
            by_owner[kept.uid] = mine
    found += map(_ghost, _by_job(left for pods in by_owner.values() for left in pods))
    return sorted(found, key=lambda one: (one.created_at, one.name))


def _by_job(pods: Iterable[KeptPod]) -> list[list[KeptPod]]:
    """The pods of each Job that has a living one: orphans have no owner any more, only their Job's name."""
    groups: dict[tuple[str, str], list[KeptPod]] = {}
    for one in pods:
        groups.setdefault((one.owner, one.job), []).append(one)
    return [group for group in groups.values() if any(one.living for one in group)]


def _ghost(pods: list[KeptPod]) -> ObservedJob:
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
