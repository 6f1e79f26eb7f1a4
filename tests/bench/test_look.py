"""What the bench looks at is a full window beside what is over, and both ways see the same."""

from __future__ import annotations

from bench.look import watched
from bench.scale import AT_ONCE
from orchestrator.cluster.base import Cluster


def test_both_looks_see_a_full_window_and_nothing_closed() -> None:
    cluster, closed = watched(3), {"look--r0", "look--r1", "look--r2"}
    part = cluster.open_part("look", closed)
    assert part == Cluster.open_part(cluster, "look", closed)
    assert (len(part.jobs), len(part.records), part.complete) == (AT_ONCE, 0, True)
    assert len(cluster.open_part("look", set()).records) == 3
