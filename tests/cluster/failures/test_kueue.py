"""Attempts whose queue decides when they run: the stand-in for Kueue against real Jobs and pods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from orchestrator.cluster.kube.client import Api
from tests.cluster.cluster import Cluster
from tests.cluster.failures.lab import PROFILE, FailureLab, failure_lab
from tests.cluster.failures.page import keep
from tests.cluster.failures.scenes import CHECKPOINTS, Play, Scene
from tests.cluster.kueue.objects import STOPPING, Flavor, local_queue
from tests.cluster.kueue.reconciler import Kueue

QUEUE = {"queue": "gpu"}
HOSTNAME = "kubernetes.io/hostname"
SPOT = {"key": "lab/spot", "operator": "Exists", "effect": "NoSchedule"}
UNTIL_ADMITTED = "held until it is admitted"
ABSENT = "Kueue: `scheduling.queue` names a queue that is absent"
FULL = "Kueue: its queue has no quota left"
LATE = "Kueue: its queue lets it wait longer than `maxDuration`"
PREEMPTED = "Kueue: its queue takes its quota back while it trains"
MOVED = "Kueue: its queue takes its quota back while it trains, and admits it to other nodes"
AT_ONCE = "Kueue: it is admitted again while its old pod still writes a checkpoint"


@pytest.fixture(scope="module")
def lab(
    cluster: Cluster,
    stand_in: str,
    impatient: None,
    sweeps_defined: None,
    kueue_defined: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FailureLab]:
    """A namespace of its own, in a cluster that serves LocalQueues and Workloads."""
    with failure_lab(cluster, PROFILE.format(image=stand_in), tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def kueue(cluster: Cluster, lab: FailureLab) -> Iterator[Kueue]:
    with Kueue(Api.connect(kubeconfig=cluster.kubeconfig, namespace=lab.namespace)) as one:
        yield one


@pytest.fixture
def queue(lab: FailureLab, kueue: Kueue) -> Kueue:
    """Kueue, with the queue that is named."""
    lab.apply(json.dumps(local_queue("gpu")))
    return kueue


def play(name: str, scene: Scene, **resources: Any) -> dict[str, Play]:
    """A sweep of one run that asks for a GPU."""
    return {name: Play({name: scene}, {"scheduling": QUEUE, "resources": {"gpus": 1, **resources}})}


def checked(lab: FailureLab) -> tuple[str, str]:
    """What `orch doctor` finds of the queue."""
    told = json.loads(lab.orch("doctor", "--queue", "gpu", "-o", "json", check=False).stdout)
    [one] = [one for one in told["checks"] if one["check"] == "queue"]
    return one["state"], one["message"]


def template(lab: FailureLab, job: str) -> dict[str, Any]:
    """What admission changes of a Job's pod template."""
    found = lab.get("job", job)["spec"]["template"]
    labels, annotations = found["metadata"]["labels"], found["metadata"]["annotations"]
    spec = found["spec"]
    places = {"nodeSelector": spec.get("nodeSelector"), "tolerations": spec["tolerations"]}
    return {"labels": labels, "annotations": annotations, **places}


def test_a_queue_that_is_absent_is_waited_for(lab: FailureLab, kueue: Kueue) -> None:
    lab.begin(play("noqueue", Scene(ABSENT, attempts=1), gpus=0))
    fetch = lab.job("noqueue", "noqueue", stage="fetch")
    told = lab.until(lambda: kueue.condition(fetch, "QuotaReserved"), "Kueue to look at the Job", 60)
    assert told["message"] == "LocalQueue gpu doesn't exist"
    lab.waits("noqueue", "Waiting", "Unschedulable")
    assert checked(lab) == ("missing", "there is no LocalQueue gpu")
    held = lab.held("noqueue", "noqueue", ABSENT, "unschedulable", UNTIL_ADMITTED, "fetch")
    keep("queue-absent", held)
    lab.apply(json.dumps(local_queue("gpu")))
    lab.goes_on("noqueue", "Waiting")
    assert checked(lab)[0] == "ok"


