"""What the logs and states of a sweep say about how far it is."""

from __future__ import annotations

import pytest

from orchestrator.client.progress import RunProgress, newest, seconds_left
from orchestrator.controller.status import RunState, State
from orchestrator.sweep.expand import Run
from trainer.config import TrainConfig
from trainer.results import Progress


def _run(state: State, left: float | None = None, done: int = 0, total: int = 10) -> RunProgress:
    run = Run("a", "a-00000000", "0" * 64, "g", (), TrainConfig())
    known = None if left is None else Progress(stage="train", done=done, total=total, seconds_left=left)
    return RunProgress(RunState(run, state, "train", 1, "job"), known)


@pytest.mark.parametrize(
    ("runs", "done_s", "slots", "expected"),
    [
        pytest.param([], [], 1, None, id="no runs"),
        pytest.param([_run("pending")], [], 1, None, id="nothing was ever measured"),
        pytest.param([_run("done"), _run("trained")], [40.0], 1, None, id="nothing is left to train"),
        pytest.param([_run("running", 30.0, 7)], [], 1, 30.0, id="the one that runs says it"),
        pytest.param([_run("running", 30.0, 7), _run("pending")], [], 1, 130.0, id="others as long as it"),
        pytest.param([_run("pending"), _run("pending")], [40.0, 60.0], 1, 100.0, id="as long as those done"),
        pytest.param([_run("pending")] * 4, [60.0], 2, 120.0, id="two at once"),
        pytest.param(
            [_run("running", 90.0, 1), _run("running", 2.0, 9)], [], 2, 90.0, id="the longest at least"
        ),
    ],
)
def test_seconds_left(
    runs: list[RunProgress], done_s: list[float], slots: int, expected: float | None
) -> None:
    assert seconds_left(runs, done_s, slots) == (None if expected is None else pytest.approx(expected))


def test_newest_is_the_last_progress_line_among_other_lines() -> None:
    lines = [
        "loading",
        "[train] 1/8 steps · loss 0.5000\n",
        "[train] 2/8 steps · 812 tok/s · 42 s left",
        "warning",
    ]
    found = newest(lines)
    assert found is not None
    assert (found.done, found.total, found.tokens_per_s, found.seconds_left) == (2, 8, 812.0, 42.0)


def test_newest_of_a_log_without_progress_is_none() -> None:
    assert newest(["[info] 3 of 8", ""]) is None


@pytest.mark.parametrize(
    ("one", "share"),
    [
        (_run("running", 1.0, 5), 0.5),
        (_run("running", 1.0, 0, 0), 0.0),
        (_run("done"), 1.0),
        (_run("pending"), 0.0),
    ],
    ids=["half", "nothing to do", "done", "not begun"],
)
def test_share_of_the_job_that_is_done(one: RunProgress, share: float) -> None:
    assert one.share == share
