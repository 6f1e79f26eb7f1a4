"""What a command that changed something ends with: a controller left at work, or the results."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator import live, screen
from orchestrator.client.session import Session
from orchestrator.client.wait import INTERRUPTED, exit_code, wait
from orchestrator.client.why import why
from orchestrator.commands.measured import results_of
from orchestrator.controller.status import RunState
from orchestrator.results import show


def leave(session: Session, name: str) -> str:
    """Start a controller in the background unless one leads or nothing is to do; says how to follow it."""
    if _over(session, name):
        return f"nothing to do; `{session.command_line('results', name)}` shows what was measured"
    return session.leave(name)


def follow(session: Session, name: str, again: str) -> int:
    """Stay until nothing is left to do, then show the results and why runs failed; the exit code."""
    out = screen.console()
    if _over(session, name):
        out.print("nothing to do")
        code = exit_code(session, name)
    else:
        with live.view(out, slots=session.slots(name)) as view:
            code = wait(session, name, view)
    if code == INTERRUPTED:
        what = "to watch again" if session.remote else "to go on where it was, run the same command again"
        out.print(f"{what}: {session.command_line(again)}", soft_wrap=True)
        return code
    stored = session.sweep(name)
    results = results_of(session, stored)
    if results.tables:
        show(results, out)
    states = session.states(stored)
    for alike in _failed_alike(states):
        screen.show_account(out, why(session, f"{name}/{alike[0].run.id}"))
        if alike[1:]:
            others = ", ".join(one.run.name for one in alike[1:])
            out.print(f"{others}: failed alike; `orch why RUN` tells", soft_wrap=True)
    left = [one.run.name for one in states if one.state in ("pending", "trained")]
    if left:
        out.print(f"not run: {', '.join(left)}; {screen.condition(stored.object.get('status') or {})}")
    return code


def _over(session: Session, name: str) -> bool:
    """Whether nothing is to do and all was told: a controller that died last may still owe an end."""
    stored = session.sweep(name)
    told = bool(stored.status.get("finished")) and not stored.status.get("owed")
    return told and session.settled(stored)


def _failed_alike(states: Iterable[RunState]) -> list[list[RunState]]:
    """Failed runs by what was seen: one bad dataset need not be told fifty times."""
    alike: dict[tuple[str, str], list[RunState]] = {}
    for one in states:
        if one.state == "failed":
            alike.setdefault((one.stage, one.evidence), []).append(one)
    return list(alike.values())
