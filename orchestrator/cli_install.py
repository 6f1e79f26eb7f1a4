"""Commands that set orch up in a cluster: install, uninstall, doctor."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli_options import As, Context, Namespace, Output
from orchestrator.cli_say import print_json

if TYPE_CHECKING:
    from orchestrator.client.bundle import Options
    from orchestrator.cluster.kube.client import Api


class InstallOutput(StrEnum):
    """For people, for programs, for kubectl."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `orch`."""
    for command in (install, uninstall, doctor):
        app.command()(command)


def install(
    context: Context = None,
    namespace: Namespace = None,
    image: Annotated[
        str | None, typer.Option(help="Trainer image, NAME@sha256:DIGEST; kept where one is set.")
    ] = None,
    controller_image: Annotated[
        str | None, typer.Option(help="Controller image, NAME@sha256:DIGEST; needed the first time.")
    ] = None,
    storage_class: Annotated[
        str | None, typer.Option(help="Of the shared volume; it must offer ReadWriteMany.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Of the shared volume, such as 500Gi.")] = None,
    fetch_port: Annotated[
        list[int] | None, typer.Option(help="A port besides 443 for fetch Jobs, such as a proxy's.")
    ] = None,
    allow_image_tags: Annotated[
        bool, typer.Option("--allow-image-tags", help="Accept images that are not pinned by digest.")
    ] = False,
    crd_only: Annotated[
        bool, typer.Option("--crd-only", help="Only what a cluster's admin makes once for all namespaces.")
    ] = False,
    force_conflicts: Annotated[
        bool, typer.Option("--force-conflicts", help="Take over fields that others have set.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, or -o yaml.")] = False,
    yes: Yes = False,
    output: Annotated[
        InstallOutput, typer.Option("-o", "--output", help="Output form.")
    ] = InstallOutput.TEXT,
) -> None:
    """Install orch in a namespace, or bring it up to date: shows what changes, then asks.

    A profile and a volume that exist are never reset. `kubectl apply -k manifests/` makes the same objects.
    """
    from orchestrator.client.bundle import Options, bundle, to_yaml

    if output is InstallOutput.YAML and not dry_run:
        raise typer.BadParameter("-o yaml writes nothing to a cluster; give --dry-run with it")
    options = Options(
        namespace=_namespace(context, namespace),
        image=image,
        controller_image=controller_image,
        storage_class=storage_class,
        size=size,
        fetch_ports=tuple(fetch_port or ()),
        allow_image_tags=allow_image_tags,
        crd_only=crd_only,
    )
    if output is InstallOutput.YAML:
        print(to_yaml(bundle(options)), end="")
        return
    _install(_api(context, namespace), options, force_conflicts, dry_run, yes, output)


def _install(
    api: Api, options: Options, force: bool, dry_run: bool, yes: bool, output: InstallOutput
) -> None:
    from orchestrator import screen
    from orchestrator.client import install as installs
    from orchestrator.commands.installation import changes_json, show_changes
    from orchestrator.errors import UserError

    changes = installs.plan(api, options, force=force)
    if output is InstallOutput.TEXT:
        show_changes(screen.console(), changes, api.host)
    found = installs.faults(changes, options)
    if found:
        raise UserError("\n".join(found))
    write = not dry_run and any(one.writes for one in changes)
    if write and (output is InstallOutput.JSON and not yes):
        raise typer.BadParameter("-o json cannot ask; give --yes or --dry-run with it")
    if write and not yes:
        _ask(f"Install orch in namespace {options.namespace} of {api.host}?")
    written = list(installs.apply(api, changes, force=force)) if write else []
    if written and output is InstallOutput.TEXT:
        print(f"wrote {len(written)} objects; `orch doctor` tells when all is there")
    if output is InstallOutput.JSON:
        print_json(changes_json(changes, options.namespace, applied=write))


def uninstall(
    context: Context = None,
    namespace: Namespace = None,
    keep_crd: Annotated[
        bool, typer.Option("--keep-crd", help="Leave Sweeps, their Jobs and records, and what is shared.")
    ] = False,
    delete_volume: Annotated[
        bool, typer.Option("--delete-volume", help="Models, runs and results go too.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Remove orch from a namespace: says what goes with it, then asks. The volume stays unless asked for."""
    from orchestrator import screen
    from orchestrator.client import uninstall as uninstalls
    from orchestrator.commands.installation import show_removal

    api = _api(context, namespace)
    removal = uninstalls.plan(api, keep_crd=keep_crd, delete_volume=delete_volume)
    show_removal(screen.console(), removal)
    if not yes:
        _ask(f"Remove this from namespace {removal.namespace} of {api.host}?")
    for what in uninstalls.remove(api, removal, keep_crd=keep_crd):
        print(f"removed {what}")


def doctor(
    context: Context = None,
    namespace: Namespace = None,
    queue: Annotated[
        str | None, typer.Option("--queue", help="A LocalQueue that sweeps name in scheduling.queue.")
    ] = None,
    output: As = Output.TEXT,
) -> None:
    """Say what is missing in a cluster, what to do about it, and what you may not see."""
    from orchestrator import screen
    from orchestrator.client import doctor as doctors
    from orchestrator.commands.installation import show_findings

    found = doctors.examine(_api(context, namespace), queue)
    if output is Output.JSON:
        print_json(doctors.to_json(found))
    else:
        show_findings(screen.console(), found)
    if any(one.state == "missing" for one in found):
        raise typer.Exit(1)


def _api(context: str | None, namespace: str | None) -> Api:
    from orchestrator.client.kube import KubeSession

    return KubeSession(context, namespace).api


def _namespace(context: str | None, namespace: str | None) -> str:
    """The namespace that a command means; no cluster is needed to print manifests."""
    from orchestrator.cli_options import has_cluster
    from orchestrator.sweep.naming import DEFAULT_NAMESPACE

    if namespace is None and (context is not None or has_cluster()):
        return _api(context, namespace).namespace
    return namespace or DEFAULT_NAMESPACE


def _ask(question: str) -> None:
    from orchestrator.errors import UserError

    if not sys.stdin.isatty():
        raise UserError("orch: asks before it changes a cluster, got no terminal; give --yes")
    typer.confirm(question, abort=True)
