"""One process for each GPU: starts the ranks, forwards signals, keeps exit code and record. Torch-free.

accelerate launch and torchrun turn a child's 75 into 1, and accelerate leaves its child alone on SIGTERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from trainer.attempt import write_message
from trainer.flags import UsageError
from trainer.layout import TERMINATION_LOG_ENV
from trainer.results import ExitCode

GRACE_S = 30.0
"""How long the other ranks may take to end once one has failed."""
CAUSES = (ExitCode.CUDA_OOM, ExitCode.DIVERGED, ExitCode.STALLED, ExitCode.DATA, ExitCode.USAGE)
"""Ends that are a cause of their own; the other ranks then end with 70 or 75 for want of their peer."""


def launch(argv: Sequence[str], nproc: int) -> int:
    """Run `python -m trainer argv` as `nproc` ranks; returns the exit code of the rank that was the cause.

    SIGTERM and SIGINT reach every rank; when a rank fails the others get SIGTERM, after 30 s SIGKILL. Each
    rank writes a record of its own, and the cause's becomes the run's.
    """
    children: dict[int, int] = {}

    def forward(signum: int, frame: FrameType | None) -> None:
        _signal(children, signal.SIGTERM)

    # Before the ranks: a signal that comes between must not orphan them.
    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="orch-ranks-") as records:
        for rank in range(nproc):
            environment = _environment(rank, nproc, port, Path(records))
            command = [sys.executable, "-m", "trainer", *argv]
            child = subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent)
            children[child.pid] = rank
        codes = _wait(children)
        rank = cause(codes)
        _publish(Path(records) / str(rank))
    return codes[rank]


def cause(codes: Mapping[int, int]) -> int:
    """The rank whose end explains the others': causes first, then kills, then 70, then 75, then done."""

    def order(rank: int) -> tuple[int, int]:
        code = codes[rank]
        if code in CAUSES:
            return CAUSES.index(ExitCode(code)), rank
        late: dict[int, int] = {ExitCode.INTERNAL: 11, ExitCode.AGAIN: 12, ExitCode.DONE: 13}
        return late.get(code, 10), rank

    return min(codes, key=order)


def _wait(children: dict[int, int]) -> dict[int, int]:
    """Exit code by rank; ranks that our own signals ended count as 75."""
    codes: dict[int, int] = {}
    killed: set[int] = set()

    def kill(signum: int, frame: FrameType | None) -> None:
        killed.update(children.values())
        _signal(children, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    while children:
        pid, status = os.wait()
        if pid not in children:
            continue
        rank = children.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        # A second SIGTERM finds a rank that is ending already without a handler: it was told to stop.
        told = rank in killed or code == -signal.SIGTERM
        codes[rank] = ExitCode.AGAIN if told else (code if code >= 0 else 128 - code)
        if code != 0 and children:
            _signal(children, signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return codes


def _signal(children: Mapping[int, int], signum: int) -> None:
    """To every rank; never through Popen, whose poll() would reap what os.wait() waits for."""
    for pid in list(children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this rank when the launcher dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _publish(record: Path) -> None:
    """The rank's record as the run's."""
    if record.is_file():
        write_message(record.read_bytes())


def _environment(rank: int, nproc: int, port: int, records: Path) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // nproc)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        TERMINATION_LOG_ENV: str(records / str(rank)),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_rank() -> bool:
    """Whether this process is one rank of a launched run already."""
    return "RANK" in os.environ


def is_first() -> bool:
    """Whether this process writes and speaks: the first of those launched, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def processes(nproc: int) -> int:
    """How many processes the work runs in: what the launcher says, else `nproc`.

    Raises UsageError where both say a number and they differ.
    """
    if not is_rank() or nproc == world_size():
        return nproc
    if nproc != 1:
        raise UsageError(
            f"--nproc: must equal the number of launched processes ({world_size()}), got {nproc}; "
            "leave it out under accelerate or torchrun"
        )
    return world_size()


def world_size() -> int:
    """Number of processes that a launcher's environment names; 1 without one. Raises UsageError."""
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdigit() or int(value) < 1:
        raise UsageError(f"WORLD_SIZE: must be a positive number, got {value!r}; let the launcher set it")
    return int(value)
