"""Progress as it goes: drawn in place on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from orchestrator.client.progress import BUSY, RunProgress
from orchestrator.screen import bars_fit, footer, progress_table, trained_seconds

LINE_EVERY_S = 5.0
"""Without a terminal a run's progress is told at most this often; a change of state at once."""
NAMES_SHOWN = 4
"""As many runs are named before a line that is news of all of them."""


class LiveView:
    """Progress on a terminal: one table that is drawn again in place."""

    def __init__(self, out: Console, slots: int = 1) -> None:
        self.out, self.slots = out, slots
        self._live = Live(console=out, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, runs: list[RunProgress]) -> None:
        table = progress_table(_that_fit(runs, self.out.height - 5), bars=bars_fit(self.out))
        self._live.update(Group(table, Text(footer(runs, trained_seconds(runs), self.slots), style="dim")))

    def say(self, line: str) -> None:
        self.out.print(line)


class LineView:
    """Progress without a terminal: a line when a run's state changes, and now and then how far it is."""

    def __init__(self, out: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.out, self.clock = out, clock
        self._told: dict[str, tuple[str, str, float]] = {}

    def __enter__(self) -> LineView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, runs: list[RunProgress]) -> None:
        told: dict[str, list[str]] = {}
        for one in runs:
            line = self._news(one)
            if line:
                told.setdefault(line, []).append(one.state.run.name)
        # Runs that share a Job have the same news.
        for line, names in told.items():
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            self.say(f"{', '.join(names[:NAMES_SHOWN])}{more}: {line}")

    def _news(self, one: RunProgress) -> str:
        """What is new of a run and due to be told, or nothing."""
        state, far = _state_of(one), one.progress.line() if one.progress else ""
        before = self._told.get(one.state.run.id)
        if before is None or before[0] != state:
            self._told[one.state.run.id] = (state, far, self.clock())
            first_in_queue = before is None and one.state.state == "pending" and not one.waits_for
            return "" if first_in_queue else _change(one)
        if before[1] == far or self.clock() < before[2] + LINE_EVERY_S:
            return ""
        self._told[one.state.run.id] = (state, far, self.clock())
        return far

    def say(self, line: str) -> None:
        self.out.print(line, soft_wrap=True)


def _state_of(one: RunProgress) -> str:
    """What must differ for a line to be told at once; a place in the queue is not told."""
    state = one.state
    attempt = "" if state.state == "pending" else f"{state.stage} {state.attempts}"
    return f"{state.state} {attempt} {state.failure} {one.waits_for}"


def _change(one: RunProgress) -> str:
    state = one.state
    if state.state == "failed":
        return f"failed in {state.stage}: {state.failure}: {state.evidence}"
    if state.state in BUSY:
        after = f" after {state.failure}" if state.failure else ""
        return f"{state.state}, attempt {state.attempts}{after}"
    if state.state == "pending" and state.failure:
        return f"pending after {state.failure}: {state.remedy}"
    return f"{state.state}, waits for {one.waits_for}" if one.waits_for else state.state


def _that_fit(runs: Sequence[RunProgress], lines: int) -> Sequence[RunProgress]:
    """Runs that are busy or failed first, as many as fit; in the sweep's order."""
    if len(runs) <= lines:
        return runs
    rank = {"running": 0, "evaluating": 0, "failed": 1, "trained": 2, "pending": 3}
    best = sorted(range(len(runs)), key=lambda i: (rank.get(runs[i].state.state, 4), i))[: max(lines, 1)]
    return [runs[i] for i in sorted(best)]


def view(out: Console, slots: int = 1) -> LiveView | LineView:
    """Live on a terminal, else lines."""
    return LiveView(out, slots) if out.is_terminal else LineView(out)
