"""A container that outlives the trainer keeps its pod Running: a while later the trainer's end decides."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.base import ObservedJob
from orchestrator.controller.evidence import OUTLIVED_S, outlived
from orchestrator.controller.outcome import classify
from orchestrator.controller.plan import DeleteJob, RecordAttempt
from tests.orchestrator.controller.scene import Scene, a_sweep
from tests.orchestrator.controller.test_outcome import BACKOFF, DONE, a_job, a_pod, said

ENDED = 160.0
"""When the pods of `a_pod` ended."""
LATE = ENDED + OUTLIVED_S


def running(exit_code: int | None, **changes: Any) -> ObservedJob:
    """An unfinished Job whose pod runs on, its trainer ended with this code."""
    return a_job(a_pod(exit_code, phase="Running", **changes), conditions={})


CASES = {
    "done": (running(0, message=DONE), None),
    "exit 0 without a record": (running(0), "unverified"),
    "failed with a record": (running(64, message=said("failed", 64)), "userError"),
    "failed without a record": (running(79), "oomCuda"),
    "killed for memory": (running(137, exit_reason="OOMKilled"), "oomHost"),
    "a done record and another exit code": (running(1, message=DONE), "unverified"),
    "after a pod that its queue took back": (
        a_job(a_pod(75, finished_at=50.0), a_pod(0, phase="Running", message=DONE), conditions={}),
        None,
    ),
}


@pytest.mark.parametrize(("job", "failure"), CASES.values(), ids=CASES)
def test_the_trainers_end_decides_once_the_pod_has_outlived_it(job: ObservedJob, failure: str | None) -> None:
    assert classify(outlived(job, LATE - 0.1)) is None  # it may just be about to end
    result = classify(outlived(job, LATE))
    assert result is not None
    assert result.failure == failure
    assert result.finished_at == ENDED


WAITS = {
    "the trainer runs": running(None, finished_at=None),
    "another pod of the Job lives": a_job(
        a_pod(0, phase="Running", message=DONE),
        a_pod(None, phase="Pending", started_at=None, finished_at=None),
        conditions={},
    ),
    "it is being deleted": replace(running(0, message=DONE), deleting=True),
    "its queue took it back: it is resumed": replace(running(75), suspended=True),
    "its pod is being deleted": running(75, gone_by=ENDED + 30),
    "no pod": a_job(conditions={}),
    "its pod ended: the Job controller will say so": a_job(a_pod(0, message=DONE), conditions={}),
    "the Job is finished": a_job(a_pod(0, message=DONE)),
    "the Job has failed": a_job(a_pod(0, phase="Running", message=DONE), failed=BACKOFF),
}


@pytest.mark.parametrize("job", WAITS.values(), ids=WAITS)
def test_any_other_job_is_left_to_its_owner(job: ObservedJob) -> None:
    assert outlived(job, LATE + 1e6) is job


def test_a_run_whose_sidecar_goes_on_is_recorded_as_done_and_its_job_deleted() -> None:
    scene = Scene(a_sweep(1, eval={"enabled": False})).fetched()
    [name] = scene.live("train")
    scene.cluster.finish(name)
    pod = replace(scene.cluster.made[name].pods[-1], phase="Running")
    scene.cluster.set_state(name, conditions={}, pods=(pod,))
    assert pod.finished_at is not None
    scene.cluster.now = pod.finished_at + 1
    assert scene.plan().actions == ()
    scene.cluster.now = pod.finished_at + OUTLIVED_S
    record, delete = scene.turn().actions
    assert isinstance(record, RecordAttempt)
    assert record.record.state == "done"
    assert record.record.evidence == (
        "its done record is there; the trainer ended, another container of its pod goes on, "
        "which the Job's deletion ends"
    )
    assert isinstance(delete, DeleteJob)
    assert delete.name == name
    assert set(scene.states().values()) == {"done"}


def test_a_native_sidecar_has_its_grace_before_the_trainer_counts_as_outlived() -> None:
    base = (Path(__file__).parents[3] / "manifests/jobs/base.yaml.j2").read_text(encoding="utf-8")
    [grace] = re.findall(r"terminationGracePeriodSeconds: (\d+)", base)
    assert float(grace) + 30 < OUTLIVED_S
