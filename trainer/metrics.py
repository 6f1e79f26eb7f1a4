"""metrics.jsonl: one line an optimiser step, followed while it grows and made good at the end. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trainer.durable import append_bytes
from trainer.fence import Fence


class Metrics:
    """The lines of a run so far, and the file that shows them.

    A volume that fails may leave half a line in the file. So the lines are kept here too, travel in the
    checkpoints, and replace the file when an attempt begins and when the run is done.
    """

    def __init__(self, path: Path, fence: Fence) -> None:
        self._path, self._fence = path, fence
        self._lines: list[bytes] = []
        self._file: BinaryIO | None = None

    @property
    def content(self) -> bytes:
        return b"".join(self._lines)

    def begin(self, content: bytes) -> None:
        """Begin with the lines of a checkpoint, b"" for none; raises FenceLost."""
        self._lines = [content]
        self._fence.write_bytes(self._path, content)
        # Held open: an attempt that takes the folder puts a file of its own here, and late lines miss it.
        self._file = open(self._path, "ab")  # noqa: SIM115

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Add the line of a step, durably; raises FenceLost, and ValueError for nan and infinity."""
        line = json.dumps(metrics, allow_nan=False).encode() + b"\n"
        self._fence.check()
        assert self._file is not None, "begin() comes first"
        append_bytes(self._file, line)
        self._lines.append(line)

    def finish(self) -> None:
        """Replace the file by the lines kept here; raises FenceLost."""
        if self._file is not None:
            self._file.close()
        self._fence.write_bytes(self._path, self.content)
