"""What a command that changed something ends with: a controller left at work, or the results."""

from __future__ import annotations

from orchestrator import live, screen
from orchestrator.client.session import Session
from orchestrator.client.wait import INTERRUPTED, start_controller, wait
from orchestrator.client.why import why
from orchestrator.commands.measured import results_of
from orchestrator.results import show


def leave(session: Session, name: str) -> str:
    """Start a controller in the background unless one leads or nothing is to do; says how to follow it."""
    if session.settled(session.sweep(name)):
        return f"nothing to do; `orch results {name}` shows what was measured"
    started = start_controller(session)
    who = f"a controller was started, its log is {session.log}" if started else "a controller is at work"
    return f"{who}; follow it with `orch status {name} -w`, then `orch results {name}`"


def follow(session: Session, name: str, again: str) -> int:
    """Stay until nothing is left to do, then show the results and why runs failed; the exit code."""
    out = screen.console()
    with live.view(out, slots=session.slots(name)) as view:
        code = wait(session, name, view)
    if code == INTERRUPTED:
        out.print(f"to go on where it was, run the same command again: {again}", soft_wrap=True)
        return code
    stored = session.sweep(name)
    results = results_of(session, stored)
    if results.tables:
        show(results, out)
    for state in session.states(stored):
        if state.state == "failed":
            screen.show_account(out, why(session, f"{name}/{state.run.id}"))
    left = [one.run.name for one in session.states(stored) if one.state in ("pending", "trained")]
    if left:
        out.print(f"not run: {', '.join(left)}; {screen.condition(stored.object.get('status') or {})}")
    return code
