"""Who may write in a run folder: whoever took it last, and nobody else. Torch-free.

Two processes of one run do happen (a lost node, a Job made twice). A check before each write would leave the
moment between check and write; so the owner's files come to be in a folder of its own, its desk, inside
`owner/`. Taking the folder moves that away in one rename: what a former owner still does, be it the last
rename of a file, finds nothing to rename from.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.durable import new_folder, remove, remove_asides, write_bytes, write_json
from trainer.layout import ATTEMPT_ENV, RunFolder


class FenceLost(Exception):
    """Another attempt took the run folder: end without writing."""


class Fence:
    """Ownership of a run folder by this attempt; every file of a run goes through it.

    All but `take` raise FenceLost once another attempt took the folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.token = os.environ.get(ATTEMPT_ENV) or uuid.uuid4().hex
        # Two processes may have been given one token: their desks are two all the same.
        self.desk = folder.owner / f"{self.token}.{uuid.uuid4().hex[:8]}"

    def take(self) -> None:
        """Own the folder from now on, and remove what former owners left unfinished."""
        root, owner = self._folder.root, self._folder.owner
        root.mkdir(parents=True, exist_ok=True)
        while True:
            # Before anything is made: what a killed attempt left may be what fills the volume.
            remove(owner)
            remove_asides(root)
            ready = root / f".owner.{uuid.uuid4().hex[:8]}"
            # Another that takes the folder now may remove `ready`, or be there first: then once more.
            with contextlib.suppress(FileNotFoundError):
                ready.mkdir()
                (ready / self.desk.name).mkdir()
                try:
                    os.rename(ready, owner)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                else:
                    return

    def check(self) -> None:
        """Raises FenceLost when another attempt took the folder since, or removed it."""
        if self.desk.is_dir():
            return
        owner = self._folder.owner
        now = [path.name for path in owner.iterdir()] if owner.is_dir() else []
        what = "taken by another attempt" if self._folder.root.is_dir() else "removed while it was written"
        raise FenceLost(f"{self._folder.root}: {what}, got {', '.join(now) or 'no owner'}; this one ends")

    def write_bytes(self, path: Path, data: bytes) -> None:
        with self._owning():
            write_bytes(path, data, self.desk)

    def write_json(self, path: Path, value: Any) -> None:
        with self._owning():
            write_json(path, value, self.desk)

    @contextlib.contextmanager
    def new_folder(self, path: Path) -> Iterator[Path]:
        with self._owning(), new_folder(path, desk=self.desk) as aside:
            yield aside

    def remove(self, path: Path) -> None:
        with self._owning():
            remove(path, self.desk)

    @contextlib.contextmanager
    def _owning(self) -> Iterator[None]:
        self.check()
        try:
            yield
        except FileNotFoundError:
            self.check()
            raise
