"""Several processes: played in one, one after another, or real ones that run a module of these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from trainer.distributed import World

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
ALONE = World(0, 1, torch.device("cpu"))


class _Gave(Exception):
    """A process that is not the first has given its value: nothing of it is looked at any more."""


@dataclass(frozen=True)
class _Played(World):
    given: dict[int, Any]

    def gather(self, own: T) -> list[T]:
        self.given[self.rank] = own
        if self.rank:
            raise _Gave
        return [self.given[rank] for rank in range(self.size)]


def played(size: int, work: Callable[[World], T]) -> T:
    """What the first of `size` processes has after `work`, in which they gather once."""
    given: dict[int, Any] = {}
    for rank in reversed(range(1, size)):
        try:
            work(_Played(rank, size, torch.device("cpu"), given))
        except _Gave:
            continue
        raise AssertionError(f"process {rank} gathered nothing")
    return work(_Played(0, size, torch.device("cpu"), given))


def run_ranks(module: str, folder: Path, count: int) -> None:
    """Run `python -m module FOLDER RANK` as `count` processes at once, and see that all end well."""
    logs = [folder / f"{rank}.log" for rank in range(count)]
    processes = []
    for rank, log in enumerate(logs):
        with open(log, "w") as file:
            process = psutil.Popen(
                [sys.executable, "-m", module, str(folder), str(rank)],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        processes.append(process)

    def ended(process: psutil.Process) -> None:
        # The others would wait half an hour for one that died.
        if process.returncode:
            for other in processes:
                if other.is_running():
                    other.kill()

    psutil.wait_procs(processes, callback=ended)
    said = "\n".join(log.read_text() for log in logs)
    assert [process.returncode for process in processes] == [0] * len(processes), said
