"""Processes the cluster started: each recorded by pid and start time, found again by any later command."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster.rig import cgroups
from tests.cluster.rig.settings import Rig, RigError, write_whole

JOIN = 'for door in $DOORS; do echo $$ > "$door"; done; exec "$@"'


@dataclass(frozen=True)
class Process:
    """A started program; (pid, started) names it for as long as the machine runs."""

    name: str
    pid: int
    started: int
    """Clock ticks after boot, field 22 of /proc/PID/stat."""
    argv: list[str]

    def alive(self) -> bool:
        with suppress(ChildProcessError):  # not our child, when another command started it
            os.waitpid(self.pid, os.WNOHANG)
        state = _stat(self.pid)
        return state is not None and state == ("live", self.started)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within that time."""
        end = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


def start(rig: Rig, name: str, argv: Sequence[str]) -> Process:
    """Start a program in a session of its own, in the cluster's cgroup, its output in logs/NAME.log."""
    running = find(rig, name)
    if running and running.alive():
        raise RigError(f"{name}: already runs as pid {running.pid}; stop it first")
    cgroup = f"{rig.name}/rig"
    cgroups.create(cgroup)
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "DOORS": " ".join(str(door) for door in cgroups.doors(cgroup)),
    }
    log = log_file(rig, name)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # Everything below execs, so this pid stays the program's own.
    pid = os.posix_spawn(
        "/bin/sh", ["sh", "-c", JOIN, name, *argv], environment, file_actions=actions, setsid=True
    )
    stat = _stat(pid)
    process = Process(name, pid, stat[1] if stat else 0, list(argv))
    write_whole(_record(rig, name), json.dumps(asdict(process)))
    return process


def stop(rig: Rig, name: str, how: signal.Signals = signal.SIGTERM, patience: float = 15) -> None:
    """Signal a recorded program and wait until it is gone; after `patience` seconds with SIGKILL."""
    process = find(rig, name)
    if process is None:
        return
    for number in (how, signal.SIGKILL):
        if process.alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
        if process.wait(patience):
            return
    raise RigError(f"{name}: pid {process.pid} does not end by SIGKILL")


def restart(rig: Rig, name: str) -> Process:
    """Start a program that has ended, as it was started before."""
    process = find(rig, name)
    if process is None:
        raise RigError(
            f"process: never started, got {name!r}; there are {[one.name for one in recorded(rig)]}"
        )
    return start(rig, name, process.argv)


def find(rig: Rig, name: str) -> Process | None:
    """The record of the program last started under that name."""
    try:
        return Process(**json.loads(_record(rig, name).read_text()))
    except FileNotFoundError:
        return None


def recorded(rig: Rig) -> Iterator[Process]:
    """Every recorded program, ended ones too."""
    for record in sorted((rig.home / "processes").glob("*.json")):
        yield Process(**json.loads(record.read_text()))


def wait_until(rig: Rig, name: str, ready: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll `ready`; RigError with the end of the program's log when it ends or time is up."""
    end = time.monotonic() + seconds
    while not ready():
        process = find(rig, name)
        late = time.monotonic() > end
        if late or process is None or not process.alive():
            reason = f"not within {seconds:.0f} s" if late else "it ended"
            raise RigError(
                f"{name}: {what}: {reason}; the end of {log_file(rig, name)}:\n{log_tail(rig, name)}"
            )
        time.sleep(0.1)


def log_file(rig: Rig, name: str) -> Path:
    return rig.home / "logs" / f"{name}.log"


def log_tail(rig: Rig, name: str, lines: int = 15) -> str:
    """The last lines a program wrote."""
    try:
        return "\n".join(log_file(rig, name).read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(nothing)"


def _record(rig: Rig, name: str) -> Path:
    return rig.home / "processes" / f"{name}.json"


def _stat(pid: int) -> tuple[str, int] | None:
    """(live | zombie, start time) of a pid, None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces
    return ("zombie" if fields[0] in "ZX" else "live", int(fields[19]))
