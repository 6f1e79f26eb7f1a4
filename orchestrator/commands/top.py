"""`orch top`: who uses which GPUs, and what waits for what."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from orchestrator import screen
from orchestrator.client.session import Session
from orchestrator.client.top import Top, Use, Waiting, top

RUNS_SHOWN = 3


def show(session: Session, *, watch: bool = False) -> None:
    """Show it once, or again and again until Ctrl-C."""
    out, pause = screen.console(), threading.Event()
    draw(out, top(session), session.where)
    while watch:
        pause.wait(session.poll_s)
        found = top(session)
        out.clear()
        draw(out, found, session.where)


def draw(out: Console, found: Top, where: str) -> None:
    """GPUs in use pod by pod, sweeps that use or wait, and what for."""
    people: Counter[str] = Counter()
    for one in found.uses:
        people[one.submitted_by or "–"] += one.gpus
    said = ", ".join(f"{who} {gpus}" for who, gpus in people.most_common() if gpus)
    out.print(f"{found.gpus} GPUs in use {where}" + (f": {said}" if said else ""))
    if found.uses:
        out.print(_uses(found.uses, found.at))
    busy = {one.sweep for one in found.uses} | {one.sweep for one in found.waiting}
    if any(one.sweep in busy for one in found.shares):
        out.print(_shares(found, busy))
    for waiting in found.waiting:
        out.print(waiting_line(waiting), soft_wrap=True)
    if not found.led:
        out.print("no controller works", style="yellow")


def waiting_line(one: Waiting) -> str:
    """`waits: night: 12 runs (a, b, c, …): parallelism: 4 of at most 4 Jobs …; raise …`."""
    what = f"{len(one.runs)} run{'s' * (len(one.runs) != 1)} ({named(one.runs)})" if one.runs else "all"
    remedy = f"; {one.wait.remedy}" if one.wait.remedy else ""
    on = f" [{one.wait.on}]" if one.wait.on and one.wait.reason in ("fetch", "baseline") else ""
    return f"waits: {one.sweep}: {what}: {one.wait.reason}: {one.wait.message}{on}{remedy}"


def named(runs: Sequence[str]) -> str:
    """The first few names, and that there are more; `all` for none."""
    more = ", …" if len(runs) > RUNS_SHOWN else ""
    return ", ".join(runs[:RUNS_SHOWN]) + more if runs else "all"


def _uses(uses: Sequence[Use], now: float) -> Table:
    right = ("GPUs", "for", "GPU-hours")
    table = screen.grid("who", "sweep", "run", "stage", "GPUs", "node", "for", "GPU-hours", right=right)
    for one in uses:
        table.add_row(
            one.submitted_by or "–",
            one.sweep,
            named(one.runs),
            f"{one.stage} {one.attempt}",
            str(one.gpus),
            one.node or "–",
            screen.duration(now - one.since if one.since is not None else None),
            f"{one.gpu_hours:.1f}",
        )
    return table


def _shares(found: Top, busy: set[str]) -> Table:
    right = ("GPUs", "GPU-hours", "waiting")
    table = screen.grid("sweep", "who", "GPUs", "GPU-hours", "waiting", right=right)
    for one in found.shares:
        if one.sweep in busy:
            waiting = sum(len(part.runs) for part in found.waiting if part.sweep == one.sweep)
            table.add_row(
                one.sweep, one.submitted_by or "–", str(one.gpus), f"{one.gpu_hours:.1f}", str(waiting)
            )
    return table
