"""A full quota answers 403 for what exists, too: it is recognised, and only what is missing is refused."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.base import Created
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.cluster import KubeCluster
from orchestrator.cluster.kube.paths import SWEEPS
from orchestrator.errors import JobRefusedError
from tests.orchestrator.cluster.kube.apiserver import FakeApiServer
from tests.orchestrator.cluster.kube.test_decode import a_job


@pytest.fixture
def cluster(server: FakeApiServer, api: Api) -> KubeCluster:
    server.world.served = (*server.world.served, "sweeps")
    server.put(SWEEPS.path("ml"), "night", metadata={"name": "night", "uid": "s1"}, spec={})
    return KubeCluster(api)


def job(name: str, owner: str = "s1") -> dict[str, Any]:
    made = a_job(name)
    owners = [{**made["metadata"]["ownerReferences"][0], "uid": owner}]
    labels = made["metadata"]["labels"]
    return {
        **made,
        "metadata": {
            "name": name,
            "labels": labels,
            "ownerReferences": owners,
            "creationTimestamp": made["metadata"]["creationTimestamp"],
        },
    }


def test_a_job_that_exists_is_ours_under_a_full_quota_and_only_a_new_one_is_refused(
    server: FakeApiServer, cluster: KubeCluster
) -> None:
    assert cluster.create_job(job("x")) is Created.CREATED
    server.world.full.add("jobs")
    assert cluster.create_job(job("x")) is Created.EXISTS
    assert cluster.create_job(job("x", owner="another's")) is not Created.EXISTS
    with pytest.raises(JobRefusedError, match="exceeded quota") as caught:
        cluster.create_job(job("y"))
    assert caught.value.reason == "QuotaExceeded"
    server.world.full.clear()
    assert cluster.create_job(job("y")) is Created.CREATED


def test_a_record_that_exists_is_kept_under_a_full_quota(server: FakeApiServer, cluster: KubeCluster) -> None:
    assert cluster.put_record("night", "x", {"state": "done"})
    server.world.full.add("configmaps")
    assert not cluster.put_record("night", "x", {"state": "failed"})
    assert cluster.records("night") == {"x": {"state": "done"}}
    with pytest.raises(JobRefusedError, match="exceeded quota") as caught:
        cluster.put_record("night", "y", {"state": "done"})
    assert caught.value.reason == "QuotaExceeded"
