"""A real cluster for the tests that ask for it; they carry the marker `cluster`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.cluster.kube.client import Api
from orchestrator.controller import loop, memory, observed, serve, status, stuck
from tests.cluster.cluster import Cluster, inside_network
from tests.cluster.kueue.objects import definitions
from tests.cluster.requirements import require_rig
from tests.cluster.rig import lifecycle
from tests.cluster.rig.settings import Options, Rig
from tests.hub import Hub

ROOT = Path(__file__).parents[2]
DEFINITION = ROOT / "manifests" / "base" / "crd.yaml"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a cluster, before `-m` chooses."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster that is up (ORCH_CLUSTER_NAME, ORCH_CLUSTER_HOME), else one for this session alone.

    The tests run in its network: they reach the API server, and pods reach a server of the tests. Images are
    built before, for nothing can be downloaded from there.
    """
    require_rig()
    if any("built_images" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("built_images")
    rig = Rig.from_environment()
    with ExitStack() as ours:
        if not lifecycle.is_up(rig):
            lifecycle.refuse_remains(rig)  # of a cluster that this session did not start
            ours.callback(lifecycle.down, rig)
            lifecycle.up(rig, Options(node_grace=12))
        with inside_network(rig):
            yield Cluster(rig)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace for one test."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def api(cluster: Cluster, namespace: str) -> Api:
    """The product's door to the API server, as administrator, in the test's namespace."""
    return Api.connect(kubeconfig=cluster.kubeconfig, namespace=namespace)


@pytest.fixture(scope="session")
def sweeps_defined(cluster: Cluster) -> None:
    """The cluster knows Sweeps."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(DEFINITION))
    cluster.kubectl("wait", "--for=condition=Established", "crd/sweeps.orch.dev", "--timeout=60s")


@pytest.fixture(scope="session")
def images(cluster: Cluster, built_images: Path) -> dict[str, str]:
    """Our own images on the nodes, by digest: `controller` on all, `trainer` (6.7 GB) on the first alone."""
    [controller] = cluster.load(built_images / "controller")
    [trainer] = cluster.load(built_images / "trainer", cluster.nodes[0])
    return {"controller": controller, "trainer": trainer}


@pytest.fixture(scope="session")
def hub(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, make_tiny_folder) -> Iterator[Hub]:
    """A model and a dataset where pods can fetch them."""
    root = tmp_path_factory.mktemp("hub")
    model = make_tiny_folder(root / "models" / "lab" / "tiny")
    rows = root / "datasets" / "lab" / "rows"
    rows.mkdir(parents=True)
    (model / "rows.jsonl").rename(rows / "train.jsonl")
    with Hub(root, host=cluster.address) as served:
        yield served


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
        yield


@pytest.fixture(scope="module")
def kueue_defined(cluster: Cluster) -> Iterator[None]:
    """The cluster knows LocalQueues and Workloads."""
    names = [f"crd/{one['metadata']['name']}" for one in definitions()]
    cluster.kubectl("apply", "-f", "-", input="\n---\n".join(map(json.dumps, definitions())))
    cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
    yield
    cluster.kubectl("delete", *names)
