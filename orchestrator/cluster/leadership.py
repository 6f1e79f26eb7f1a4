"""The one controller of a dump: whoever holds its lock, which the kernel drops with the process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.cluster.statefiles import door, read_state
from orchestrator.errors import UserError
from trainer.durable import write_json

LEADER_LOCK = "leader.lock"


@contextlib.contextmanager
def lead(root: Path) -> Iterator[None]:
    """Be the one controller of this dump. UserError that names the other when there is one."""
    with door(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / LEADER_LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            other = (read_state(root / "leader.json") or {}).get("pid", "unknown")
            raise UserError(
                f"{root}: another controller runs here, got pid {other}; "
                "wait for it, or end it and start again"
            ) from None
        write_json(root / "leader.json", {"pid": os.getpid()})
    try:
        yield
    finally:
        lock.release()


def led(root: Path) -> bool:
    """Whether a controller leads now, here or in another process."""
    if not root.is_dir():
        return False
    lock = FileLock(root / LEADER_LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False