def test_time_in_the_queue_costs_nothing(lab: FailureLab, queue: Kueue) -> None:
    limit_s = 10
    lab.begin(play("late", Scene(LATE, attempts=1), maxDuration=f"{limit_s}s"))
    job = lab.job("late", "late")
    lab.made(job)
    lab.waits("late", "Waiting", "Unschedulable")
    keep("queue-full", lab.held("late", "late", FULL, "unschedulable", UNTIL_ADMITTED))
    lab.until(lambda: lab.age_s(job) > limit_s or None, "the queue to take longer than maxDuration")
    assert not lab.witness.pods(job)
    [waiting] = json.loads(lab.orch("top", "-o", "json").stdout)["waiting"]
    assert (waiting["sweep"], waiting["reason"]) == ("late", "queue")
    [run] = json.loads(lab.orch("status", "late", "-o", "json").stdout)["runs"]
    assert (run["state"], lab.status("late")["gpuHours"]) == ("pending", 0.0)
    queue.gpus = 1
    record = lab.goes_on("late", "Waiting")
    admitted = queue.condition(job, "Admitted")
    assert admitted
    assert record["started_at"] >= datetime.fromisoformat(admitted["lastTransitionTime"]).timestamp()
    assert record["gpu_seconds"] <= record["finished_at"] - record["started_at"]
    keep("late", lab.row("late", "late"))


def test_a_preempted_job_is_the_same_attempt_on_other_nodes(lab: FailureLab, queue: Kueue) -> None:
    here, there = lab.cluster.nodes
    queue.gpus, queue.flavor = 1, Flavor("here", {HOSTNAME: here}, [SPOT])
    lab.begin(play("moved", Scene(MOVED, {"1.1": CHECKPOINTS}, 1)))
    job, pod = lab.job("moved", "moved"), lab.get("pod", lab.trains("moved", "moved"))
    assert (pod["spec"]["nodeName"], SPOT in pod["spec"]["tolerations"]) == (here, True)
    [made] = queue.workload(job)["spec"]["podSets"]

    queue.preempt(job, gpus=0)
    lab.until(lambda: lab.witness.gone(pod["metadata"]["uid"]) or None, "its pod to end", 60)
    lab.waits("moved", "Waiting", "Unschedulable")
    left = lab.get("job", job)
    assert left["spec"]["suspend"]
    assert "startTime" not in left["status"]
    assert STOPPING not in left["metadata"]["annotations"]
    assert HOSTNAME not in (template(lab, job)["nodeSelector"] or {}), "as it was made"
    assert template(lab, job)["tolerations"] == made["template"]["spec"]["tolerations"]
    assert lab.attempts("moved", "moved") == [], "it is the same attempt"
    keep("queue-preempts", lab.held("moved", "moved", PREEMPTED, "unschedulable", UNTIL_ADMITTED))

    queue.gpus, queue.flavor = 1, Flavor("there", {HOSTNAME: there})
    record = lab.goes_on("moved", "Waiting")
    assert (record["attempt"], record["node"]) == (1, there)
    assert record["digest"] == lab.run("moved", "moved").digest
    first, second = lab.journal("moved", "moved", "start")
    assert (first.attempt, first.arguments) == (second.attempt, second.arguments), "what it is did not change"
    assert first.pod != second.pod
    assert template(lab, job)["nodeSelector"][HOSTNAME] == there, "nobody put the template back"
    seconds = [
        (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
        for start, end in lab.witness.spans(record["run_id"], "moved")
    ]
    assert record["gpu_seconds"] == sum(seconds), "between its two pods it had no GPU"
    keep("moved", lab.row("moved", "moved"))


def test_a_job_that_is_admitted_while_its_old_pod_ends_has_one_pod_at_a_time(
    lab: FailureLab, queue: Kueue
) -> None:
    queue.gpus, queue.flavor = 1, Flavor()
    lab.begin(play("atonce", Scene(AT_ONCE, {"1.1": CHECKPOINTS}, 1)))
    job, pod = lab.job("atonce", "atonce"), lab.trains("atonce", "atonce")
    queue.preempt(job, gpus=1)
    lab.until(lambda: lab.witness.leaving(job) or None, "its pod to be told to go", 60)
    record = lab.goes_on("atonce", "Waiting")
    first, second = lab.journal("atonce", "atonce", "start")
    assert record["attempt"] == 1
    assert first.pod != second.pod
    assert pod
    keep("queue-at-once", lab.row("atonce", "atonce"))
