"""Repositories as a hub keeps them, made of plain folders: branches, commits, git and LFS names of files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

LARGE = (".safetensors", ".bin", ".parquet", ".gguf", ".arrow")
"""Suffixes that a repository keeps in LFS, as the hub's .gitattributes have it."""


class Refusal(Exception):
    """An answer that is no 200, in the hub's own words."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Names(NamedTuple):
    """What git and LFS call a content: `oid` is git's, of an LFS file that of its pointer."""

    oid: str
    sha256: str
    pointer_size: int


@dataclass(frozen=True)
class Blob:
    """A file of a repository."""

    path: str
    file: Path

    @property
    def size(self) -> int:
        return self.file.stat().st_size

    @property
    def data(self) -> bytes:
        return self.file.read_bytes()

    @property
    def is_large(self) -> bool:
        return self.path.endswith(LARGE)

    @property
    def etag(self) -> str:
        return self.names.sha256 if self.is_large else self.names.oid

    @property
    def names(self) -> Names:
        stat = self.file.stat()
        return _names(self.file, self.is_large, stat.st_mtime_ns, stat.st_size)

    def entry(self) -> dict[str, Any]:
        """As a tree lists it."""
        large = {"oid": self.names.sha256, "size": self.size, "pointerSize": self.names.pointer_size}
        listed = {"type": "file", "oid": self.names.oid, "size": self.size, "path": self.path}
        return listed | ({"lfs": large} if self.is_large else {})


@lru_cache(maxsize=4096)
def _names(file: Path, is_large: bool, mtime_ns: int, size: int) -> Names:
    data = file.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    kept = pointer if is_large else data
    return Names(hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest(), sha256, len(pointer))


@dataclass(frozen=True)
class Repositories:
    """`{models,datasets}/ORG/NAME/…`; `NAME@BRANCH` beside it is another branch than main."""

    folder: Path

    def names(self, kind: str) -> list[str]:
        """ORG/NAME of every repository."""
        found = [f"{path.parent.name}/{path.name}" for path in sorted((self.folder / kind).glob("*/*"))]
        return [name for name in found if "@" not in name]

    def commits(self, kind: str, name: str) -> dict[str, str]:
        """Commit of each branch; empty when there is no such repository."""
        home = self.folder / kind / name
        folders = {"main": home}
        folders |= {path.name.partition("@")[2]: path for path in home.parent.glob(f"{home.name}@*")}
        found: dict[str, str] = {}
        for branch, folder in folders.items():
            if folder.is_dir():
                listed = json.dumps([blob.entry() for blob in _blobs(folder).values()])
                found[branch] = hashlib.sha1(f"{name}\0{listed}".encode()).hexdigest()
        return found

    def files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, Blob]]:
        """(commit, its files by path) of a branch or a commit. Raises Refusal when there is none."""
        for branch, commit in self.commits(kind, name).items():
            if revision in (branch, commit):
                suffix = "" if branch == "main" else f"@{branch}"
                return commit, _blobs(self.folder / kind / f"{name}{suffix}")
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def _blobs(folder: Path) -> dict[str, Blob]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [file.relative_to(folder).as_posix() for file in files]
    return {name: Blob(name, file) for name, file in zip(names, files, strict=True)}
