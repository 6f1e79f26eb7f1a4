"""Commands for the person on call: who uses what, and what may go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli_options import As, Output, placed
from orchestrator.cli_say import print_json

if TYPE_CHECKING:
    from orchestrator.client.session import Session


def register(app: typer.Typer) -> None:
    """Add the commands to `orch`."""
    for command in (top, gc):
        app.command()(command)


@placed
def top(
    session: Session,
    output: As = Output.TEXT,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Show again until Ctrl-C.")] = False,
) -> None:
    """Show who uses which GPUs, and what waits for what."""
    from orchestrator.client import top as tops
    from orchestrator.commands.top import show

    if output is Output.JSON:
        print_json(tops.to_json(tops.top(session)))
    else:
        show(session, watch=watch)


@placed
def gc(
    session: Session,
    sweeps: Annotated[
        list[str] | None, typer.Argument(metavar="[SWEEP]...", help="Sweeps; none given: all.")
    ] = None,
    older_than: Annotated[str, typer.Option(help="Only what is over for so long: 36h, 14d.")] = "14d",
    runs: Annotated[
        bool, typer.Option("--runs", help="Folders of cancelled, failed and removed runs, too.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it, not only say what would go.")] = False,
    output: As = Output.TEXT,
) -> None:
    """Say which checkpoints, leftovers and old Jobs may go. Adapters of done runs and baselines never do.

    In a cluster it prints the Job that does it on the volume, for `kubectl create -f -`.
    """
    from orchestrator.client.gc import asked
    from orchestrator.commands.gc import collect

    collect(session, asked(session, sweeps or [], older_than=older_than, runs=runs, delete=delete), output)
