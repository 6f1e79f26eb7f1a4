"""The list of an export's files with their hashes, written last: where it holds, the export is whole."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from trainer.durable import read_object, write_json
from trainer.layout import EXPORT_MANIFEST

VERSION = 1
"""Bumped when the same settings write other files, so that old exports are made anew."""


def write_manifest(folder: Path, about: dict[str, Any], figures: dict[str, float]) -> None:
    """List every file of `folder` with size and SHA-256. about: what it is. figures: what was measured."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(folder / EXPORT_MANIFEST, {"v": VERSION, "about": about, "figures": figures, "files": files})


def is_export(folder: Path) -> bool:
    """Whether an export once ended here, whole by now or not."""
    return isinstance(read_object(folder / EXPORT_MANIFEST).get("files"), dict)


def holds(folder: Path, about: dict[str, Any]) -> bool:
    """Whether the very export that `about` describes lies in `folder`, byte for byte."""
    found = read_object(folder / EXPORT_MANIFEST)
    if (found.get("v"), found.get("about")) != (VERSION, about):
        return False
    try:
        return all(sha256(folder / name) == file["sha256"] for name, file in found["files"].items())
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
