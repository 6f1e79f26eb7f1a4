"""What became of an attempt: the Job, its pods and the trainer's record → one outcome with its evidence.

Pure. The order of evidence is `evidence.RULES`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.cluster.base import ObservedJob
from orchestrator.controller.evidence import EVIDENCE_LIMIT, RULES, decisive, look
from orchestrator.controller.evidence import FailureClass as FailureClass
from trainer.results import Record, Stage


class Outcome(BaseModel):
    """How an attempt ended. Times are Unix seconds; `gpu_seconds` sums over pods (container time × GPUs)."""

    model_config = ConfigDict(frozen=True)

    state: Literal["done", "failed"]
    failure: FailureClass | None = None
    evidence: str
    record: Record | None = None
    gpu_seconds: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    node: str | None = None


class AttemptRecord(BaseModel):
    """The durable outcome of one attempt, stored under its Job's name; the JSON key of `failure` is `class`.

    `overrides` is what this attempt ran with beyond its config, `remedy` what followed from its failure.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    v: int = 1
    job: str
    sweep: str
    run_id: str
    stage: Stage
    attempt: int
    digest: str = ""
    runs: tuple[str, ...] = ()
    state: Literal["done", "failed"]
    failure: FailureClass | None = Field(None, alias="class")
    evidence: str = ""
    remedy: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    started_at: float | None = None
    finished_at: float | None = None
    gpu_seconds: float = 0.0
    node: str | None = None
    record: Record | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON value that is stored."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def classify(job: ObservedJob) -> Outcome | None:
    """The outcome of a finished Job; None while it is neither Complete nor Failed."""
    if not job.finished:
        return None
    seen = look(job)
    failure, evidence = next(verdict for rule in RULES if (verdict := rule(seen)) is not None)
    return outcome(job, failure, evidence, seen.record)


def outcome(job: ObservedJob, failure: FailureClass | None, evidence: str, record: Record | None) -> Outcome:
    """An outcome with the times, node and GPU-seconds of the Job's pods filled in."""
    starts = [pod.started_at for pod in job.pods if pod.started_at is not None]
    ends = [pod.finished_at for pod in job.pods if pod.finished_at is not None]
    last = decisive(job)
    return Outcome(
        state="done" if failure is None else "failed",
        failure=failure,
        evidence=evidence[:EVIDENCE_LIMIT],
        record=record,
        gpu_seconds=gpu_seconds(job),
        started_at=min(starts, default=None),
        finished_at=max(ends, default=None),
        node=last.node if last else None,
    )


def gpu_seconds(job: ObservedJob, now: float | None = None) -> float:
    """Σ over pods of container time × GPUs; a pod still running counts up to `now` when that is given."""
    total = 0.0
    for pod in job.pods:
        end = pod.finished_at if pod.finished_at is not None else now
        if pod.started_at is not None and end is not None:
            total += max(0.0, end - pod.started_at) * job.gpus
    return total
