"""`python -m tests.cluster.rig`: the cluster from the command line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.rig import images, lifecycle, processes, tools, volumes
from tests.cluster.rig.network import inside_control
from tests.cluster.rig.settings import Options, Rig, RigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 2 and one line on stderr when the rig refuses."""
    options = _parser().parse_args(arguments)
    try:
        run(Rig.from_environment(), options)
    except RigError as error:
        tools.say(str(error))
        return 2
    return 0


def run(rig: Rig, options: argparse.Namespace) -> None:
    """What each command does."""
    match options.command:
        case "up":
            lifecycle.up(rig, Options(options.nodes, options.scale, options.node_grace))
        case "down":
            lifecycle.down(rig)
        case "status":
            for process in processes.recorded(rig):
                _print(f"{process.name}\t{process.pid if process.alive() else 'ended'}")
        case "exec":
            _become(rig, options.words)
        case "kubectl":
            _become(rig, ["kubectl", *options.words])
        case "load":
            nodes = [rig.node(options.node)] if options.node else rig.nodes
            for archive in options.archive:
                _print(*images.load(rig, archive, nodes), sep="\n")
        case "digest":
            _print(images.digest(rig, options.name))
        case "volume":
            _print(volumes.create(rig, options.namespace, options.claim, options.storage_class))
        case "stop":
            processes.stop(rig, options.name, signal.SIGKILL if options.kill else signal.SIGTERM)
        case "start":
            lifecycle.start(rig, options.name)


def _become(rig: Rig, words: list[str]) -> None:
    """Become a command in the cluster's network, with its kubeconfig and kubectl at hand."""
    os.environ["KUBECONFIG"] = str(rig.kubeconfig)
    os.environ["PATH"] = f"{tools.binaries()}:{os.environ['PATH']}"
    command = [*inside_control(rig), *words]
    os.execvp(command[0], command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.rig", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster and wait until it is ready")
    up.add_argument("--nodes", type=int, default=2, help="0: a control plane alone, for a fake kubelet")
    up.add_argument("--scale", action="store_true", help="raise the controller manager's limits")
    up.add_argument("--node-grace", type=int, help="seconds until a silent node is NotReady (default 50)")
    commands.add_parser("down", help="end and remove everything `up` started")
    commands.add_parser("status", help="the cluster's programs and their pids")
    execute = commands.add_parser("exec", help="run a command in the cluster's network")
    execute.add_argument("words", nargs=argparse.REMAINDER)
    kubectl = commands.add_parser("kubectl", help="run kubectl as the cluster's administrator")
    kubectl.add_argument("words", nargs=argparse.REMAINDER)
    load = commands.add_parser("load", help="import image archives; prints NAME@sha256:… of each")
    load.add_argument("archive", type=Path, nargs="+")
    load.add_argument("--node", help="one node only (default: all)")
    digest = commands.add_parser("digest", help="print NAME@sha256:… of a loaded image")
    digest.add_argument("name", help="as loaded, with its tag")
    volume = commands.add_parser("volume", help="a ReadWriteMany volume for one claim; prints its folder")
    volume.add_argument("namespace")
    volume.add_argument("claim")
    volume.add_argument("--storage-class", default="")
    stop = commands.add_parser("stop", help="end one program (names: `status`)")
    stop.add_argument("name")
    stop.add_argument("--kill", action="store_true", help="with SIGKILL")
    start = commands.add_parser("start", help="start an ended program as before")
    start.add_argument("name")
    return parser


def _print(*values: object, sep: str = " ") -> None:
    print(*values, sep=sep, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
