"""The API server is killed under a sweep, for a moment and for half a minute; its history is compacted."""

from __future__ import annotations

import base64
import json
import signal
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.lab import SWEEP, Lab, installed
from tests.hub import Hub

ETCD = "http://127.0.0.1:2379"
OUTAGE_S = 30
"""Longer than a Lease lasts: whoever led must end, and whoever leads next must find its way."""


@pytest.fixture
def lab(cluster: Cluster, images: dict[str, str], hub: Hub) -> Iterator[Lab]:
    with installed(cluster, images, more_profile=f'HF_ENDPOINT = "{hub.url}"') as one:
        yield one


def etcd(path: str, body: dict[str, object]) -> dict[str, object]:
    """etcd's own API, past the API server, which would go on from its cache."""
    request = urllib.request.Request(ETCD + path, json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        value: dict[str, object] = json.load(answer)
        return value


def compact() -> None:
    """Forget every version of every object but the newest: watches from before then answer 410."""
    key = base64.b64encode(b"/registry").decode()
    header = etcd("/v3/kv/range", {"key": key})["header"]
    assert isinstance(header, dict)
    etcd("/v3/kv/compaction", {"revision": header["revision"], "physical": True})


def relists(lab: Lab) -> tuple[int, float]:
    """How often the controller's process was started, and how often it had to list anew."""
    [pod] = lab.get("pods", "-l", "app.kubernetes.io/component=controller")["items"]
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8080/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    counts = [float(line.rpartition(" ")[2]) for line in lines if 'what="relists"' in line]
    return int(pod["status"]["containerStatuses"][0]["restartCount"]), sum(counts)


def test_an_api_server_that_is_killed_costs_no_attempt(lab: Lab, cluster: Cluster) -> None:
    lab.apply(SWEEP.format(name="down", lmbda="[0, 1, 0.5]", more=""))
    lab.until(lambda: lab.status("down").get("counts", {}).get("running") or None, "a training")
    starts, listed = relists(lab)
    cluster.stop("kube-apiserver", signal.SIGKILL)
    compact()
    cluster.start("kube-apiserver")
    again = lab.until(lambda: now if (now := relists(lab)) > (starts, listed) else None, "lists made anew")
    assert again[0] == starts, "a short absence of the API server ends no controller"
    lab.until(lambda: lab.status("down").get("counts", {}).get("done") or None, "a run to be done after that")
    cluster.stop("kube-apiserver", signal.SIGKILL)
    time.sleep(OUTAGE_S)  # the outage itself
    cluster.start("kube-apiserver")
    status = lab.finished("down")
    assert (status["counts"]["done"], status["counts"]["failed"]) == (3, 0), lab.evidence()
    records = lab.records("down")
    assert all(name.endswith("-1") for name in records), "no attempt was made twice"
    assert sorted(records) == lab.jobs("down")
