"""What is told outside the cluster when a sweep ends or halts: PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.base import Event
from orchestrator.controller.status import SweepStatus
from orchestrator.sweep.naming import ANNOTATION_SUBMITTER

TEXT_LIMIT = 3000
"""Characters of the text: chat programs cut longer ones."""


def notice(stored: Mapping[str, Any], event: Event, status: SweepStatus) -> dict[str, Any]:
    """The JSON value that is posted: `text` for chat programs, and its parts for programs.

    `stored` is the Sweep object that the event is about.
    """
    metadata = stored["metadata"]
    name, place = str(metadata["name"]), metadata.get("namespace")
    where = f"{place}/{name}" if place else name
    best = f"; best {status.best.run}, KL {status.best.kl:.4f}" if status.best else ""
    text = f"{where} {event.moment}: {event.message}{best}; {status.gpuHours:.1f} GPU-hours"
    return {
        "text": text[:TEXT_LIMIT],
        "v": 1,
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
