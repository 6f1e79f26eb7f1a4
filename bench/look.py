"""What one look at a watched cluster costs beside so many Jobs and records that are over.

`python -m bench.look --closed 0 10000 20000`: with the index of what is open, and going over everything.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.figures import Figure, Report
from bench.scale import AT_ONCE
from orchestrator.cluster.base import Cluster
from orchestrator.cluster.kube import decode
from orchestrator.cluster.kube.paths import CONFIG_MAPS, JOBS, SWEEPS, Resource
from orchestrator.cluster.kube.store import Item
from orchestrator.cluster.kube.watched import WatchedCluster
from orchestrator.sweep.naming import LABEL_SWEEP

DECODERS = {SWEEPS: decode.sweep, JOBS: decode.job, CONFIG_MAPS: decode.record}
SWEEP = {"metadata": {"name": "look", "uid": "s", "resourceVersion": "1"}, "spec": {}}
LOOKS = 7


class NoApi:
    """Nothing is asked of it."""

    namespace = "look"
    host = "https://nowhere"


def watched(closed: int) -> WatchedCluster:
    """A cluster with so many recorded Jobs, and a full window of others."""
    cluster = WatchedCluster(NoApi(), lambda sweep: None)  # type: ignore[arg-type]
    _tell(cluster, SWEEPS, SWEEP)
    for number in range(closed + AT_ONCE):
        owner = {"name": "look", "uid": "s", "controller": True}
        metadata = {
            "name": f"look--r{number}",
            "uid": f"j{number}",
            "resourceVersion": "1",
            "creationTimestamp": "2026-11-24T08:00:00Z",
            "labels": {LABEL_SWEEP: "look"},
            "ownerReferences": [owner],
        }
        _tell(cluster, JOBS, {"metadata": metadata, "spec": {}, "status": {}})
        if number < closed:
            _tell(cluster, CONFIG_MAPS, {"metadata": metadata, "data": {decode.RECORD_KEY: "{}"}})
    return cluster


def _tell(cluster: WatchedCluster, resource: Resource, value: dict[str, Any]) -> None:
    kept = DECODERS[resource](json.dumps(value).encode())
    cluster.reflectors[resource].store.upsert(Item(kept.name, kept.resource_version, kept))


def least_ms(look: Callable[[], Any]) -> float:
    """CPU of the cheapest of some looks after the first, ms."""
    look()
    found = []
    for _ in range(LOOKS):
        began = time.thread_time()
        look()
        found.append(time.thread_time() - began)
    return 1000 * min(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--closed", type=int, nargs="+", default=(0, 10_000, 20_000), metavar="N")
    options = parser.parse_args()
    report = Report()
    for number in options.closed:
        cluster, closed = watched(number), {f"look--r{one}" for one in range(number)}
        looks = {
            "at what is open": partial(cluster.open_part, "look", closed),
            "at everything": partial(Cluster.open_part, cluster, "look", closed),
        }
        for how, look in looks.items():
            report.add(Figure(f"{number:,} closed: a look {how}", least_ms(look), "ms"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
