"""Attempts that end by themselves: exit codes, records, and messages that are none."""

from __future__ import annotations

import pytest

from tests.cluster.failures.lab import FailureLab
from tests.cluster.failures.page import keep
from tests.cluster.failures.scenes import ENDS, SWEEP_NAME

CLASSES = {
    "usage": "userError",
    "data": "userError",
    "internal": "internal",
    "broken": "internal",
    "stalled": "stalled",
    "diverged": "diverged",
    "cuda": "oomCuda",
    "again": "preempted",
    "full": "storage",
    "segfault": "unknown",
    "killed": "unknown",
    "raised": "internal",
    "silent": "unverified",
    "huge": "unverified",
    "binary": "unverified",
    "nested": "unverified",
    "stranger": "unverified",
    "forged": "unverified",
}


@pytest.mark.parametrize("run", ENDS)
def test_a_class_follows_from_how_the_trainer_ended(run: str, lab: FailureLab) -> None:
    attempts = lab.ended("ends", run)
    failed = [one for one in attempts if one["state"] == "failed"]
    assert {one["class"] for one in failed} == {CLASSES[run]}
    keep(run, lab.row("ends", run, failed[-1]["attempt"]))


def test_after_cuda_memory_the_same_run_goes_on_with_half_the_micro_batch(lab: FailureLab) -> None:
    [first, second] = lab.ended("ends", "cuda")
    assert (first["run_id"], second["overrides"]) == (second["run_id"], {"micro_batch_split": 2})
    before, after = (one.arguments.split() for one in lab.journal("ends", "cuda", "start"))
    assert after == [*before, "--micro-batch-split", "2"]


def test_a_node_whose_gpus_failed_twice_is_avoided(lab: FailureLab) -> None:
    attempts = lab.ended("xid", "xid")
    assert [one.get("class") for one in attempts] == ["gpuFault", "gpuFault", None]
    bad, other = lab.cluster.nodes
    assert [one["node"] for one in attempts] == [bad, bad, other], (
        "it preferred the first as long as it could"
    )
    assert [one["overrides"] for one in attempts] == [{}, {}, {"avoid_nodes": [bad]}]
    keep("xid", lab.row("xid", "xid", 2))


def test_the_same_error_of_a_user_in_three_runs_halts_the_sweep(lab: FailureLab) -> None:
    for number in range(3):
        [record] = lab.ended("alike", f"alike{number}")
        assert record["class"] == "userError"
    status = lab.finished("alike", 60)
    assert (status["counts"]["failed"], status["counts"]["pending"]) == (3, 2)
    halted = {one["type"]: one for one in status["conditions"]}["Halted"]
    assert (halted["status"], halted["reason"]) == ("True", "SameFailure")
    assert not lab.journal("alike", "alike3", "start") + lab.journal("alike", "alike4", "start")
    provoked = "three other runs exit 64 with the same error"
    keep("alike", lab.held("alike", "alike3", provoked, "held", "until the sweep is changed"))


def test_names_of_the_greatest_length_are_told_apart(lab: FailureLab) -> None:
    runs = lab.plays[SWEEP_NAME].scenes
    for run in runs:
        [record] = lab.ended(SWEEP_NAME, run)
        assert record["state"] == "done"
    jobs = {lab.job(SWEEP_NAME, run) for run in runs}
    assert len(jobs) == len(runs)
    assert {len(job) for job in jobs} == {52}
