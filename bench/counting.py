"""Requests by what they did to what, from two sides: the controller's own count and the API server's."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

WRITES = {"POST", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"}
"""orch never PUTs; the cluster's own controllers do, into the status of the same Jobs."""

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


def writes(requests: Requests, *resources: str) -> int:
    """How many of them wrote one of these (`sweeps` is `sweeps/status` too); none given: anything."""
    return sum(
        count
        for (verb, resource, _), count in requests.items()
        if verb in WRITES and (not resources or resource.split("/")[0] in resources)
    )
