"""What orch writes to a real API server and what it makes of the answers; no pod of ours is needed."""

from __future__ import annotations

import json
import shlex
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.client.submit import to_object
from orchestrator.cluster.base import Created, Event
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.cluster import KubeCluster
from orchestrator.cluster.kube.watched import WatchedCluster
from orchestrator.controller.stuck import PATIENCE_S, Cause, cause
from orchestrator.errors import JobRefusedError
from orchestrator.profile import Profile
from orchestrator.render import JobRequest, render_job
from orchestrator.sweep.expand import expand
from orchestrator.sweep.load import from_object, load, loads
from orchestrator.sweep.spec import Resources, Scheduling, Sweep
from tests.cluster.cluster import Cluster, until
from tests.cluster.rig.settings import TOOLS_IMAGE

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
TINY = """
apiVersion: orch.dev/v1alpha1
kind: Sweep
metadata: {name: tiny}
spec: {groups: [{name: lr, grid: {learning_rate: [1e-5, 2e-5]}}]}
"""
HOSTILE = [
    "$(ORCH_ATTEMPT)",
    "$$(HOME) $HOME $",
    "{{ image }} {% if x %}",
    "x\n- --evil\nsecurityContext: {privileged: true}",
    "quotes \" and ' and \\",
    "λ 😀 no 1e5 # x",
    "--flag=$(ORCH_TERMINATION_LOG)",
]


@pytest.fixture
def kube(api: Api, sweeps_defined: None) -> KubeCluster:
    return KubeCluster(api)


def stored(kube: KubeCluster, sweep: Sweep) -> str:
    """The uid of the stored sweep."""
    kube.put_sweep(to_object(sweep))
    value = kube.sweep(sweep.metadata.name)
    assert value is not None
    return str(value["metadata"]["uid"])


def a_job(uid: str, *, attempt: int = 1, args: tuple[str, ...] = ("train",), gpus: int = 0) -> dict[str, Any]:
    request = JobRequest(
        sweep="tiny",
        sweep_uid=uid,
        stage="train",
        run_id="lr1-0123abcd",
        attempt=attempt,
        args=args,
        digest="0123abcd" * 8,
        resources=Resources(gpus=gpus, cpu=0.1, memory="64Mi"),
        scheduling=Scheduling(),
    )
    profile = Profile(allowImageTags=True, image=TOOLS_IMAGE, serviceAccount="default")
    job = render_job(request, profile)
    pod = job["spec"]["template"]["spec"]
    pod["volumes"] = [one for one in pod["volumes"] if one["name"] != "data"]
    [container] = pod["containers"]
    container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] != "data"]
    return job


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_orch_submits_means_what_the_file_means_and_is_written_once(
    file: Path, kube: KubeCluster
) -> None:
    wanted = load(file)
    assert kube.put_sweep(to_object(wanted))
    value = kube.sweep(wanted.metadata.name)
    assert value is not None
    assert from_object(value) == wanted
    assert [run.id for run in expand(from_object(value))] == [run.id for run in expand(wanted)]
    assert not kube.put_sweep(to_object(wanted))
    again = kube.sweep(wanted.metadata.name)
    assert again is not None
    assert again["metadata"]["resourceVersion"] == value["metadata"]["resourceVersion"]


