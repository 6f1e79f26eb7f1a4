"""The only ways files are published: aside, fsync, rename; and how JSON is read back.

Torch-free. A folder or file that exists under its final name is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

_ASIDE = re.compile(r"\.(.+\.[0-9a-f]{8}|probe-[0-9]+)")


def write_bytes(path: Path, data: bytes, desk: Path | None = None) -> None:
    """Publish a file whole: written aside, fsynced, renamed; then the folder is fsynced.

    desk: an existing folder of the same volume to write in; without it, beside `path`. Whatever step fails,
    the OSError names `path`.
    """
    aside = _aside(path, desk)
    with _naming(path):
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            _remove(aside)
        fsync_folder(path.parent)


def append_bytes(file: BinaryIO, data: bytes) -> None:
    """Add to an open file, durably; a failure may leave a part of `data` in it, and names the file."""
    with _naming(Path(file.name)):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any, desk: Path | None = None) -> None:
    """Publish a JSON file whole; nan and infinity are refused."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), desk)


def write_json_once(path: Path, value: Any) -> None:
    """Publish a JSON file unless a whole one of that name exists: the first writer wins."""
    write_bytes_once(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), _is_json)


def write_bytes_once(path: Path, data: bytes, is_whole: Callable[[Path], bool]) -> None:
    """Publish a file unless one of that name exists that is whole: the first writer wins."""
    aside = _aside(path, None)
    try:
        write_bytes(aside, data)
        with _naming(path):
            try:
                os.link(aside, path)
            except FileExistsError:
                if not is_whole(path):
                    os.replace(aside, path)
    finally:
        _remove(aside)


@contextlib.contextmanager
def new_folder(path: Path, *, keep: bool = False, desk: Path | None = None) -> Iterator[Path]:
    """A folder to fill aside, which appears as `path` only when the block ends without error.

    An older folder of that name is replaced; with `keep` it stays, for others may be reading it, and the new
    one goes. Everything inside is fsynced first. desk: as in `write_bytes`.
    """
    aside = _aside(path, desk)
    try:
        with _naming(path):
            aside.mkdir()
            yield aside
            _fsync_tree(aside)
            if keep:
                # One step, so that of two writers the first wins: a folder is not renamed onto a filled one.
                try:
                    os.rename(aside, path)
                except OSError:
                    if not path.is_dir():
                        raise
            else:
                # A folder cannot be renamed over another: the old one steps aside, then goes.
                remove(path, desk)
                os.rename(aside, path)
            fsync_folder(path.parent)
    finally:
        _remove(aside)


def remove(path: Path, desk: Path | None = None, *, wholly: bool = False) -> None:
    """Take a file or folder away in one step; its bytes go after. Nothing happens if it is not there.

    Bytes that cannot go are left to the next owner, or with `wholly` are an OSError that names `path`.
    """
    aside = _aside(path, desk or path.parent)
    with _naming(path), contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if wholly:
            _delete(aside, wholly=True)
    _remove(aside)


def remove_asides(folder: Path) -> None:
    """Remove what writers that were killed left unfinished in `folder`: only its owner may."""
    for aside in folder.glob(".*"):
        _remove(aside)


def _aside(path: Path, desk: Path | None) -> Path:
    """A name no other writer has, in `desk`; without one beside `path`, whose folder is made."""
    if desk is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return (desk or path.parent) / f".{path.name}.{uuid.uuid4().hex[:8]}"


def _remove(path: Path) -> None:
    """Remove a file or folder that nobody reads; one that cannot go now is left to the next owner."""
    with contextlib.suppress(OSError):
        _delete(path, wholly=False)


def _delete(path: Path, *, wholly: bool) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=not wholly)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have an OSError name `path`: of a failed write Python says no name, of a rename one aside."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _fsync_tree(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        else:
            fsync_folder(file)
    fsync_folder(folder)


def is_aside(path: Path) -> bool:
    """Whether it has the name of something that is written, or removed, aside."""
    return _ASIDE.fullmatch(path.name) is not None


def fsync_folder(path: Path) -> None:
    """Make renames in `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """The JSON value in `path`, or None when there is no such file. Raises ValueError for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _is_json(path: Path) -> bool:
    try:
        return read_json(path) is not None
    except ValueError:
        return False


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; {} when there is no such file, or a damaged one that can be done without."""
    try:
        value = read_json(path)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def mark_used(folder: Path) -> None:
    """Give a folder that is only read the time of now, so that gc sees it is used; it may be absent."""
    with contextlib.suppress(OSError):
        os.utime(folder)
