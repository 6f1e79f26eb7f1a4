"""`orch cancel`: ask for the end of runs, and end their Jobs here when no controller leads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from orchestrator.client.session import Session, find
from orchestrator.controller.loop import Controller
from orchestrator.controller.observed import ALL_RUNS, runs_of, unit_of


def cancel(session: Session, name: str, runs: Sequence[str]) -> tuple[list[str], bool]:
    """Cancel runs of a sweep (none named: all): (their names, whether another controller ends the Jobs)."""
    stored = session.sweep(name)
    chosen = [find(text, [stored]).run for text in runs] or list(stored.runs)
    asked = [run.id for run in chosen] if runs else [ALL_RUNS]
    session.command(name, lambda now: {"cancel": list(dict.fromkeys([*now.cancel, *asked]))})
    with session.lead() as make:
        if make:
            _end_jobs(session, make(threading.Event()), name, {run.id for run in chosen})
    return [run.name for run in chosen], make is None


def _end_jobs(session: Session, controller: Controller, name: str, runs: set[str]) -> None:
    """Turns of the controller until the runs' Jobs are ended and recorded; meanwhile nothing new starts."""
    suspended = session.sweep(name).control.suspend
    session.control(name, suspend=True)
    try:
        controller.step(name)
        while _living(session, name, runs):
            session.cluster.wait(session.poll_s)
            controller.step(name)
    finally:
        session.control(name, suspend=suspended)


def _living(session: Session, name: str, runs: set[str]) -> bool:
    for job in session.cluster.jobs(name):
        ours = {unit_of(job).id, *runs_of(job)} & runs
        if ours and not job.finished and (unit_of(job).stage == "train" or set(runs_of(job)) <= runs):
            return True
    return False
