"""The commands of `orch`: one short function each, which imports what it needs when it is called."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import cli_control, cli_install, cli_oncall
from orchestrator.cli_options import (
    As,
    File,
    Globals,
    Local,
    Namespace,
    Output,
    RunName,
    SweepName,
    Wait,
    placed,
)
from orchestrator.cli_say import go_on, print_json

if TYPE_CHECKING:
    from orchestrator.client.session import Session

app = typer.Typer(
    help="On-policy-distillation sweeps: one YAML file in, a table of results that can be trusted out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


class ResultsOutput(StrEnum):
    """For people, for programs, for pages, for spreadsheets."""

    TEXT = "text"
    JSON = "json"
    MD = "md"
    CSV = "csv"


class LogStage(StrEnum):
    """Stages of a run that have a log."""

    FETCH = "fetch"
    BASELINE = "baseline"
    TRAIN = "train"
    EVAL = "eval"


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"orch {version('orch')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    dump: Annotated[
        Path | None,
        typer.Option(envvar="ORCH_DUMP", help="Folder of all artefacts and state here; default dump."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="The lab's defaults; ./orch.toml, or the cluster's own.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """On-policy-distillation sweeps: one YAML file in, a table of results that can be trusted out."""
    context.obj = Globals(dump, profile)


@app.command()
@placed
def plan(session: Session, file: File, output: As = Output.TEXT) -> None:
    """Show what submitting FILE would do: + new, = exists, ~ changed, - removed."""
    from orchestrator import screen
    from orchestrator.client import plan as plans

    planned = plans.plan(session, file)
    if output is Output.JSON:
        print_json(plans.to_json(planned))
    else:
        screen.show_plan(screen.console(), planned)


@app.command()
@placed
def submit(
    session: Session,
    file: File,
    wait: Wait = False,
    prune: Annotated[bool, typer.Option("--prune", help="End Jobs of runs no longer in FILE.")] = False,
    output: As = Output.TEXT,
) -> None:
    """Store the sweep of FILE and run what is not done yet. Submitting again goes on where it was."""
    from orchestrator.client import submit as submits

    sweep, runs, wrote = submits.submit(session, file, prune=prune)
    name = sweep.metadata.name
    said = {"sweep": name, "runs": [run.id for run in runs], "changed": wrote}
    text = f"{name}: {len(runs)} runs, {'submitted' if wrote else 'unchanged'} {session.where}"
    go_on(session, name, wait, text, said, output, again=f"submit {file} --wait")


@app.command()
@placed
def status(
    session: Session,
    sweep: Annotated[str | None, typer.Argument(metavar="[SWEEP]", help="One sweep; default all.")] = None,
    output: As = Output.TEXT,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Show again until finished or Ctrl-C.")
    ] = False,
    mine: Annotated[bool, typer.Option("--mine", help="Only sweeps that I submitted.")] = False,
) -> None:
    """Show how far sweeps are, or every run of one SWEEP."""
    from orchestrator.commands import status as statuses

    if output is Output.JSON:
        print_json(statuses.to_json(session, sweep, mine=mine))
    else:
        statuses.show(session, sweep, watch=watch, mine=mine)


@app.command("eval")
@placed
def evaluate(
    session: Session,
    after: Annotated[str, typer.Option("--after", metavar="SWEEP", help="Evaluate this sweep's adapters.")],
    tasks: Annotated[
        list[str] | None, typer.Option("--tasks", help="lm-eval tasks: a,b or repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Items per task.")] = None,
    eval_teacher: Annotated[bool, typer.Option(help="Measure the teacher too.")] = True,
    wait: Wait = False,
    output: As = Output.TEXT,
) -> None:
    """Evaluate every adapter of a submitted sweep once more, as soon as each is trained."""
    from orchestrator.client import submit as submits

    wrote = submits.ask_eval(session, after, tasks or [], limit=limit, teacher=eval_teacher)
    said = {"sweep": after, "changed": wrote}
    text = f"{after}: evaluation {'asked for' if wrote else 'was asked for already'}"
    again = f"submit FILE --wait, with the file of {after}"
    go_on(session, after, wait, text, said, output, again=again)


@app.command()
@placed
def results(
    session: Session,
    sweep: SweepName,
    output: Annotated[
        ResultsOutput, typer.Option("-o", "--output", help="Output form.")
    ] = ResultsOutput.TEXT,
) -> None:
    """Show what was measured: the table, with errors, paired marks and recovered shares."""
    from orchestrator.commands.measured import show_results

    show_results(session, sweep, output.value)


@app.command()
@placed
def logs(
    session: Session,
    run: RunName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until its Job ends.")] = False,
    stage: Annotated[LogStage | None, typer.Option("--stage", help="Default: its newest Job.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", min=0, help="The last lines only.")] = None,
) -> None:
    """Show the log of RUN's newest Job."""
    from orchestrator.client.why import logs as lines

    for line in lines(session, run, follow=follow, stage=stage.value if stage else None, tail=tail):
        print(line, flush=follow)


@app.command()
@placed
def why(session: Session, run: RunName, output: As = Output.TEXT) -> None:
    """Say what happened to RUN: each attempt, the evidence, the remedy, and what comes next."""
    from orchestrator import screen
    from orchestrator.client import why as whys

    account = whys.why(session, run)
    if output is Output.JSON:
        print_json(whys.to_json(account))
    else:
        screen.show_account(screen.console(), account)


@app.command()
@placed
def render(session: Session, file: File, run: RunName) -> None:
    """Print the Kubernetes Job that a RUN of FILE becomes, checked against batch/v1."""
    from orchestrator.client.manifest import manifest

    print(manifest(session.profile, file, run), end="")


@app.command(hidden=True)
def controller(
    context: typer.Context,
    local: Local = False,
    namespace: Namespace = None,
    port: Annotated[int, typer.Option(help="Of /healthz, /readyz and /metrics; 0: any.")] = 8080,
) -> None:
    """Work on all sweeps of a namespace until SIGTERM; with --local on those here until nothing is left."""
    options: Globals = context.obj
    if local:
        from orchestrator.client.local import DEFAULT_DUMP, LocalSession
        from orchestrator.client.wait import control_loop

        control_loop(LocalSession(options.dump or DEFAULT_DUMP, options.profile))
        return
    from orchestrator.controller.serve import serve

    raise typer.Exit(serve(namespace, options.profile, port))


cli_oncall.register(app)
cli_control.register(app)
cli_install.register(app)


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit code: 2 for the user's fault, 1 for ours or the cluster's, 130 for Ctrl-C."""
    from orchestrator.errors import OrchError

    try:
        app(args=argv, prog_name="orch")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except OrchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{error.filename or 'orch'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
