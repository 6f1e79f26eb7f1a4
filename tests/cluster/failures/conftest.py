"""One lab, every play on its stage at once; a test waits for its own scene and pokes it where it must."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.controller import loop, memory, observed, serve, status, stuck
from tests.cluster.cluster import Cluster
from tests.cluster.failures.lab import FailureLab, failure_lab
from tests.cluster.failures.scenes import PLAYS
from tests.cluster.lab import ROOT
from tests.cluster.rig import images

STAND_IN = ROOT / "tests" / "cluster" / "standin" / "python"
PRIORITY_CLASSES = ROOT / "manifests" / "base" / "priorityclasses.yaml"


@pytest.fixture(scope="module")
def impatient() -> Iterator[None]:
    """The same decisions, sooner: a minute of patience, and two for a lost node, are seconds here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stuck, "PATIENCE_S", 10.0)
        patch.setattr(stuck, "OUTAGE_S", 10.0)
        patch.setattr(stuck, "SILENCE_S", 2.0)
        patch.setattr(stuck, "ENDED_LATE_S", 2.0)
        patch.setattr(serve, "UNFINISHED_AGAIN_S", 2.0)
        patch.setattr(loop, "REFUSED_AGAIN_S", 2.0)
        patch.setattr(memory, "ASKED_AGAIN_S", 2.0)
        patch.setattr(status, "TOLD_AFTER_S", 2.0)
        patch.setattr(observed, "ENDED_LATE_S", 2.0)
        patch.setattr(observed, "FENCE_S", 5.0)
        patch.setattr(observed, "ENDED_LATE_S", 2.0)
        yield


@pytest.fixture(scope="session")
def stand_in(cluster: Cluster) -> str:
    """The image of the stand-in trainer, pinned, on all nodes."""
    [image] = cluster.load(images.build("orch.test/trainer:1", [STAND_IN]))
    return image


@pytest.fixture(scope="session")
def lab(
    cluster: Cluster, stand_in: str, sweeps_defined: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FailureLab]:
    cluster.kubectl("apply", "-f", str(PRIORITY_CLASSES))
    with failure_lab(cluster, stand_in, tmp_path_factory.mktemp("profile")) as one:
        one.begin(PLAYS)
        for fetch in one.until(lambda: one.queued("queued", "fetch"), "a fetch in its queue"):
            one.suspend(fetch, False)
        yield one
