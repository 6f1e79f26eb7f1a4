"""Options that several commands share, and where a command works: this machine or a cluster."""

from __future__ import annotations

import functools
import inspect
import os
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orchestrator.client.session import Session


class Output(StrEnum):
    """For people, or for programs."""

    TEXT = "text"
    JSON = "json"


As = Annotated[Output, typer.Option("-o", "--output", help="Output form.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A sweep file.")]
SweepName = Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a submitted sweep.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Run name, run id, or SWEEP/RUN.")]
RunNames = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs; none given: all.")]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until it is finished; exit 3 if a run failed.")]
Local = Annotated[
    bool, typer.Option("--local", help="On this machine; the default where there is no kubeconfig.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Namespace = Annotated[
    str | None,
    typer.Option("-n", "--namespace", help="Namespace; default: the context's, else orch."),
]


@dataclass(frozen=True)
class Globals:
    """Options before the command; `dump` is None where it was not given."""

    dump: Path | None = None
    profile: Path | None = None


def session_of(
    options: Globals, *, local: bool = False, context: str | None = None, namespace: str | None = None
) -> Session:
    """The place that the options name: a cluster where one is configured, unless they say this machine."""
    cluster = bool(context or namespace)
    configured = has_cluster()
    if cluster or (configured and not local and options.dump is None):
        from orchestrator.client.kube import KubeSession

        return KubeSession(context, namespace, options.profile)
    from orchestrator.client.local import DEFAULT_DUMP, LocalSession

    say_local = configured and options.dump is None
    return LocalSession(options.dump or DEFAULT_DUMP, options.profile, say_local=say_local)


def has_cluster() -> bool:
    """Whether a kubeconfig, or a pod's service account, names a cluster."""
    files = os.environ.get("KUBECONFIG")
    if files is not None:
        return any(Path(file).exists() for file in files.split(os.pathsep) if file)
    return (Path.home() / ".kube" / "config").exists() or "KUBERNETES_SERVICE_HOST" in os.environ


def placed(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is a session, with the options that say where it works.

    Raises typer.BadParameter when they contradict each other.
    """
    hints = typing.get_type_hints(command, localns={"Session": object}, include_extras=True)
    given = inspect.signature(command)
    own = [one.replace(annotation=hints[one.name]) for one in list(given.parameters.values())[1:]]
    place: dict[str, Any] = {"local": Local, "context": Context, "namespace": Namespace}
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False if name == "local" else None, annotation=kind
        )
        for name, kind in place.items()
    ]
    first = inspect.Parameter(
        "typer_context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]

    @functools.wraps(command)
    def run(
        typer_context: typer.Context,
        *,
        local: bool,
        context: str | None,
        namespace: str | None,
        **rest: Any,
    ) -> None:
        if local and (context or namespace):
            raise typer.BadParameter("--local is this machine; leave --context and --namespace out")
        command(session_of(typer_context.obj, local=local, context=context, namespace=namespace), **rest)

    run.__signature__ = inspect.Signature([first, *own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (first, *own, *added)}
    return run
