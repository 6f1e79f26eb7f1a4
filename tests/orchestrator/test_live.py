"""Progress as it goes, on a terminal and without one."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from orchestrator.client.progress import RunProgress
from orchestrator.controller.outcome import FailureClass
from orchestrator.controller.status import RunState, State
from orchestrator.live import LINE_EVERY_S, LineView, LiveView, view
from orchestrator.screen import bars_fit, progress_table
from orchestrator.sweep.expand import Run
from trainer.config import TrainConfig
from trainer.results import Progress, Stage


def _run(
    state: State, done: int | None = None, *, name: str = "lr1e5", stage: Stage = "train", attempt: int = 1
) -> RunProgress:
    run = Run(name, f"{name}-00000000", "0" * 64, "g", (), TrainConfig())
    known = None if done is None else Progress(stage="train", done=done, total=8, what="steps", loss=0.5)
    return RunProgress(RunState(run, state, stage, attempt, "job"), known)


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_tell_changes_at_once_and_progress_now_and_then() -> None:
    out, clock = io.StringIO(), Clock()
    lines = LineView(Console(file=out, markup=False), clock)
    for now, one in [
        (0.0, _run("pending")),
        (1.0, _run("running")),
        (2.0, _run("running", 1)),
        (1.0 + LINE_EVERY_S, _run("running", 2)),
        (2.0 + LINE_EVERY_S, _run("running", 3)),
        (3.0 + LINE_EVERY_S, _run("trained")),
        (99.0, _run("trained")),
        (100.0, _run("evaluating", stage="eval")),
        (101.0, _run("done", stage="eval")),
    ]:
        clock.now = now
        lines.show([one])
    assert out.getvalue().splitlines() == [
        "lr1e5: running, attempt 1",
        "lr1e5: [train] 2/8 steps · loss 0.5000",
        "lr1e5: trained",
        "lr1e5: evaluating, attempt 1",
        "lr1e5: done",
    ]


def test_lines_tell_why_a_run_waits_again() -> None:
    out = io.StringIO()
    lines = LineView(Console(file=out, markup=False))
    waiting = _run("pending")
    failed = replace(waiting.state, failure=FailureClass.OOM_HOST, remedy="tried again (1 of 2)")
    lines.show([_run("running")])
    lines.show([replace(waiting, state=failed)])
    lines.show([replace(waiting, waits_for="fetch")])
    assert out.getvalue().splitlines()[1:] == [
        "lr1e5: pending after oomHost: tried again (1 of 2)",
        "lr1e5: pending, waits for fetch",
    ]


def test_without_a_terminal_there_are_lines() -> None:
    assert isinstance(view(Console(file=io.StringIO())), LineView)
    assert isinstance(view(Console(file=io.StringIO(), force_terminal=True)), LiveView)


@pytest.mark.parametrize("width", [80, 100])
def test_the_live_table_fits_the_screen(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, height=20, markup=False)
    runs = [_run("running", 3, name="lmbda0_bs16_lr2e5"), _run("failed"), _run("trained")]
    progress = Progress(stage="train", done=900, total=1000, what="steps", loss=0.1234, tokens_per_s=81234.0,
                        seconds_left=36000.0)  # fmt: skip
    console.print(progress_table([replace(runs[0], progress=progress), *runs[1:]], bars=bars_fit(console)))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "lmbda0_bs16_lr2e5   running   900/1000 steps   0.1234   81234   10:00:00" in lines[2]


def test_the_live_view_shows_what_is_busy_when_not_all_fit() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=8, force_terminal=True, markup=False, color_system=None)
    runs = [*(_run("done", name=f"d{i}") for i in range(30)), _run("running", 3, name="busy")]
    with LiveView(console) as live:
        live.show(runs)
    assert "busy" in out.getvalue()
    assert "30 of 31 done, 1 running" in out.getvalue()
    assert "d29" not in out.getvalue()
