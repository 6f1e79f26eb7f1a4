"""A machine without processes: supervisors and trainers in memory, over the local cluster's real files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster import jobfolder, local
from orchestrator.sweep.naming import ANNOTATION_RUN, LABEL_ATTEMPT, LABEL_STAGE
from tests.orchestrator.cluster.site.changes import Hook
from tests.orchestrator.fakes import done_record, record_message
from trainer.durable import write_json


class Killed(BaseException):
    """SIGKILL: nothing catches it, and whoever got it changes no file any more."""


class Changes:
    """Of the process under test: `seen`, and `die_at`, the number of the first that is not made."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.die_at: int | None = None
        self._hook = Hook(self.point)

    @contextlib.contextmanager
    def watched(self, root: Path, die_at: int | None) -> Iterator[None]:
        self.seen, self.die_at, self._hook.root = [], die_at, str(root)
        try:
            yield
        finally:
            self._hook.root = None

    @contextlib.contextmanager
    def of_another(self) -> Iterator[None]:
        """What another process does is not counted."""
        root, self._hook.root = self._hook.root, None
        yield
        self._hook.root = root

    def point(self, what: str) -> None:
        """A change is about to be made."""
        if self.die_at is not None and len(self.seen) >= self.die_at:
            raise Killed
        self.seen.append(what)


CHANGES = Changes()


@dataclass
class StubMachine:
    """Supervisors of the Jobs in `jobs`. `fates` by (run name, attempt): an exit code, "lost", "endless".

    "lost": the supervisor vanishes; "endless": it runs until SIGTERM. Without a fate it ends well.
    """

    fates: Mapping[tuple[str, int], int | str] = field(default_factory=dict)
    started: Counter[str] = field(default_factory=Counter)
    trained: Counter[str] = field(default_factory=Counter)
    running: dict[int, tuple[Path, int]] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(local, "supervisor", SimpleNamespace(start=self.start))
        patch.setattr(jobfolder, "end_stragglers", lambda uid: None)
        patch.setattr(os, "kill", self.kill)
        patch.setattr(os, "fsync", lambda handle: None)  # no power is cut

    def start(self, folder: Path, devices: tuple[str, ...]) -> str:
        CHANGES.point(f"start {folder.name}")
        pid = 1 + len(self.started) + 2**22  # above any real one
        with CHANGES.of_another():
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_json(folder / "pid.json", {"pid": pid, "devices": devices, "started_at": time.time()})
        self.started[folder.name] += 1
        self.running[pid] = (folder, lock)
        return ""

    def kill(self, pid: int, number: int) -> None:
        CHANGES.point(f"signal {number}")
        self.asked.add(pid)

    def step(self) -> bool:
        """Every trainer ends as it should; whether any did."""
        ended = False
        for pid, (folder, lock) in list(self.running.items()):
            job = json.loads((folder / "job.json").read_text())["manifest"]["metadata"]
            seen: Any = SimpleNamespace(labels=job["labels"], annotations=job["annotations"])
            run = job["annotations"][ANNOTATION_RUN]
            fate = self.fates.get((run.rpartition("-")[0], int(job["labels"][LABEL_ATTEMPT])), 0)
            if fate == "endless" and pid not in self.asked:
                continue
            if fate != "lost":
                code = 75 if fate == "endless" else int(fate)
                said = record_message(seen, status="failed", exit_code=code) if code else done_record(seen)
                if code == 0:
                    self.trained[f"{job['labels'][LABEL_STAGE]} {run}"] += 1
                (folder / "termination").write_text(said)
                told = {"exit_code": code, "exit_reason": "Error" if code else "Completed"}
                write_json(folder / "exit.json", {**told, "finished_at": time.time()})
            os.close(lock)
            del self.running[pid]
            ended = True
        return ended
