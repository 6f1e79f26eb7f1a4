"""Attempts that others end: evictions, preemption, a queue, and people with kubectl."""

from __future__ import annotations

import json

from tests.cluster.failures.lab import FailureLab
from tests.cluster.failures.page import Row, keep
from tests.cluster.rig.settings import GPU_RESOURCE, GPUS_PER_NODE, TOOLS_IMAGE


def test_an_evicted_pod_is_preempted(lab: FailureLab) -> None:
    lab.evict(lab.trains("acts", "evicted"))
    assert [one.get("class") for one in lab.ended("acts", "evicted")] == ["preempted", None]
    keep("evicted", lab.row("acts", "evicted"))


def test_a_pod_gives_way_to_a_higher_priority(lab: FailureLab) -> None:
    lab.ended("xid", "xid")  # what else has GPUs
    pod = lab.get("pod", lab.trains("outranked", "outranked"))
    everything = {"limits": {GPU_RESOURCE: GPUS_PER_NODE}}
    container = {"name": "rival", "image": TOOLS_IMAGE, "resources": everything}
    spec = {
        "nodeSelector": {"kubernetes.io/hostname": pod["spec"]["nodeName"]},
        "priorityClassName": "orch-high",
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
    }
    rival = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rival"}, "spec": spec}
    lab.apply(json.dumps(rival))
    assert [one.get("class") for one in lab.ended("outranked", "outranked")] == ["preempted", None]
    lab.kubectl("delete", "pod", "rival")
    keep("outranked", lab.row("outranked", "outranked"))


def test_a_pod_deleted_by_hand_is_preempted(lab: FailureLab) -> None:
    lab.kubectl("delete", "pod", lab.trains("acts", "podgone"), "--wait=false")
    assert [one.get("class") for one in lab.ended("acts", "podgone")] == ["preempted", None]
    keep("podgone", lab.row("acts", "podgone"))


def test_a_job_deleted_by_hand_is_the_same_attempt_again(lab: FailureLab) -> None:
    lab.trains("acts", "jobgone")
    lab.kubectl("delete", "job", lab.job("acts", "jobgone"), "--wait=false")
    [record] = lab.ended("acts", "jobgone")
    assert (record["attempt"], record["state"]) == (1, "done")
    first, second = lab.journal("acts", "jobgone", "start")
    assert first.attempt == second.attempt == "1"
    assert first.pod != second.pod
    keep("jobgone", lab.row("acts", "jobgone"))


def test_a_job_that_vanishes_again_and_again_is_given_up(lab: FailureLab) -> None:
    job = lab.job("acts", "vanishing")
    for time in (1, 2):
        lab.trains("acts", "vanishing", pods=time)
        lab.kubectl("delete", "job", job, "--wait=false")
    lost = lab.until(lambda: lab.failure("acts", "vanishing"), "it to be given up", 60)
    assert lost["class"] == "lost"
    assert lab.attempts("acts", "vanishing") == [], "nothing is known of how it ended"
    told = lab.why("acts", "vanishing")
    lab.until(lambda: lab.witness.still(job) or None, "the last pod to end", 60)
    shown, scene = lab.witness.shown(job), lab.scene("acts", "vanishing")
    keep("vanishing", Row(scene.provoked, shown, "lost", "not tried again", told[2].strip()))


def test_a_run_that_is_cancelled_is_recorded_and_ended(lab: FailureLab) -> None:
    lab.trains("acts", "cancelled")
    lab.orch("cancel", "acts", "cancelled")
    [record] = lab.ended("acts", "cancelled")
    assert (record["class"], record["evidence"]) == ("cancelled", "cancelled by its user")
    lab.until(lambda: lab.witness.ended(lab.job("acts", "cancelled")) or None, "its pod to end", 60)
    keep("cancelled", lab.row("acts", "cancelled", stuck=True))
