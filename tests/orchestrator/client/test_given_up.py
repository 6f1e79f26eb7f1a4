"""What the controller's status tells of runs that Jobs and records show as waiting."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.client.given_up import with_given_up
from orchestrator.controller.status import RunState, State
from orchestrator.sweep.expand import Run
from trainer.config import TrainConfig

RUN = Run("a", "a-00000000", "0" * 64, "g", (), TrainConfig())


def failure(stage: str, attempt: int, run: str = RUN.id) -> dict[str, Any]:
    return {"run": run, "stage": stage, "attempt": attempt, "class": "lost", "evidence": "vanished"}


CASES: dict[str, tuple[State, int, list[dict[str, Any]], tuple[str, str | None]]] = {
    "nothing is told": ("pending", 0, [], ("pending", None)),
    "its Job cannot be made": (
        "pending",
        0,
        [failure("train", 1)],
        ("failed", "demo--a-00000000-train-1"),
    ),
    "its second cannot": (
        "pending",
        1,
        [failure("train", 2), failure("train", 1)],
        ("failed", "demo--a-00000000-train-2"),
    ),
    "its first attempt failed and is recorded": ("pending", 1, [failure("train", 1)], ("pending", None)),
    "another run's": ("pending", 0, [failure("train", 1, "b-00000000")], ("pending", None)),
    "it runs by now": ("running", 1, [failure("train", 2)], ("running", None)),
}


@pytest.mark.parametrize(("state", "attempts", "told", "expected"), CASES.values(), ids=CASES)
def test_a_run_that_was_given_up_without_a_record_has_failed(
    state: State, attempts: int, told: list[dict[str, Any]], expected: tuple[str, str | None]
) -> None:
    [seen] = with_given_up("demo", [RunState(RUN, state, "train", attempts)], {"failures": told})
    assert (seen.state, seen.job) == expected


def test_what_it_waits_for_was_given_up() -> None:
    [seen] = with_given_up(
        "demo", [RunState(RUN, "pending", "train", 0)], {"failures": [failure("fetch", 1)]}
    )
    assert (seen.state, seen.stage, seen.failure, seen.evidence) == ("failed", "fetch", "lost", "vanished")
    assert seen.job is not None
    assert "-fetch-1" in seen.job
