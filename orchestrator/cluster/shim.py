"""The local kubelet of one Job: `python -m orchestrator.cluster.shim JOBDIR [DEVICE …]`.

Starts the container's command as a process, forwards SIGTERM, enforces grace and deadline, and publishes
`exit.json` last. Imports the standard library only: it starts with every Job and lives as long. The lock it
holds on JOBDIR/lock is the sign of life that others read; the kernel drops it with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.cluster.container import Container, container_of
from trainer.durable import remove_asides, write_json

_PR_SET_PDEATHSIG = 1
_RESERVE_BYTES = 64 * 1024
"""Kept on the volume while the Job runs, so that a full one still takes the word of how it ended."""
_RECORD_BYTES = 4096


def main(argv: list[str]) -> int:
    """Return 0 once the Job has a supervisor, which lives on in a process of its own."""
    folder, devices = Path(argv[0]), tuple(argv[1:])
    heard, told = os.pipe()
    if os.fork():
        os.close(told)
        # The end of the file comes too when the supervisor dies before it took the Job.
        return 0 if os.read(heard, 1) else 1
    os.close(heard)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    if not _take(lock, folder):
        os.write(told, b"1")
        return 0  # another supervisor has this Job, or had it
    remove_asides(folder)  # of one that was killed before it had told of itself
    wakes = _listen()
    write_json(folder / "pid.json", {"pid": os.getpid(), "devices": devices, "started_at": time.time()})
    os.write(told, b"1")
    os.close(told)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    container = container_of(job, folder, devices)
    write_json(folder / "exit.json", _supervise(container, folder, wakes))
    return 0


def _take(lock: int, folder: Path) -> bool:
    """Whether the Job is ours now. Readers hold the lock for a moment only, another supervisor for long."""
    while not any((folder / name).exists() for name in ("pid.json", "exit.json")):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One may have taken it, and even ended, between the look and the lock.
            return not any((folder / name).exists() for name in ("pid.json", "exit.json"))
        time.sleep(0.01)
    return False


def _listen() -> int:
    """A file descriptor that yields the number of each signal which wakes the supervisor."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return readable


def _supervise(container: Container, folder: Path, wakes: int) -> dict[str, Any]:
    """Run the container to its end; the content of exit.json, in Kubernetes' words."""
    started = time.time()
    with open(folder / "log", "ab", buffering=0) as log:
        try:
            process = _start(container, log.fileno())
        except (OSError, ValueError) as error:
            said = f"exec: {container.argv[0]!r}: {getattr(error, 'strerror', None) or error}"
            log.write(f"{said}\n".encode())
            return _ended(128, "StartError", started, message=said)
    _reserve(folder)
    expired = _wait(process, container, wakes)
    # What the main process leaves behind ends with it, as in a container.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    reason = "Completed" if code == 0 else "Error"
    termination = folder / "termination"
    silent = code != 0 and not (termination.exists() and termination.stat().st_size)
    said = _no_room(folder) if silent else ""
    (folder / "reserve").unlink(missing_ok=True)
    return _ended(code, reason, started, pod_reason="DeadlineExceeded" if expired else None, message=said)


def _reserve(folder: Path) -> None:
    with contextlib.suppress(OSError):  # full already: the trainer will say so, if it can
        (folder / "reserve").write_bytes(os.urandom(_RESERVE_BYTES))


def _no_room(folder: Path) -> str:
    """Why no record can be written here; empty when one could: then it is missing for another reason."""
    probe = folder / "probe"
    try:
        probe.write_bytes(os.urandom(_RECORD_BYTES))
    except OSError as error:
        return f"the volume of {folder} takes no record: {error.strerror}"
    finally:
        probe.unlink(missing_ok=True)
    return ""


def _start(container: Container, log: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        container.argv,
        env=container.env,
        cwd=container.cwd,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_parent(),
    )


def _die_with_parent() -> Callable[[], None] | None:
    """Linux: the kernel ends the child when the supervisor ends, however that happens."""
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return ask


def _wait(process: subprocess.Popen[bytes], container: Container, wakes: int) -> bool:
    """Wait for the end; SIGTERM on request or at the deadline (then True), SIGKILL after the grace."""
    now = time.monotonic()
    deadline = now + container.deadline_s if container.deadline_s else None
    kill_at: float | None = None
    expired = False
    while process.poll() is None:
        now = time.monotonic()
        if kill_at is not None and now >= kill_at:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            break
        if kill_at is None and deadline is not None and now >= deadline:
            expired = True
            kill_at = _terminate(process, container)
        until = kill_at if kill_at is not None else deadline
        select.select([wakes], [], [], None if until is None else max(0.0, until - now))
        with contextlib.suppress(BlockingIOError):
            asked = set(os.read(wakes, 512)) & {signal.SIGTERM, signal.SIGINT}
            if asked and kill_at is None:
                kill_at = _terminate(process, container)
    return expired


def _terminate(process: subprocess.Popen[bytes], container: Container) -> float:
    """SIGTERM to the main process alone, as the kubelet does; when to SIGKILL (monotonic)."""
    process.send_signal(signal.SIGTERM)
    return time.monotonic() + container.grace_s


def _ended(
    code: int, reason: str, started: float, *, pod_reason: str | None = None, message: str = ""
) -> dict[str, Any]:
    return {
        "exit_code": code,
        "exit_reason": reason,
        "pod_reason": pod_reason,
        "message": message,
        "started_at": started,
        "finished_at": time.time(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