def test_commands_of_two_people_at_once_are_both_kept(kube: KubeCluster) -> None:
    stored(kube, loads(TINY, "tiny"))

    def cancel(run: str) -> None:
        kube.put_control("tiny", lambda now: now | {"cancel": [*now.get("cancel", []), run]})

    people = [threading.Thread(target=cancel, args=(f"run{number}",)) for number in range(5)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    value = kube.sweep("tiny")
    assert value is not None
    assert sorted(value["spec"]["control"]["cancel"]) == [f"run{number}" for number in range(5)]
    assert from_object(value) == loads(TINY, "tiny"), "commands are not part of what a sweep is"


def test_a_record_is_stored_once_and_an_event_told_once(kube: KubeCluster, cluster: Cluster) -> None:
    uid = stored(kube, loads(TINY, "tiny"))
    assert kube.put_record("tiny", "tiny--a-0123abcd-train-1", {"state": "done"})
    assert not kube.put_record("tiny", "tiny--a-0123abcd-train-1", {"state": "failed"})
    assert kube.records("tiny") == {"tiny--a-0123abcd-train-1": {"state": "done"}}
    for _ in range(2):
        kube.put_event("tiny", Event("OomHost", "lr1: train 1 failed, oomHost: OOMKilled", warning=True))
    told = cluster.kubectl("describe", "sweep", "tiny", "-n", kube.namespace).stdout
    assert told.count("OOMKilled") == 1
    kube.put_event("tiny", Event("Refused", "é" * 2000, warning=True))  # the server counts bytes
    record = json.loads(
        cluster.kubectl("get", "cm", "tiny--a-0123abcd-train-1", "-n", kube.namespace, "-o", "json").stdout
    )
    assert record["immutable"] is True
    assert record["metadata"]["ownerReferences"][0]["uid"] == uid


def test_a_job_is_made_once_and_a_strangers_is_left_alone(kube: KubeCluster, cluster: Cluster) -> None:
    uid = stored(kube, loads(TINY, "tiny"))
    job = a_job(uid)
    assert kube.create_job(job) is Created.CREATED
    assert kube.create_job(job) is Created.EXISTS
    former = a_job("00000000-0000-4000-8000-000000000000")
    assert kube.create_job(former) is Created.GOING, "as a new sweep of a name sees a former one's Job"
    name = a_job(uid, attempt=2)["metadata"]["name"]
    cluster.kubectl("create", "job", name, "-n", kube.namespace, f"--image={TOOLS_IMAGE}")
    assert kube.create_job(a_job(uid, attempt=2)) is Created.CONFLICT
    assert [one.name for one in kube.jobs("tiny")] == [job["metadata"]["name"]]
    kube.retire_job(job["metadata"]["name"], 3600)
    assert kube.jobs("tiny")[0].retired
    kube.delete_job(job["metadata"]["name"])
    kube.delete_job("absent")


def test_a_full_quota_refuses_a_job_in_words_and_knows_one_that_exists(
    kube: KubeCluster, cluster: Cluster
) -> None:
    uid = stored(kube, loads(TINY, "tiny"))
    cluster.kubectl("create", "quota", "few", "--hard=count/jobs.batch=1", "-n", kube.namespace)
    cluster.kubectl(
        *("wait", "quota/few", "-n", kube.namespace, "--timeout=30s"),
        "--for=jsonpath={.status.hard.count/jobs\\.batch}=1",
    )
    assert kube.create_job(a_job(uid)) is Created.CREATED
    with pytest.raises(JobRefusedError, match="exceeded quota: few") as refused:
        kube.create_job(a_job(uid, attempt=2))
    assert refused.value.reason == "QuotaExceeded"
    assert kube.create_job(a_job(uid)) is Created.EXISTS, "the server says 403 for this one too"


def test_what_is_watched_is_what_is_listed_and_ones_own_writes_are_seen_at_once(
    kube: KubeCluster, api: Api
) -> None:
    uid = stored(kube, loads(TINY, "tiny"))
    woken = threading.Event()
    watched = WatchedCluster(api, lambda sweep: woken.set())
    watched.start()
    try:
        assert watched.wait_synced(30)
        assert watched.create_job(a_job(uid)) is Created.CREATED
        assert [one.name for one in watched.jobs("tiny")] == [a_job(uid)["metadata"]["name"]]
        assert watched.put_record("tiny", "tiny--b-0123abcd-train-1", {"v": 1})
        assert watched.records("tiny") == {"tiny--b-0123abcd-train-1": {"v": 1}}
        watched.put_status("tiny", {"counts": {"total": 2}, "finished": False})
        seen = watched.sweep("tiny")
        assert seen is not None
        assert seen["status"]["counts"] == {"total": 2}
        assert woken.wait(30)
        fresh = {one.name: one.uid for one in kube.jobs("tiny")}
        assert {one.name: one.uid for one in watched.jobs("tiny")} == fresh
    finally:
        watched.stop()


def test_no_text_of_a_sweep_becomes_more_than_an_argument(kube: KubeCluster, cluster: Cluster) -> None:
    uid = stored(kube, loads(TINY, "tiny"))
    job = a_job(uid, args=("train", *HOSTILE))
    [container] = job["spec"]["template"]["spec"]["containers"]
    # The arguments as they were rendered, given to a program that shows what it got.
    container["command"] = ["/bin/busybox", "printf", "%s\\0"]
    assert kube.create_job(job) is Created.CREATED
    name = job["metadata"]["name"]
    cluster.kubectl("wait", f"job/{name}", "-n", kube.namespace, "--for=condition=Complete", "--timeout=120s")
    got = cluster.kubectl("logs", f"job/{name}", "-n", kube.namespace).stdout
    assert got.rstrip("\n").split("\0")[:-1] == ["train", *HOSTILE], shlex.join(HOSTILE)
    assert [one.finished for one in kube.jobs("tiny")] == [True]


def test_what_keeps_a_job_from_starting_is_heard_of_and_told(kube: KubeCluster) -> None:
    uid = stored(kube, loads(TINY, "tiny"))
    orphan = a_job(uid, attempt=1)
    orphan["spec"]["template"]["spec"]["priorityClassName"] = "nowhere"  # no pod will ever be made
    unmounted = a_job(uid, attempt=2)
    pod = unmounted["spec"]["template"]["spec"]
    pod["volumes"].append({"name": "token", "secret": {"secretName": "hub-token"}})
    pod["containers"][0]["volumeMounts"].append({"name": "token", "mountPath": "/token"})
    for job in (orphan, unmounted):
        assert kube.create_job(job) is Created.CREATED

    def heard() -> dict[str, Cause] | None:
        found = {job.name: cause(job, time.time(), kube.said(job)) for job in kube.jobs("tiny")}
        told = {name: one for name, one in found.items() if one}
        return told if len(told) == 2 else None

    said = until(heard, "the warnings about both Jobs")
    assert {(one.failure, one.ends_after_s) for one in said.values()} == {("config", PATIENCE_S)}
    assert "no PriorityClass with name nowhere" in said[orphan["metadata"]["name"]].evidence
    assert 'secret "hub-token" not found' in said[unmounted["metadata"]["name"]].evidence
