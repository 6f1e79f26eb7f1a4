"""What is told outside the cluster when a sweep ends or halts: PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.controller.owed import Owed
from orchestrator.sweep.naming import ANNOTATION_SUBMITTER

TEXT_LIMIT = 3000
"""Characters of the text: chat programs cut longer ones."""


def notice(stored: Mapping[str, Any], owed: Owed) -> dict[str, Any]:
    """The JSON value that is posted: `text` for chat programs, and its parts for programs.

    `stored` is the Sweep object that the notice is about, with its status.
    """
    metadata, status = stored["metadata"], stored.get("status") or {}
    name, place = str(metadata["name"]), metadata.get("namespace")
    where = f"{place}/{name}" if place else name
    best, hours = status.get("best"), float(status.get("gpuHours", 0.0))
    said = f"; best {best['run']}, KL {best['kl']:.4f}" if best else ""
    text = f"{where} {owed.moment}: {owed.message}{said}; {hours:.1f} GPU-hours"
    return {
        "text": text[:TEXT_LIMIT],
        "v": 1,
        "key": key(metadata, owed),
        "event": owed.moment,
        "sweep": name,
        "namespace": place,
        "submitted_by": (metadata.get("annotations") or {}).get(ANNOTATION_SUBMITTER),
        "reason": owed.reason,
        "message": owed.message[:TEXT_LIMIT],
        "counts": dict(status.get("counts") or {}),
        "best": {"klStderr": None, **best} if best else None,
        "gpu_hours": hours,
    }


def key(metadata: Mapping[str, Any], owed: Owed) -> str:
    """The same however often the notice is sent.

    The object's uid (its name where it has none), the moment, its reason, and since when it is owed.
    """
    return ":".join((metadata.get("uid") or metadata["name"], *owed.mark))
