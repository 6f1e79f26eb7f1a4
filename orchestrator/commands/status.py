"""`orch status`: all sweeps, or every run of one."""

from __future__ import annotations

import threading
from typing import Any

from orchestrator import live, screen
from orchestrator.client.progress import progress_of
from orchestrator.client.session import Session, submitter
from orchestrator.client.why import held


def to_json(session: Session, sweep: str | None, *, mine: bool = False) -> dict[str, Any]:
    """All sweeps with their status, or one with its runs; field names stay."""
    if sweep is None:
        sweeps = [
            {
                "name": one["metadata"]["name"],
                "submitted_by": submitter(one),
                "status": one.get("status") or {},
            }
            for one in session.objects(mine=mine)
        ]
        return {"v": 1, "controller": session.led(), "sweeps": sweeps}
    stored = session.sweep(sweep)
    return {
        "v": 1,
        "controller": session.led(),
        "sweep": stored.name,
        "finished": session.settled(stored),
        "status": stored.object.get("status") or {},
        "runs": [one.to_json() for one in progress_of(session, stored)],
    }


def show(session: Session, sweep: str | None, *, watch: bool, mine: bool = False) -> None:
    """Show it once, or again and again until nothing is left to do."""
    out = screen.console()
    if sweep is None:
        screen.show_sweeps(out, session.objects(mine=mine), session.where)
        return
    if watch:
        pause = threading.Event()  # cluster.wait would act for the controller
        with live.view(out) as view:
            while not session.settled(stored := session.sweep(sweep)):
                view.show(progress_of(session, stored))
                pause.wait(session.poll_s)
    stored = session.sweep(sweep)
    runs = progress_of(session, stored)
    out.print(screen.progress_table(runs, bars=screen.bars_fit(out)))
    out.print(screen.footer(runs, screen.trained_seconds(runs), 1))
    if stored.control.suspend:
        out.print(f"suspended: `{session.command_line('resume', stored.name)}` goes on", soft_wrap=True)
    elif not session.led() and not session.settled(stored):
        out.print(f"no controller works on it: {session.unled}", soft_wrap=True)
    elif session.remote and (said := held(stored.status, stored.name)):
        out.print(said, soft_wrap=True)
