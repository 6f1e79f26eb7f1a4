"""What `bench/controller.py` counts rather than times, on a real API server and in small."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import pytest

from bench import controller as bench
from bench.figures import Figure
from bench.stage import Stage
from tests.cluster.cluster import Cluster


@pytest.fixture(scope="module")
def stage(cluster: Cluster) -> Iterable[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        with Stage(f"bench-{os.getpid()}") as stage:
            yield stage
        assert f"bench-{os.getpid()}" not in cluster.kubectl("get", "node", "-o", "name").stdout


@pytest.mark.parametrize("measure", [bench.create, bench.steady], ids=["create", "steady"])
def test_no_request_is_made_twice_or_in_vain(
    stage: Stage, measure: Callable[[Stage, bench.Size], Iterable[Figure]]
) -> None:
    """One POST, record and TTL patch per Job; a resubmit, and Jobs that only run, write nothing."""
    counts = [one for one in measure(stage, bench.Size(jobs=10, steady_s=5)) if one.exactly is not None]
    assert counts
    assert [one.line() for one in counts if not one.met] == []
    assert stage.controller.faults() == []


def test_every_training_is_measured_as_soon_as_it_is_done(stage: Stage) -> None:
    figures = list(bench.latency(stage, bench.Size(jobs=10)))
    assert all(0 < one.value < bench.PATIENCE_S for one in figures), figures
    assert stage.controller.faults() == []
