"""What the commands show: tables and accounts, by rich; orchestrator.live shows progress as it goes.

The only place besides orchestrator.results that decides how things look. It finds nothing out by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.box
from rich.console import Console, JustifyMethod, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.client.plan import SweepPlan, counts
from orchestrator.client.progress import BUSY, RunProgress, seconds_left
from orchestrator.client.why import Account, held
from orchestrator.controller.advice import FAILURES
from orchestrator.controller.outcome import AttemptRecord, FailureClass

PIPE_WIDTH = 160
BARS_FROM_WIDTH = 90
"""Narrower screens have no room for progress bars."""
COLOURS = {"running": "cyan", "evaluating": "cyan", "done": "green", "failed": "red", "cancelled": "yellow"}
CHANGES = {"+": "green", "~": "yellow", "=": "dim", "-": "red"}


def console(*, stderr: bool = False) -> Console:
    """The terminal, or lines of PIPE_WIDTH without colours when there is none."""
    width = None if os.environ.get("COLUMNS") else PIPE_WIDTH
    # Logs and evidence hold square brackets: no markup.
    one = Console(stderr=stderr, highlight=False, markup=False)
    return one if one.is_terminal else Console(stderr=stderr, highlight=False, markup=False, width=width)


def grid(*headings: str, right: Iterable[str] = ()) -> Table:
    """An empty table in the house's look; `right` headings are aligned right, only names fold."""
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        name = heading in ("run", "sweep", "condition")
        justify: JustifyMethod = "right" if heading in set(right) else "left"
        least = 12 if name else None
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=not name, min_width=least)
    return table


def show_plan(out: Console, plan: SweepPlan) -> None:
    """Every run with what submitting changes, its size, and what it may take."""
    table = grid(
        "", "run", "id", "steps", "tokens ≤", "≈ time", "state", right=("steps", "tokens ≤", "≈ time")
    )
    for one in plan.runs:
        table.add_row(
            Text(one.change, style=CHANGES[one.change]),
            _named(one.run.name, one.run.also),
            one.run.id[-8:],
            str(one.run.config.max_steps),
            amount(one.tokens),
            duration(one.seconds),
            one.state or "",
        )
    for run in plan.removed:
        table.add_row(Text("-", style=CHANGES["-"]), run.name, run.id[-8:], "", "", "", "removed")
    out.print(table)
    number = counts(plan.runs)
    total = amount(sum(one.tokens for one in plan.runs))
    out.print(
        f"{plan.sweep.metadata.name}: {len(plan.runs)} runs, {number['+']} new, {number['~']} changed, "
        f"{number['=']} exist; at most {total} tokens (steps × global batch × max_length); {_hours(plan)}"
    )
    for one in plan.runs:
        if one.run.also:
            out.print(f"one config, one run: {one.run.name} is also {', '.join(one.run.also)}")
    if plan.removed:
        out.print(f"- removed: {len(plan.removed)} runs are no longer in the file; --prune ends their Jobs")


def _hours(plan: SweepPlan) -> str:
    gpus = plan.sweep.spec.resources.gpus
    if not gpus:
        return "on the CPU"
    if plan.gpu_hours is None:
        return "GPU-hours: – (no run of this kind was measured yet)"
    return f"≈ {plan.gpu_hours:.1f} GPU-hours to go"


def _named(name: str, also: Sequence[str]) -> str:
    return f"{name} (+{len(also)} name{'s' * (len(also) > 1)})" if also else name


def show_sweeps(out: Console, sweeps: Sequence[Mapping[str, Any]], where: str = "here") -> None:
    """All stored Sweep objects: how many runs are where."""
    if not sweeps:
        out.print(f"no sweep was submitted {where}; submit one with `orch submit FILE`")
        return
    table = grid(
        "sweep",
        "runs",
        "done",
        "running",
        "failed",
        "GPU-hours",
        "condition",
        right=("runs", "done", "running", "failed", "GPU-hours"),
    )
    for one in sweeps:
        status = one.get("status") or {}
        number = status.get("counts") or {}
        running = number.get("running", 0) + number.get("evaluating", 0)
        table.add_row(
            one["metadata"]["name"],
            *(
                str(count)
                for count in (number.get("total", 0), number.get("done", 0), running, number.get("failed", 0))
            ),
            f"{status.get('gpuHours', 0):.1f}",
            condition(status),
        )
    out.print(table)


def condition(status: Mapping[str, Any]) -> str:
    """What the controller said last, in a few words: the refusal or halt if there is one."""
    by_type = {one["type"]: one for one in status.get("conditions") or []}
    complete = by_type.get("Complete", {}).get("message")
    return held(status) or str(complete or "not seen by a controller yet")


def bars_fit(out: Console) -> bool:
    """Whether progress bars are drawn there."""
    return out.is_terminal and out.width >= BARS_FROM_WIDTH


