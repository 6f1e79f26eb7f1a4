"""What is kept of objects: states as the API server reports them, and which pods belong to whom."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from orchestrator.cluster.base import Condition, Event
from orchestrator.cluster.kube import decode
from orchestrator.cluster.kube.ownership import joined
from orchestrator.cluster.kube.recordtext import RecordText
from orchestrator.controller.observed import Unit, unit_of
from orchestrator.sweep import naming

LABELS = naming.labels("night", "lr1-0123abcd", "train", 2)


def a_job(name: str = "night--lr1", uid: str = "j1", owner: str = "s1", **more: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "uid": uid,
            "resourceVersion": "7",
            "creationTimestamp": "2026-11-24T08:00:00Z",
            "labels": dict(LABELS),
            "annotations": {**naming.job_annotations("lr1-0123abcd", "ab" * 32), "kueue.x/noise": "…"},
            "ownerReferences": [
                {
                    "apiVersion": "orch.dev/v1alpha1",
                    "kind": "Sweep",
                    "name": "night",
                    "uid": owner,
                    "controller": True,
                }
            ],
            "managedFields": [{"manager": "orch"}],
        },
        "spec": {
            "suspend": False,
            "template": {
                "spec": {
                    "containers": [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": "8"}}}]
                }
            },
        },
        "status": {},
    }
    for key, changes in more.items():
        value[key] |= changes
    return value


def a_pod(uid: str = "p1", job_uid: str = "j1", job: str = "night--lr1", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"{job}-{uid}",
            "uid": uid,
            "resourceVersion": "9",
            "creationTimestamp": "2026-11-24T08:00:01Z",
            "labels": {**LABELS, decode.JOB_NAME_LABEL: job},
            "ownerReferences": [{"kind": "Job", "name": job, "uid": job_uid, "controller": True}],
        },
        "spec": {"nodeName": "node-a", "containers": [{"name": "trainer"}]},
        "status": {"phase": "Pending"} | status,
    }


def raw(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_a_job_keeps_identity_conditions_and_gpus() -> None:
    conditions = [
        {"type": "FailureTarget", "status": "True", "reason": "PodFailurePolicy", "message": "m"},
        {"type": "Complete", "status": "False"},
    ]
    kept = decode.job(raw(a_job(status={"conditions": conditions})))
    assert (kept.name, kept.uid, kept.resource_version, kept.sweep, kept.owner) == (
        "night--lr1",
        "j1",
        "7",
        "night",
        "s1",
    )
    assert kept.job.conditions == {"FailureTarget": Condition("PodFailurePolicy", "m")}
    assert not kept.job.finished, "only Complete and Failed are final"
    assert (kept.job.gpus, kept.job.retired, kept.job.suspended) == (8, False, False)
    assert unit_of(kept.job) == Unit("train", "lr1-0123abcd")
    assert set(kept.job.annotations) == {naming.ANNOTATION_RUN, naming.ANNOTATION_DIGEST}


@pytest.mark.parametrize(
    ("changes", "retired"),
    [
        ({"spec": {"ttlSecondsAfterFinished": 60}}, True),
        ({"metadata": {"deletionTimestamp": "2026-11-24T08:00:00Z"}}, True),
        ({}, False),
    ],
)
def test_a_job_is_retired_once_its_deletion_is_arranged(changes: dict[str, Any], retired: bool) -> None:
    assert decode.job(raw(a_job(**changes))).job.retired is retired


def test_a_pod_that_ended_keeps_its_message_times_and_code() -> None:
    terminated = {
        "exitCode": 75,
        "reason": "Error",
        "message": '{"v": 1}',
        "startedAt": "2026-11-24T08:00:00Z",
        "finishedAt": "2026-11-24T08:01:00Z",
    }
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    status = {
        "phase": "Failed",
        "conditions": [disrupted, {"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "trainer", "ready": False, "state": {"terminated": terminated}}],
    }
    pod = decode.pod(raw(a_pod(**status))).pod
    assert (pod.exit_code, pod.exit_reason, pod.message, pod.node) == (75, "Error", '{"v": 1}', "node-a")
    assert pod.finished_at is not None
    assert pod.started_at is not None
    assert pod.finished_at - pod.started_at == 60
    assert pod.conditions == {"DisruptionTarget": Condition("EvictionByEvictionAPI", "")}


def test_a_container_that_a_mesh_put_beside_ours_says_nothing_of_the_run() -> None:
    beside = {"name": "a-proxy", "state": {"terminated": {"exitCode": 0}}}
    ours = {"name": "trainer", "state": {"terminated": {"exitCode": 64, "message": "boom"}}}
    pod = decode.pod(raw(a_pod(phase="Failed", containerStatuses=[beside, ours]))).pod
    assert (pod.exit_code, pod.message) == (64, "boom")


def test_a_pod_that_runs_is_ready_once_its_probe_says_so() -> None:
    state = [{"ready": True, "state": {"running": {"startedAt": "2026-11-24T08:00:00Z"}}}]
    ready = {"type": "Ready", "status": "True"}
    pod = decode.pod(raw(a_pod(phase="Running", conditions=[ready], containerStatuses=state))).pod
    assert (pod.phase, pod.ready, pod.finished_at) == ("Running", True, None)
    assert pod.started_at is not None
    assert not decode.pod(raw(a_pod(phase="Running", containerStatuses=state))).pod.ready


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/2 nodes",
                    }
                ]
            },
            "Unschedulable",
            "0/2 nodes",
        ),
        (
            {
                "containerStatuses": [
                    {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}}
                ]
            },
            "ImagePullBackOff",
            "Back-off",
        ),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]},
            "ContainerCreating",
            "",
        ),
        ({}, None, ""),
    ],
)
def test_a_pod_that_waits_says_for_what(status: dict[str, Any], reason: str | None, message: str) -> None:
    pod = decode.pod(raw(a_pod(**status))).pod
    assert (pod.waiting_reason, pod.waiting_message) == (reason, message)


def test_jobs_are_those_the_sweep_owns_each_with_its_pods() -> None:
    jobs = [decode.job(raw(a_job())), decode.job(raw(a_job("night--old", "j0", owner="s0")))]
    pods = [decode.pod(raw(a_pod("p1"))), decode.pod(raw(a_pod("p2", phase="Running")))]
    [found] = joined(jobs, pods, "s1")
    assert found.name == "night--lr1"
    assert [pod.uid for pod in found.pods] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("phase", "shown"), [("Pending", True), ("Running", True), ("Succeeded", False), ("Failed", False)]
)
@pytest.mark.parametrize("gone", [True, False], ids=["its Job is gone", "its Job is a former Sweep's"])
def test_a_living_pod_without_a_job_of_ours_keeps_its_run_busy(phase: str, shown: bool, gone: bool) -> None:
    jobs = [] if gone else [decode.job(raw(a_job(owner="s0")))]
    found = joined(jobs, [decode.pod(raw(a_pod(phase=phase)))], "s1")
    assert [(one.name, one.deleting, unit_of(one)) for one in found] == (
        [("night--lr1", True, Unit("train", "lr1-0123abcd"))] if shown else []
    )


def test_a_record_reads_like_its_object_and_equals_it() -> None:
    text = '{"v":1,"run_id":"a","record":{"tasks":[1,2]}}'
    record, value = RecordText(text), json.loads(text)
    assert (dict(record), dict(record.items()), len(record), list(record)) == (value, value, 3, list(value))
    assert record == value == record
    assert (record == RecordText(text), record == RecordText('{"v":1}'), record == {"v": 1}) == (
        True,
        False,
        False,
    )
    assert record == RecordText(json.dumps(value))  # another spelling of the same
    assert record["record"]["tasks"] == [1, 2]


def test_a_record_that_is_no_json_is_none() -> None:
    config_map = {"metadata": {"name": "j", "labels": LABELS}, "data": {decode.RECORD_KEY: '{"v": 1}'}}
    assert decode.record(raw(config_map)).record == {"v": 1}
    for broken in ({}, {decode.RECORD_KEY: "{"}, {decode.RECORD_KEY: "[1]"}):
        assert decode.record(raw(config_map | {"data": broken})).record == {}


def test_a_sweep_is_kept_without_managed_fields() -> None:
    value = {
        "metadata": {"name": "night", "uid": "s1", "managedFields": [1]},
        "spec": {"params": {"lmbda": 0}},
    }
    kept = decode.sweep(raw(value))
    assert kept.sweep_object == {"metadata": {"name": "night", "uid": "s1"}, "spec": {"params": {"lmbda": 0}}}
    assert kept.sweep == "night"


@pytest.mark.parametrize("read", [decode.job, decode.pod, decode.record, decode.sweep])
def test_what_is_no_object_is_said_so_in_a_way_that_reflectors_skip(read: Any) -> None:
    with pytest.raises(msgspec.MsgspecError):
        read(b'{"metadata": {"na')


def test_an_event_has_its_words_and_when_it_was_last_said() -> None:
    old = {
        "type": "Warning",
        "reason": "FailedMount",
        "message": "m",
        "lastTimestamp": "1970-01-01T00:01:00Z",
    }
    new = {
        "type": "Normal",
        "reason": "Pulling",
        "eventTime": "1970-01-01T00:02:00.5Z",
        "lastTimestamp": None,
    }
    assert decode.event(json.dumps(old).encode()) == (60.0, Event("FailedMount", "m", warning=True))
    assert decode.event(json.dumps(new).encode()) == (120.5, Event("Pulling", ""))


def test_a_pod_that_was_told_to_go_says_until_when_it_may_stay() -> None:
    told = a_pod()
    told["metadata"]["deletionTimestamp"] = "1970-01-01T00:01:00Z"
    assert decode.pod(json.dumps(told).encode()).pod.gone_by == 60.0
    assert decode.pod(json.dumps(a_pod()).encode()).pod.gone_by is None


def test_orphaned_pods_of_several_jobs_are_a_ghost_each() -> None:
    """`delete job --cascade=orphan` leaves them without an owner: no run may start beside its own."""
    pods = []
    for number in range(3):
        one = a_pod(f"p{number}", job_uid="", job=f"night--lr{number}", phase="Running")
        one["metadata"]["ownerReferences"] = []
        pods.append(decode.pod(json.dumps(one).encode()))
    assert sorted(one.name for one in joined([], pods, "s1")) == ["night--lr0", "night--lr1", "night--lr2"]
