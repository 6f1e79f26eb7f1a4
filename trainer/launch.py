"""One process for each GPU: starts the ranks, forwards signals, keeps the exit code. Torch-free.

accelerate launch and torchrun turn a child's 75 into 1, and accelerate leaves its child alone on SIGTERM.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from trainer.results import ExitCode

GRACE_S = 30.0
"""How long the other ranks may take to end once one has failed."""


def launch(argv: Sequence[str], nproc: int) -> int:
    """Run `python -m trainer argv` as `nproc` ranks and return the exit code of the one that failed first.

    SIGTERM and SIGINT reach every rank; when a rank fails the others get SIGTERM, after 30 s SIGKILL.
    """
    port = _free_port()
    children = [
        subprocess.Popen([sys.executable, "-m", "trainer", *argv], env=_environment(rank, nproc, port))
        for rank in range(nproc)
    ]

    def forward(signum: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    return _wait(children)


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    pending = {child.pid: child for child in children}
    first = 0
    while pending:
        pid, status = os.wait()
        child = pending.pop(pid, None)
        if child is None:
            continue
        code = os.waitstatus_to_exitcode(status)
        child.returncode = code
        if code != 0 and first == 0:
            first = code
            for other in pending.values():
                other.send_signal(signal.SIGTERM)
            _kill_after_grace(list(pending.values()))
    return first if first >= 0 else 128 - first


def _kill_after_grace(children: list[subprocess.Popen[bytes]]) -> None:
    def kill(signum: int, frame: FrameType | None) -> None:
        for child in children:
            if child.returncode is None:
                os.kill(child.pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, GRACE_S)


def _environment(rank: int, nproc: int, port: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // nproc)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_rank() -> bool:
    """Whether this process is one rank of a launched run already."""
    return "RANK" in os.environ


def world_size() -> int:
    """Number of processes that a launcher's environment names; 1 without one."""
    try:
        return int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return ExitCode.USAGE
