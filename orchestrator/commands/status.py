"""`orch status`: all sweeps, or every run of one."""

from __future__ import annotations

import threading
from typing import Any

from orchestrator import live, screen
from orchestrator.client.progress import progress_of
from orchestrator.client.session import Session

WATCH_S = 1.0


def to_json(session: Session, sweep: str | None) -> dict[str, Any]:
    """All sweeps with their status, or one with its runs; field names stay."""
    if sweep is None:
        objects = session.cluster.sweeps()
        sweeps = [{"name": one["metadata"]["name"], "status": one.get("status") or {}} for one in objects]
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


def show(session: Session, sweep: str | None, *, watch: bool) -> None:
    """Show it once, or again and again until nothing is left to do."""
    out = screen.console()
    if sweep is None:
        screen.show_sweeps(out, session.cluster.sweeps())
        return
    if watch:
        pause = threading.Event()  # cluster.wait would act for the controller
        with live.view(out) as view:
            while not session.settled(stored := session.sweep(sweep)):
                view.show(progress_of(session, stored))
                pause.wait(WATCH_S)
    stored = session.sweep(sweep)
    runs = progress_of(session, stored)
    out.print(screen.progress_table(runs, bars=screen.bars_fit(out)))
    out.print(screen.footer(runs, screen.trained_seconds(runs), 1))
    if stored.control.suspend:
        out.print("suspended: submit its file again to go on")
    elif not session.led() and not session.settled(stored):
        out.print("no controller works on it: submit its file again to go on")
