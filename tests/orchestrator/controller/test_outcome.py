"""classify: every kind of evidence, and which of two wins."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.cluster.base import Condition, ObservedJob, ObservedPod
from orchestrator.controller.outcome import AttemptRecord, FailureClass, classify, gpu_seconds
from orchestrator.sweep import naming
from orchestrator.sweep.spec import Retry

DIGEST = "ab" * 32
RUN = "lr5e6-abababab"


def a_job(
    *pods: ObservedPod, failed: Condition | None = None, stage: str = "train", **changes: Any
) -> ObservedJob:
    """A Job of RUN, Complete unless `failed` says otherwise."""
    state = {"Failed": failed} if failed else {"Complete": Condition("CompletionsReached")}
    return ObservedJob(
        name="s--lr5e6-abababab-train-1",
        uid="u",
        labels=naming.labels("s", RUN, stage, 1),
        annotations=naming.job_annotations(RUN, DIGEST),
        created_at=0.0,
        pods=pods,
        **({"conditions": state, "gpus": 2} | changes),
    )


def a_pod(exit_code: int | None = None, **changes: Any) -> ObservedPod:
    phase = "Succeeded" if exit_code == 0 else "Failed"
    values = {"phase": phase, "exit_code": exit_code, "started_at": 100.0, "finished_at": 160.0, "node": "n1"}
    return ObservedPod("p", **(values | changes))


def said(status: str, exit_code: int, **changes: Any) -> str:
    record = {
        "stage": "train",
        "run_id": RUN,
        "config_digest": DIGEST,
        "status": status,
        "exit_code": exit_code,
    }
    return json.dumps(record | changes)


BACKOFF = Condition("BackoffLimitExceeded", "Job has reached the specified backoff limit")
DONE = said("done", 0)


def disrupted(reason: str, **changes: Any) -> ObservedPod:
    return a_pod(conditions={"DisruptionTarget": Condition(reason, "why")}, **changes)


def by_rule(message: str) -> Condition:
    return Condition("PodFailurePolicy", message)


CASES = {
    "complete with its done record is done": (a_job(a_pod(0, message=DONE)), None),
    "done wins over an OOMKilled child": (a_job(a_pod(0, message=DONE, exit_reason="OOMKilled")), None),
    "done wins over a disruption": (
        a_job(disrupted("EvictionByEvictionAPI", exit_code=0, message=DONE)),
        None,
    ),
    "a done record without Complete is confirmed by another attempt": (
        a_job(a_pod(0, message=DONE), failed=BACKOFF),
        "unverified",
    ),
    "a done record without Complete wins over a disruption": (
        a_job(disrupted("DeletionByTaintManager", message=DONE), failed=BACKOFF),
        "unverified",
    ),
    "complete without a record is unverified": (a_job(a_pod(0)), "unverified"),
    "complete with the pod gone is unverified": (a_job(), "unverified"),
    "a done record of another run is not ours": (
        a_job(a_pod(0, message=said("done", 0, run_id="lr1e5-cdcdcdcd"))),
        "unverified",
    ),
    "a done record of another stage is not ours": (
        a_job(a_pod(0, message=said("done", 0, stage="eval"))),
        "unverified",
    ),
    "a done record of another config is not ours": (
        a_job(a_pod(0, message=said("done", 0, config_digest="cd" * 32))),
        "unverified",
    ),
    "a record that is no JSON is no record": (a_job(a_pod(0, message="done!")), "unverified"),
    "half a record is no record": (a_job(a_pod(75, message=DONE[20:]), failed=BACKOFF), "preempted"),
    "preempted by the scheduler": (a_job(disrupted("PreemptionByScheduler"), failed=BACKOFF), "preempted"),
    "evicted through the API": (a_job(disrupted("EvictionByEvictionAPI"), failed=BACKOFF), "preempted"),
    "ended by the kubelet": (a_job(disrupted("TerminationByKubelet"), failed=BACKOFF), "preempted"),
    "its node was lost": (a_job(disrupted("DeletionByTaintManager"), failed=BACKOFF), "nodeLost"),
    "its node was removed": (a_job(disrupted("DeletionByPodGC"), failed=BACKOFF), "nodeLost"),
    "a disruption wins over the exit code": (
        a_job(disrupted("PreemptionByScheduler", exit_code=70), failed=BACKOFF),
        "preempted",
    ),
    "a disruption of an earlier pod of the Job counts": (
        a_job(disrupted("DeletionByPodGC"), a_pod(137, finished_at=200.0), failed=BACKOFF),
        "nodeLost",
    ),
    "suspended by its queue": (a_job(a_pod(137), failed=BACKOFF, suspended=True), "preempted"),
    "over its deadline, although it could checkpoint": (
        a_job(a_pod(75, pod_reason="DeadlineExceeded"), failed=BACKOFF),
        "deadline",
    ),
    "evicted for its use of storage": (a_job(a_pod(137, pod_reason="Evicted"), failed=BACKOFF), "storage"),
    "killed for memory": (a_job(a_pod(137, exit_reason="OOMKilled"), failed=BACKOFF), "oomHost"),
    "killed for memory wins over the record": (
        a_job(a_pod(70, exit_reason="OOMKilled", message=said("failed", 70)), failed=BACKOFF),
        "oomHost",
    ),
    "a record says bad config": (a_job(a_pod(64, message=said("failed", 64)), failed=BACKOFF), "userError"),
    "a record says bad data": (a_job(a_pod(65, message=said("failed", 65)), failed=BACKOFF), "userError"),
    "a record wins over the code a launcher made of it": (
        a_job(a_pod(1, message=said("failed", 79)), failed=BACKOFF),
        "oomCuda",
    ),
    "a record of an internal error": (
        a_job(a_pod(70, message=said("failed", 70)), failed=BACKOFF),
        "internal",
    ),
    "an internal error on a full disk": (
        a_job(
            a_pod(70, message=said("failed", 70, error="OSError: No space left on device")), failed=BACKOFF
        ),
        "storage",
    ),
    "an internal error of the GPU": (
        a_job(
            a_pod(70, message=said("failed", 70, error="CUDA error: uncorrectable ECC error")), failed=BACKOFF
        ),
        "gpuFault",
    ),
    "a bad config that speaks of ECC is still a bad config": (
        a_job(a_pod(64, message=said("failed", 64, error="no dataset ECC")), failed=BACKOFF),
        "userError",
    ),
    "no record, for its disk is full": (
        a_job(a_pod(70, message="the volume of x takes no record: No space left on device"), failed=BACKOFF),
        "storage",
    ),
    "no record, and the log's end speaks of a full disk": (
        a_job(a_pod(1, message="OSError: [Errno 28] No space left on device"), failed=BACKOFF),
        "storage",
    ),
    "no record and a full disk, but it asks to be run again": (
        a_job(a_pod(75, message="No space left on device"), failed=BACKOFF),
        "preempted",
    ),
    "exit 64": (a_job(a_pod(64), failed=BACKOFF), "userError"),
    "exit 65": (a_job(a_pod(65), failed=BACKOFF), "userError"),
    "exit 70": (a_job(a_pod(70), failed=BACKOFF), "internal"),
    "exit 75 without other evidence": (a_job(a_pod(75), failed=BACKOFF), "preempted"),
    "exit 77": (a_job(a_pod(77), failed=BACKOFF), "stalled"),
    "exit 78": (a_job(a_pod(78), failed=BACKOFF), "diverged"),
    "exit 79": (a_job(a_pod(79), failed=BACKOFF), "oomCuda"),
    "exit 1, an exception without a record": (a_job(a_pod(1), failed=BACKOFF), "internal"),
    "exit 127, no such command": (a_job(a_pod(127), failed=BACKOFF), "config"),
    "the container did not start": (a_job(a_pod(128, exit_reason="StartError"), failed=BACKOFF), "config"),
    "SIGTERM before the trainer could catch it": (a_job(a_pod(143), failed=BACKOFF), "preempted"),
    "a local process ended by SIGTERM": (a_job(a_pod(-15), failed=BACKOFF), "preempted"),
    "a bare 137": (a_job(a_pod(137), failed=BACKOFF), "unknown"),
    "a local process ended by SIGKILL": (a_job(a_pod(-9), failed=BACKOFF), "unknown"),
    "exit 0 of a failed Job": (a_job(a_pod(0), failed=BACKOFF), "unverified"),
    "an exit code nobody knows": (a_job(a_pod(3), failed=BACKOFF), "unknown"),
    "the Job's deadline": (a_job(failed=Condition("DeadlineExceeded", "too long")), "deadline"),
    "the Job's condition tells of a disruption": (
        a_job(failed=by_rule("Pod d/x has condition DisruptionTarget matching FailJob rule at index 0")),
        "preempted",
    ),
    "the Job's condition tells the exit code": (
        a_job(failed=by_rule("Container t for pod d/x failed with exit code 78 matching FailJob rule")),
        "diverged",
    ),
    "a process that is gone without exit code": (a_job(a_pod(None), failed=Condition("")), "lost"),
    "nothing left": (a_job(failed=BACKOFF), "lost"),
}


@pytest.mark.parametrize(("job", "failure"), CASES.values(), ids=CASES)
def test_classify_names_the_class_and_says_why(job: ObservedJob, failure: str | None) -> None:
    outcome = classify(job)
    assert outcome is not None
    assert outcome.failure == failure
    assert outcome.state == ("failed" if failure else "done")
    assert outcome.evidence


@pytest.mark.parametrize("conditions", [{}, {"FailureTarget": BACKOFF}, {"SuccessCriteriaMet": BACKOFF}])
def test_classify_waits_until_complete_or_failed(conditions: dict[str, Condition]) -> None:
    assert classify(a_job(a_pod(0, message=DONE), conditions=conditions)) is None


def test_classify_shows_the_end_of_an_error() -> None:
    job = a_job(a_pod(64, message=said("failed", 64, error="x" * 2000 + "\nlmbda: got 2")), failed=BACKOFF)
    evidence = classify(job).evidence
    assert evidence.startswith("record: exit 64, bad config or usage: ")
    assert evidence.endswith("x lmbda: got 2")
    assert len(evidence) <= 600


def test_classify_says_of_what_a_strange_record_speaks() -> None:
    other = classify(a_job(a_pod(0, message=said("done", 0, run_id="lr1e5-cdcdcdcd"))))
    assert other.evidence.endswith("its record speaks of 'lr1e5-cdcdcdcd', not of this attempt")
    forged = classify(a_job(a_pod(0, message=said("done", 0, config_digest="cd" * 32))))
    assert forged.evidence.endswith("its record speaks of config cdcdcdcd, not of this run's")


def test_classify_tells_where_and_when() -> None:
    outcome = classify(a_job(a_pod(0, message=DONE)))
    assert (outcome.node, outcome.started_at, outcome.finished_at) == ("n1", 100.0, 160.0)
    assert outcome.gpu_seconds == 120.0


def test_a_baselines_record_may_call_itself_an_evaluation() -> None:
    message = said("done", 0, stage="eval", config_digest="cd" * 32)
    assert classify(a_job(a_pod(0, message=message), stage="baseline")).state == "done"


def test_gpu_seconds_sums_over_pods_and_counts_a_running_one_up_to_now() -> None:
    first, second = a_pod(75), a_pod(None, started_at=200.0, finished_at=None)
    job = a_job(first, second)
    assert gpu_seconds(job) == 2 * 60.0
    assert gpu_seconds(job, now=230.0) == 2 * (60.0 + 30.0)
    assert gpu_seconds(replace(job, gpus=0), now=230.0) == 0.0


def test_an_attempt_record_is_the_same_after_json() -> None:
    record = AttemptRecord(
        job="j", sweep="s", run_id=RUN, stage="train", attempt=2, state="failed",
        failure=FailureClass.OOM_HOST, evidence="e", overrides={"memory": "12Gi"},
    )  # fmt: skip
    value = json.loads(json.dumps(record.to_json()))
    assert value["class"] == "oomHost"
    assert AttemptRecord.model_validate(value) == record


def test_every_class_has_a_budget() -> None:
    budgets = set(Retry.model_fields) - {"oomHostMemory"}
    assert {failure.value for failure in FailureClass} - {"cancelled"} == budgets
