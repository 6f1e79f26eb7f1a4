"""Attempts that are ended for what they use: memory, disk, time."""

from __future__ import annotations

from tests.cluster.failures.lab import FailureLab
from tests.cluster.failures.page import keep


def test_memory_grows_with_every_kill_until_it_is_enough(lab: FailureLab) -> None:
    attempts = lab.ended("memory", "grows")
    assert [one.get("class") for one in attempts] == ["oomHost", "oomHost", None]
    assert [one["overrides"] for one in attempts] == [{}, {"memory": "48Mi"}, {"memory": "64Mi"}]
    assert [limit(lab, "grows", attempt) for attempt in (1, 2, 3)] == ["32Mi", "48Mi", "64Mi"]
    keep("grows", lab.row("memory", "grows"))


def test_memory_does_not_grow_beyond_the_profile(lab: FailureLab) -> None:
    attempts = lab.ended("memory", "toobig")
    assert [one["class"] for one in attempts] == ["oomHost"] * 3
    assert limit(lab, "toobig", 3) == "64Mi"
    keep("toobig", lab.row("memory", "toobig", 3))


def test_a_done_record_outweighs_a_child_that_was_killed_for_memory(lab: FailureLab) -> None:
    [record] = lab.ended("memory", "child")
    assert record["state"] == "done"
    keep("child", lab.row("memory", "child"))


def test_a_pod_that_fills_its_disk_is_evicted_and_tried_again(lab: FailureLab) -> None:
    assert [one.get("class") for one in lab.ended("disk", "disk")] == ["storage", None]
    keep("disk", lab.row("disk", "disk"))


def test_a_run_that_takes_too_long_is_ended(lab: FailureLab) -> None:
    [long] = lab.ended("slow", "long")
    assert long["class"] == "deadline"
    assert "record" in long, f"its last words are kept: {lab.row('slow', 'long')}"
    assert long["record"]["exit_code"] == 75
    keep("long", lab.row("slow", "long"))


def limit(lab: FailureLab, run: str, attempt: int) -> str:
    """The memory that the pod of an attempt was given."""
    [pod] = lab.witness.pods(lab.job("memory", run, attempt))
    [container] = pod["spec"]["containers"]
    return str(container["resources"]["limits"]["memory"])