def progress_table(runs: Sequence[RunProgress], *, bars: bool) -> Table:
    """A line a run: state, progress, loss, speed, time left."""
    table = grid("run", "state", "progress", "loss", "tok/s", "left", right=("loss", "tok/s", "left"))
    for one in runs:
        state, known = one.state, one.progress
        again = f" ({state.attempts})" if state.attempts > 1 and state.state in BUSY else ""
        table.add_row(
            state.run.name,
            Text(state.state + again, style=COLOURS.get(state.state, "")),
            _bar(one) if bars and state.state in BUSY else share(one),
            f"{known.loss:.4f}" if known and known.loss is not None else "",
            f"{known.tokens_per_s:.0f}" if known and known.tokens_per_s is not None else "",
            clock(known.seconds_left) if known and known.seconds_left is not None else "",
        )
    return table


def _bar(one: RunProgress) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    line.add_row(ProgressBar(total=1.0, completed=one.share, width=10), share(one))
    return line


def share(one: RunProgress) -> str:
    """`3/8 steps`, the failed stage and its class, what it waits for, or nothing."""
    if one.state.state == "failed":
        return f"{one.state.stage}: {one.state.failure or 'failed'}"
    known = one.progress
    far = f"{known.done}/{known.total} {known.what}".rstrip() if known else ""
    return f"waits for {one.waits_for} {far}".rstrip() if one.waits_for else far


def footer(runs: Sequence[RunProgress], done_s: Sequence[float], slots: int) -> str:
    """`2 of 3 done, 1 running · 42 s left`."""
    number: dict[str, int] = {}
    for one in runs:
        number[one.state.state] = number.get(one.state.state, 0) + 1
    left = seconds_left(runs, done_s, slots)
    parts = [
        f"{number.pop('done', 0)} of {len(runs)} done",
        *(f"{count} {name}" for name, count in number.items()),
    ]
    return ", ".join(parts) + (f" · about {duration(left)} left" if left is not None else "")


def trained_seconds(runs: Sequence[RunProgress]) -> list[float]:
    """Seconds that the trainings which are done took."""
    records = [one.state.record for one in runs if one.state.state in ("done", "trained", "evaluating")]
    spans = [(one.started_at, one.finished_at) for one in records if one and one.stage == "train"]
    return [end - start for start, end in spans if start is not None and end is not None]


def show_account(out: Console, account: Account) -> None:
    """Each attempt of a run with its evidence and what followed, then where it is now."""
    state = account.state
    out.print(f"{state.run.name} ({state.run.id}): {state.state}", style="bold")
    for one in account.attempts:
        out.print(attempt_line(one), soft_wrap=True)
        if one.remedy:
            out.print(f"    then: {one.remedy}", soft_wrap=True)
    if not account.attempts:
        out.print("  no attempt has ended yet")
    if state.state == "failed" and not any(one.job == state.job for one in account.attempts):
        out.print(f"  {state.stage}: {state.failure}: {state.evidence}", soft_wrap=True)
    out.print(f"  next: {what_next(account)}", soft_wrap=True)
    if account.log:
        out.print("  the end of its log:", style="dim")
        for line in account.log:
            out.print(Text(f"    {line}"), soft_wrap=True)


def attempt_line(one: AttemptRecord) -> str:
    """`train 1: oomHost, after 42 s on node-3: the kernel killed it …`."""
    spent = duration(one.finished_at - one.started_at) if one.started_at and one.finished_at else ""
    where = "".join([f", after {spent}" if spent else "", f" on {one.node}" if one.node else ""])
    changed = ", ".join(f"{name} {value}" for name, value in one.overrides.items())
    return f"  {one.stage} {one.attempt}: {one.failure or 'done'}{where}: {one.evidence}" + (
        f" (with {changed})" if changed else ""
    )


def what_next(account: Account) -> str:
    """What happens to the run without anyone's doing, or what someone can do."""
    state = account.state
    advice = FAILURES[state.failure or FailureClass.UNKNOWN]
    by_hand = f"`orch retry {account.sweep} {state.run.name}` gives it another attempt"
    if account.wait:
        remedy = f"; {account.wait.remedy}" if account.wait.remedy else ""
        return f"it waits, {account.wait.reason}: {account.wait.message}{remedy}"
    return {
        "pending": "it starts",
        "running": f"attempt {state.attempts} runs",
        "trained": "its adapter waits to be evaluated",
        "evaluating": "its adapter is being evaluated",
        "done": "nothing: it is done",
        "failed": f"nothing, {state.remedy or 'for it cannot be made'}; {advice}; {by_hand}",
        "cancelled": f"nothing; {by_hand}",
    }[state.state]


def clock(seconds: float) -> str:
    """0:42, 3:05, 2:10:00."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def duration(seconds: float | None) -> str:
    """42 s, 3 min 05 s, 2 h 10 min, 3 d 4 h; – for None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def amount(count: int) -> str:
    """Tokens with three figures: 512, 41.0 k, 8.19 M, 1.2 G."""
    size = float(count)
    for unit in ("", " k", " M", " G", " T"):
        if size < 1000 or unit == " T":
            return f"{count}" if not unit else f"{size:.3g}{unit}"
        size /= 1000
    raise AssertionError
