"""Commands that tell the controller something: cancel, retry, suspend, resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from orchestrator.cli_options import As, Output, RunNames, SweepName, Wait, placed
from orchestrator.cli_say import go_on, say

if TYPE_CHECKING:
    from orchestrator.client.session import Session


def register(app: typer.Typer) -> None:
    """Add the commands to `orch`."""
    for command in (cancel, retry, suspend, resume):
        app.command()(command)


@placed
def cancel(session: Session, sweep: SweepName, runs: RunNames = None, output: As = Output.TEXT) -> None:
    """End runs of SWEEP, all unless named; their Jobs checkpoint first. `orch retry` takes it back."""
    from orchestrator.client.cancel import cancel as end

    names, elsewhere = end(session, sweep, runs or [])
    text = f"{sweep}: cancelled {', '.join(names)}" + ("; its controller ends the Jobs" if elsewhere else "")
    say(text, {"sweep": sweep, "runs": names}, output)


@placed
def retry(
    session: Session, sweep: SweepName, runs: RunNames = None, wait: Wait = False, output: As = Output.TEXT
) -> None:
    """Give the failed or cancelled runs of SWEEP, all unless named, another attempt."""
    from orchestrator.client import submit as submits

    names = submits.ask_retry(session, sweep, runs or [])
    text = f"{sweep}: {'tries again ' + ', '.join(names) if names else 'no run has failed or was cancelled'}"
    said = {"sweep": sweep, "runs": names, "changed": bool(names)}
    if names:
        again = f"submit FILE --wait, with the file of {sweep}"
        go_on(session, sweep, wait, text, said, output, again=again)
    else:
        say(text, said, output)


@placed
def suspend(session: Session, sweep: SweepName, output: As = Output.TEXT) -> None:
    """Start no new Job of SWEEP; those that run go on."""
    from orchestrator.client.submit import ask_suspend

    wrote = ask_suspend(session, sweep, True)
    again = session.command_line("resume", sweep)
    text = f"{sweep}: {'suspended' if wrote else 'was suspended already'}; `{again}` goes on"
    say(text, {"sweep": sweep, "changed": wrote}, output)


@placed
def resume(session: Session, sweep: SweepName, wait: Wait = False, output: As = Output.TEXT) -> None:
    """Go on with a suspended SWEEP."""
    from orchestrator.client.submit import ask_suspend

    wrote = ask_suspend(session, sweep, False)
    text = f"{sweep}: {'goes on' if wrote else 'was not suspended'}"
    again = f"resume {sweep} --wait"
    go_on(session, sweep, wait, text, {"sweep": sweep, "changed": wrote}, output, again=again)
