"""The commands of `orch`: one short function each, which imports what it needs when it is called."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orchestrator.client.session import Session

app = typer.Typer(
    help="On-policy-distillation sweeps: one YAML file in, a table of results that can be trusted out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


class Output(StrEnum):
    """For people, or for programs."""

    TEXT = "text"
    JSON = "json"


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


File = Annotated[Path, typer.Argument(metavar="FILE", help="A sweep file.")]
SweepName = Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a submitted sweep.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Run name, run id, or SWEEP/RUN.")]
RunNames = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs; none given: all.")]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until it is finished; exit 3 if a run failed.")]
Local = Annotated[
    bool, typer.Option("--local", help="Run the Jobs on this machine: the only place so far, so the default.")
]
As = Annotated[Output, typer.Option("-o", "--output", help="Output form.")]


@app.callback()
def options(
    context: typer.Context,
    dump: Annotated[Path, typer.Option(envvar="ORCH_DUMP", help="Folder of all artefacts and state.")] = Path(
        "dump"
    ),
    profile: Annotated[
        Path | None, typer.Option(help="The lab's defaults; ./orch.toml if it exists.")
    ] = None,
) -> None:
    """On-policy-distillation sweeps: one YAML file in, a table of results that can be trusted out."""
    context.obj = (dump, profile)


@app.command()
def plan(context: typer.Context, file: File, output: As = Output.TEXT) -> None:
    """Show what submitting FILE would do: + new, = exists, ~ changed, - removed."""
    from orchestrator import screen
    from orchestrator.client import plan as plans

    planned = plans.plan(_session(context), file)
    if output is Output.JSON:
        _print_json(plans.to_json(planned))
    else:
        screen.show_plan(screen.console(), planned)


@app.command()
def submit(
    context: typer.Context,
    file: File,
    local: Local = True,
    wait: Wait = False,
    prune: Annotated[bool, typer.Option("--prune", help="End Jobs of runs no longer in FILE.")] = False,
) -> None:
    """Store the sweep of FILE and run what is not done yet. Submitting again goes on where it was."""
    from orchestrator.client import submit as submits

    session = _session(context)
    sweep, runs, wrote = submits.submit(session, file, prune=prune)
    name = sweep.metadata.name
    print(f"{name}: {len(runs)} runs, {'submitted' if wrote else 'unchanged'}; state in {session.dump}")
    _go_on(session, name, wait, again=f"submit {file} --local --wait")


@app.command()
def status(
    context: typer.Context,
    sweep: Annotated[str | None, typer.Argument(metavar="[SWEEP]", help="One sweep; default all.")] = None,
    output: As = Output.TEXT,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Show again until finished or Ctrl-C.")
    ] = False,
) -> None:
    """Show how far sweeps are, or every run of one SWEEP."""
    from orchestrator.commands import status as statuses

    session = _session(context)
    if output is Output.JSON:
        _print_json(statuses.to_json(session, sweep))
    else:
        statuses.show(session, sweep, watch=watch)


@app.command("eval")
def evaluate(
    context: typer.Context,
    after: Annotated[str, typer.Option("--after", metavar="SWEEP", help="Evaluate this sweep's adapters.")],
    tasks: Annotated[
        list[str] | None, typer.Option("--tasks", help="lm-eval tasks: a,b or repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Items per task.")] = None,
    eval_teacher: Annotated[bool, typer.Option(help="Measure the teacher too.")] = True,
    local: Local = True,
    wait: Wait = False,
) -> None:
    """Evaluate every adapter of a submitted sweep once more, as soon as each is trained."""
    from orchestrator.client import submit as submits

    session = _session(context)
    wrote = submits.ask_eval(session, after, tasks or [], limit=limit, teacher=eval_teacher)
    print(f"{after}: evaluation {'asked for' if wrote else 'was asked for already'}")
    _go_on(session, after, wait, again=f"submit FILE --wait, with the file of {after}")


@app.command()
def results(
    context: typer.Context,
    sweep: SweepName,
    output: Annotated[
        ResultsOutput, typer.Option("-o", "--output", help="Output form.")
    ] = ResultsOutput.TEXT,
) -> None:
    """Show what was measured: the table, with errors, paired marks and recovered shares."""
    from orchestrator.commands.measured import show_results

    show_results(_session(context), sweep, output.value)


@app.command()
def logs(
    context: typer.Context,
    run: RunName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until its Job ends.")] = False,
    stage: Annotated[LogStage | None, typer.Option("--stage", help="Default: its newest Job.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", min=0, help="The last lines only.")] = None,
) -> None:
    """Show the log of RUN's newest Job."""
    from orchestrator.client.why import logs as lines

    for line in lines(_session(context), run, follow=follow, stage=stage.value if stage else None, tail=tail):
        print(line, flush=follow)


@app.command()
def why(context: typer.Context, run: RunName) -> None:
    """Say what happened to RUN: each attempt, the evidence, the remedy, and what comes next."""
    from orchestrator import screen
    from orchestrator.client.why import why as account

    screen.show_account(screen.console(), account(_session(context), run))


@app.command()
def cancel(context: typer.Context, sweep: SweepName, runs: RunNames = None) -> None:
    """End runs of SWEEP, all unless named; their Jobs checkpoint first. `orch retry` takes it back."""
    from orchestrator.client.cancel import cancel as end

    names, elsewhere = end(_session(context), sweep, runs or [])
    print(f"{sweep}: cancelled {', '.join(names)}" + ("; its controller ends the Jobs" if elsewhere else ""))


@app.command()
def retry(context: typer.Context, sweep: SweepName, runs: RunNames = None, wait: Wait = False) -> None:
    """Give the failed or cancelled runs of SWEEP, all unless named, another attempt."""
    from orchestrator.client import submit as submits

    session = _session(context)
    names = submits.ask_retry(session, sweep, runs or [])
    print(f"{sweep}: {'tries again ' + ', '.join(names) if names else 'no run has failed or was cancelled'}")
    if names:
        _go_on(session, sweep, wait, again=f"submit FILE --wait, with the file of {sweep}")


@app.command()
def render(context: typer.Context, file: File, run: RunName) -> None:
    """Print the Kubernetes Job that a RUN of FILE becomes, checked against batch/v1."""
    from orchestrator.client.manifest import manifest

    print(manifest(_session(context).profile, file, run), end="")


@app.command(hidden=True)
def controller(context: typer.Context, local: Local = True) -> None:
    """Work on all sweeps until nothing is left to do; submit starts it in the background."""
    from orchestrator.client.wait import control_loop

    control_loop(_session(context))


def _session(context: typer.Context) -> Session:
    from orchestrator.client.session import Session

    return Session(*context.obj)


def _go_on(session: Session, sweep: str, wait: bool, *, again: str) -> None:
    """See that a controller works on the sweep; with `wait` stay, show progress and then the results."""
    from orchestrator.commands.follow import follow, leave

    if not wait:
        print(leave(session, sweep))
        return
    code = follow(session, sweep, again)
    if code:
        raise typer.Exit(code)


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


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
