"""Requests counted from what API server and controller publish."""

from __future__ import annotations

from collections import Counter

from bench.counting import counted, made_or_changed, not_leases, spelled, written
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.paths import JOBS
from orchestrator.cluster.kube.watched import WatchedCluster
from orchestrator.cluster.kube.workqueue import WorkQueue
from orchestrator.controller.metrics import Metrics
from tests.orchestrator.cluster.kube.apiserver import FakeApiServer

SERVER = """\
# HELP apiserver_request_total [STABLE] Counter of apiserver requests broken out for each verb.
apiserver_request_total{code="201",dry_run="",resource="jobs",verb="POST"} 41
apiserver_request_total{code="201",dry_run="All",resource="jobs",verb="POST"} 1
apiserver_request_total{code="409",dry_run="",resource="jobs",verb="POST"} 1.5e+06
apiserver_request_total_other{code="201",resource="jobs",verb="POST"} 5
"""


def test_samples_are_summed_over_the_labels_that_do_not_matter() -> None:
    found = counted(SERVER, "apiserver_request_total", ("verb", "resource", "code"))
    assert found == {("POST", "jobs", "201"): 42, ("POST", "jobs", "409"): 1_500_000}


def test_the_controller_s_own_count_is_read(tmp_path, monkeypatch) -> None:
    with FakeApiServer() as server:
        api = Api.connect(kubeconfig=server.kubeconfig(tmp_path))
        metrics = Metrics()
        metrics.watch(api, WatchedCluster(api, lambda name: None), WorkQueue())
        for name in ("x", "y"):
            api.post(JOBS.path("ml"), {"metadata": {"name": name}})
        text = metrics.text().decode()
    labels = ("method", "resource", "status")
    assert counted(text, "orch_api_requests_total", labels) == {("POST", "jobs", "201"): 2}


def test_what_is_a_write_and_to_what() -> None:
    asked = Counter(
        {
            ("PATCH", "leases", "200"): 30,
            ("watch", "jobs", "200"): 4,
            ("APPLY", "sweeps/status", "200"): 3,
            ("POST", "jobs", "201"): 2,
            ("POST", "jobs", "409"): 1,
            ("POST", "pods/binding", "201"): 1,
            ("DELETECOLLECTION", "jobs", "200"): 1,
        }
    )
    assert spelled(written(not_leases(asked))) == (
        "3 APPLY sweeps/status, 1 DELETECOLLECTION jobs, 3 POST jobs, 1 POST pods/binding"
    )
    assert spelled(made_or_changed(asked, "sweeps")) == "3 APPLY sweeps/status"
    assert made_or_changed(asked, "sweeps", "jobs").total() == 6
    assert spelled(Counter()) == "none"
