"""One lab, every play on its stage at once; a test waits for its own scene and pokes it where it must."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.failures.lab import PROFILE, FailureLab, failure_lab
from tests.cluster.failures.scenes import PLAYS
from tests.cluster.lab import ROOT
from tests.cluster.rig import images

STAND_IN = ROOT / "tests" / "cluster" / "standin" / "python"
PRIORITY_CLASSES = ROOT / "manifests" / "base" / "priorityclasses.yaml"


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
    with failure_lab(cluster, PROFILE.format(image=stand_in), tmp_path_factory.mktemp("profile")) as one:
        one.begin(PLAYS)
        yield one
