"""What a command says at its end: a line or a JSON value, and how the sweep goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from orchestrator.cli_options import Output

if TYPE_CHECKING:
    from orchestrator.client.session import Session


def go_on(
    session: Session,
    sweep: str,
    wait: bool,
    text: str,
    said: dict[str, object],
    output: Output,
    *,
    again: str,
) -> None:
    """See that a controller works on the sweep; with `wait` stay, show progress and then the results."""
    from orchestrator.commands.follow import follow, leave

    say(text, said, output)
    if not wait:
        how = leave(session, sweep)
        if output is Output.TEXT:
            print(how)
        return
    code = follow(session, sweep, again)
    if code:
        raise typer.Exit(code)


def say(text: str, said: dict[str, object], output: Output) -> None:
    if output is Output.JSON:
        print_json({"v": 1, **said})
    else:
        print(text)


def print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
