"""Files of the local cluster's state: reading and naming them, seeing changes, telling faults."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import ClusterError, UserError
from trainer.durable import read_json

_USERS_FAULTS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
}


@contextlib.contextmanager
def door(root: Path) -> Iterator[None]:
    """Faults of the file system, as a message: the user's when the folder is full or closed to them."""
    try:
        yield
    except OSError as error:
        kind = UserError if error.errno in _USERS_FAULTS else ClusterError
        raise kind(
            f"{error.filename or root}: cannot be used, got {error.strerror or error}; "
            "free space, make it writable, or name another folder with --dump"
        ) from error


def read_state(path: Path) -> Any:
    """The JSON in one of our own files, None when absent. ClusterError when it is damaged."""
    try:
        return read_json(path)
    except ValueError as error:
        raise ClusterError(f"{path}: is damaged, got {error}; move it away and go on") from error


def checked_name(name: str) -> str:
    """`name`, which is safe as a file's. UserError for one that would leave its folder."""
    if not name or name.startswith(".") or "/" in name or "\x00" in name:
        raise UserError(f"name: must be a plain name, got {name!r}")
    return name


def stamps(paths: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """What changes when a file, or the names in a folder, change."""
    stamps = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            stamps[str(path)] = (stat.st_ino, stat.st_mtime_ns)
    return stamps
