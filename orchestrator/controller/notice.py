"""What is told outside the cluster when a sweep ends or halts: PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.base import Event
from orchestrator.controller.news import MOMENTS
from orchestrator.controller.status import Condition, SweepStatus
from orchestrator.sweep.naming import ANNOTATION_SUBMITTER

TEXT_LIMIT = 3000
"""Characters of the text: chat programs cut longer ones."""


def notice(stored: Mapping[str, Any], event: Event, status: SweepStatus) -> dict[str, Any]:
    """The JSON value that is posted: `text` for chat programs, and its parts for programs.

    `stored` is the Sweep object that the event is about. `key` is the same however often the notice is sent:
    the object's uid (its name where it has none), the moment, its reason, and since when its condition holds.
    """
    metadata = stored["metadata"]
    name, place = str(metadata["name"]), metadata.get("namespace")
    where = f"{place}/{name}" if place else name
    best = f"; best {status.best.run}, KL {status.best.kl:.4f}" if status.best else ""
    text = f"{where} {event.moment}: {event.message}{best}; {status.gpuHours:.1f} GPU-hours"
    return {
        "text": text[:TEXT_LIMIT],
        "v": 1,
        "key": _key(metadata, event, status),
        "event": event.moment,
        "sweep": name,
        "namespace": place,
        "submitted_by": (metadata.get("annotations") or {}).get(ANNOTATION_SUBMITTER),
        "reason": event.reason,
        "message": event.message[:TEXT_LIMIT],
        "counts": dict(status.counts),
        "best": status.best.model_dump() if status.best else None,
        "gpu_hours": status.gpuHours,
    }


def _key(metadata: Mapping[str, Any], event: Event, status: SweepStatus) -> str:
    since = (one.lastTransitionTime for one in status.conditions if _is_of(one, event))
    return ":".join(
        (metadata.get("uid") or metadata["name"], event.moment, event.reason, next(since, None) or "")
    )


def _is_of(condition: Condition, event: Event) -> bool:
    return condition.status == "True" and MOMENTS.get(condition.type) == event.moment
