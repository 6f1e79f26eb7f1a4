"""What someone can do about a failure that is final, or about what holds a sweep: PURE, in words."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.controller.outcome import FailureClass

NOT_AGAIN = "not tried again"
"""A remedy that begins so is final: nothing follows unless someone does something."""

FAILURES: Mapping[FailureClass, str] = {
    FailureClass.PREEMPTED: "raise retry.preempted or scheduling.priority and submit again",
    FailureClass.NODE_LOST: "look at its node; `orch retry` tries elsewhere",
    FailureClass.GPU_FAULT: "have its node looked at; `orch retry` goes on from its checkpoint",
    FailureClass.OOM_HOST: "raise resources.memory (and maxMemory of the profile) and submit again",
    FailureClass.OOM_CUDA: "ask for larger GPUs, or set gradient_checkpointing or a shorter max_length",
    FailureClass.IMAGE_PULL: "correct image or imagePullSecrets in the profile, then `orch retry`",
    FailureClass.CONFIG: "make what is missing, or correct the profile, then `orch retry`",
    FailureClass.UNSCHEDULABLE: "lower resources or free nodes, then `orch retry`",
    FailureClass.STORAGE: "free space (`orch gc`) or enlarge the volume or tmpSize, then `orch retry`",
    FailureClass.DEADLINE: "raise resources.maxDuration and submit again, then `orch retry`: it resumes",
    FailureClass.STALLED: "`orch logs` shows where it stopped; `orch retry` goes on from its checkpoint",
    FailureClass.DIVERGED: "it is a result; a lower learning_rate or more warmup is another run",
    FailureClass.USER_ERROR: "correct the sweep's file and submit it again",
    FailureClass.INTERNAL: "`orch logs` has the trace; once its cause is mended, `orch retry`",
    FailureClass.UNVERIFIED: "`orch logs` shows how it ended; `orch retry` confirms what is done in seconds",
    FailureClass.LOST: "see what deletes its Jobs or pods, then `orch retry`",
    FailureClass.UNKNOWN: "`orch logs` and its node may tell more; `orch retry` goes on from its checkpoint",
    FailureClass.CANCELLED: "`orch retry` takes it back",
}

CONDITIONS: Mapping[str, str] = {
    "CanaryFailed": "correct it and submit again, or `orch retry {sweep}` if it is mended already",
    "SameFailure": "correct it and submit again, or `orch retry {sweep}` if it is mended already",
    "CannotRender": "correct the profile or the sweep's file; then it goes on by itself",
    "Requested": "`orch resume {sweep}` goes on",
    "QuotaExceeded": "it is tried again every 30 s; free or raise the quota, or ask for less",
    "Forbidden": "it is tried again every 30 s; whoever administrates the cluster can allow it",
    "Invalid": "correct the sweep's file and submit it again",
    "SomeFailed": "`orch why RUN` tells why; `orch retry {sweep}` tries those again",
}
"""By the condition's reason; those that are missing say what to do themselves."""


def after(failure: FailureClass | None, remedy: str | None) -> str:
    """What followed from a failure and, when nothing will, what someone can do; empty if neither is known."""
    said = remedy or ""
    final = said.startswith(NOT_AGAIN) or not said
    advice = FAILURES.get(failure, "") if failure and final else ""
    return "; ".join(filter(None, (said, advice)))


def about(reason: str, sweep: str) -> str:
    """What someone can do about a condition of a sweep; empty when it says so itself, or nothing need be."""
    return CONDITIONS.get(reason, "").format(sweep=sweep)


def with_advice(message: str, reason: str, sweep: str) -> str:
    """A condition's message with what someone can do about it."""
    return "; ".join(filter(None, (message, about(reason, sweep))))
