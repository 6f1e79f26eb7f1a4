"""What the local cluster no longer needs: recorded Jobs, their logs, records of Sweeps that are gone.

In a cluster the TTL and the garbage collector do this.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.jobfolder import JobFolder
from orchestrator.cluster.statefiles import read_state
from orchestrator.sweep.naming import LABEL_SWEEP, sweep_of
from trainer.durable import remove
from trainer.results import Leftover, LeftoverKind


@dataclass(frozen=True)
class Leftovers:
    """Of the state folder `root`; only what ended before `before` (Unix seconds), of `sweeps` (none: all).

    Whoever removes something holds the cluster's lock.
    """

    root: Path
    before: float
    sweeps: Collection[str] = ()

    def tidy(self, *, delete: bool) -> list[Leftover]:
        """What may go; with `delete` it is gone."""
        found = list(self.find())
        for path, _ in found if delete else ():
            remove(path, wholly=True)
        return [about for _, about in found]

    def find(self) -> Iterator[tuple[Path, Leftover]]:
        """Everything that may go."""
        yield from self._jobs()
        yield from self._logs()
        yield from self._records()

    def _jobs(self) -> Iterator[tuple[Path, Leftover]]:
        for file in sorted((self.root / "jobs").glob("[!.]*/job.json")):
            folder = JobFolder(file.parent)
            labels = folder.job()["manifest"]["metadata"].get("labels", {})
            sweep = str(labels.get(LABEL_SWEEP, ""))
            ended = read_state(folder.root / "exit.json")
            if ended is None or ended["finished_at"] >= self.before or not self._of(sweep):
                continue
            if not self._sweep_exists(sweep):
                yield self._found(folder.root, "job", f"it ended, and there is no sweep {sweep}")
            elif (self.root / "records" / sweep / f"{folder.name}.json").exists():
                yield self._found(folder.root, "job", "it ended and is recorded")

    def _logs(self) -> Iterator[tuple[Path, Leftover]]:
        for path in sorted((self.root / "logs").glob("[!.]*.log")):
            if path.stat().st_mtime < self.before and self._of(sweep_of(path.stem)):
                yield self._found(path, "job", "the log of a Job that is gone")

    def _records(self) -> Iterator[tuple[Path, Leftover]]:
        for path in sorted((self.root / "records").glob("[!.]*")):
            newest = max((one.stat().st_mtime for one in (path, *path.iterdir())), default=0.0)
            if newest < self.before and self._of(path.name) and not self._sweep_exists(path.name):
                yield self._found(path, "records", f"there is no sweep {path.name}")

    def _of(self, sweep: str) -> bool:
        return not self.sweeps or sweep in self.sweeps

    def _sweep_exists(self, sweep: str) -> bool:
        return (self.root / "sweeps" / f"{sweep}.json").exists()

    def _found(self, path: Path, kind: LeftoverKind, why: str) -> tuple[Path, Leftover]:
        files = [one for one in (path, *path.rglob("*")) if one.is_file()]
        size = sum(one.stat().st_size for one in files)
        name = path.relative_to(self.root.parent).as_posix()
        return path, Leftover(path=name, kind=kind, bytes=size, why=why)
