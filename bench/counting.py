"""Requests by what they did to what, from two sides: the controller's own count and the API server's."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

CHANGES = {"POST", "PATCH", "APPLY"}
"""orch never PUTs; the cluster's own controllers do, into the status of the same Jobs."""
DELETIONS = {"DELETE", "DELETECOLLECTION"}

Requests = Counter[tuple[str, str, str]]
"""By (verb, resource with subresource, status)."""


def counted(text: str, metric: str, labels: tuple[str, ...]) -> Counter[Any]:
    """Samples of a counter in Prometheus' text format, summed over all labels but these."""
    found: Counter[Any] = Counter()
    for line in text.splitlines():
        match = re.fullmatch(rf"{metric}{{(.*)}} ([-+.\deE]+)", line)
        if match:
            values = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[1]))
            found[tuple(values.get(label, "") for label in labels)] += int(float(match[2]))
    return found


def not_leases(requests: Requests) -> Requests:
    """Without what keeps the leadership."""
    return Counter({key: count for key, count in requests.items() if key[1] != "leases"})


def written(requests: Requests) -> Requests:
    """Those that wrote or deleted something."""
    return Counter({key: count for key, count in requests.items() if key[0] in CHANGES | DELETIONS})


def made_or_changed(requests: Requests, *resources: str) -> Requests:
    """Those that made or changed one of these; `sweeps` is `sweeps/status` too."""
    return Counter(
        {
            key: count
            for key, count in requests.items()
            if key[0] in CHANGES and key[1].split("/")[0] in resources
        }
    )


def spelled(requests: Requests) -> str:
    """In words: `2 PATCH sweeps/status, 1 POST jobs`; `none`."""
    parts = Counter({f"{verb} {resource}": 0 for verb, resource, _ in requests})
    for (verb, resource, _), count in requests.items():
        parts[f"{verb} {resource}"] += count
    return ", ".join(f"{count} {what}" for what, count in sorted(parts.items())) or "none"
