"""Reading a Job's log: its last lines, and following it until the Job ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from orchestrator.cluster.jobfolder import JobFolder


def last_lines(path: Path, count: int | None = None) -> Iterator[str]:
    """The last `count` lines of a file (all of them by default); none when it does not exist."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            lines = file if count is None else deque(file, maxlen=count)
            yield from (line.rstrip("\r\n") for line in lines)
    except FileNotFoundError:
        return


def follow_log(folder: JobFolder, count: int | None, poll_s: float) -> Iterator[str]:
    """Lines as they come, from the last `count` on, until the Job has ended or is gone."""
    while not folder.log.exists() and not _over(folder):
        time.sleep(poll_s)
    if _over(folder):
        yield from last_lines(folder.log, count)
        return
    with open(folder.log, encoding="utf-8", errors="replace", newline="\n") as file:
        lines, rest = _new_lines(file, "")
        yield from lines if count is None else lines[max(0, len(lines) - count) :]
        over = False
        while not over:
            # Looked at before reading: what was written up to the end is then read.
            over = _over(folder)
            lines, rest = _new_lines(file, rest)
            yield from lines
            if not over and not lines:
                time.sleep(poll_s)
    if rest:
        yield rest


def _new_lines(file: TextIO, rest: str) -> tuple[list[str], str]:
    """The whole lines that were added, and the beginning of the next one."""
    *lines, rest = (rest + file.read()).split("\n")
    return [line.rstrip("\r") for line in lines], rest


def _over(folder: JobFolder) -> bool:
    return not folder.root.exists() or folder.state() in ("ended", "lost")
