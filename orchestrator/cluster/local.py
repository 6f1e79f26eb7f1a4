"""The embedded default: the same Jobs as processes on this machine, as many at once as it has room for.

All state is files under dump/.orch, so that a controller started anew, after whatever end, sees everything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from orchestrator.cluster import leadership, supervisor
from orchestrator.cluster.base import Change, Cluster, Created, Event, ObservedJob
from orchestrator.cluster.jobfolder import JobFolder, asked_gpus, asked_share
from orchestrator.cluster.joblog import follow_log, last_lines
from orchestrator.cluster.leftovers import Leftovers
from orchestrator.cluster.objects import Objects
from orchestrator.cluster.slots import Ask, Busy, Slots, assign, detect, unschedulable
from orchestrator.cluster.statefiles import checked_name, door, stamps
from orchestrator.errors import ClusterError, NotFoundError
from orchestrator.profile import Profile
from orchestrator.sweep.naming import LABEL_SWEEP
from trainer.durable import remove, remove_asides
from trainer.layout import Dump
from trainer.results import Leftover

LOG = logging.getLogger(__name__)
POLL_S = 0.2
SLOWEST_POLL_S = 1.0
LOCK_TIMEOUT_S = 60.0


class LocalCluster(Cluster):
    """Jobs as local processes; state under `dump`/.orch. Any number of objects and processes may read it.

    A Job waits, oldest first, for its GPUs; on a machine without GPUs Jobs run one at a time. What waits is
    started by those that act: create_job, delete_job, wait, and jobs after one of these.
    """

    def __init__(self, dump: Path, profile: Profile, slots: Slots | None = None) -> None:
        self.root = Dump(dump.resolve()).orch
        self.profile = profile
        self._slots = slots
        self._acts = False
        self._seen: dict[str, tuple[int, int]] | None = None
        self._over: dict[tuple[str, int], ObservedJob] = {}
        self._objects = Objects(self.root, self._lock)

    @cached_property
    def slots(self) -> Slots:
        """The GPUs of this machine, unless the caller named them."""
        return self._slots if self._slots is not None else detect()

    @contextlib.contextmanager
    def lead(self) -> Iterator[None]:
        """Be the one controller of this dump. UserError that names the other when there is one."""
        with leadership.lead(self.root):
            with door(self.root):
                self._take_over()
            yield

    def led(self) -> bool:
        """Whether a controller leads now, here or in another process."""
        return leadership.led(self.root)

    # Sweeps and records

    def put_sweep(self, sweep: Mapping[str, Any]) -> bool:
        with door(self.root):
            return self._objects.put_sweep(sweep)

    def sweeps(self) -> list[dict[str, Any]]:
        with door(self.root):
            return self._objects.sweeps()

    def sweep(self, name: str) -> dict[str, Any] | None:
        with door(self.root):
            return self._objects.sweep(name)

    def put_control(self, sweep: str, change: Change) -> bool:
        with door(self.root):
            return self._objects.put_control(sweep, change)

    def put_status(self, sweep: str, status: Mapping[str, Any]) -> None:
        with door(self.root):
            if self._objects.put_status(sweep, status) and self._seen is not None:
                # Whoever writes a status need not be woken by it.
                self._seen |= stamps([self._objects.sweep_file(sweep)])

    def records(self, sweep: str) -> dict[str, dict[str, Any]]:
        with door(self.root):
            return self._objects.records(sweep)

    def put_record(self, sweep: str, job: str, record: Mapping[str, Any]) -> bool:
        with door(self.root):
            return self._objects.put_record(sweep, job, record)

    # Jobs

    def jobs(self, sweep: str) -> list[ObservedJob]:
        """The sweep's Jobs, oldest first; one that was deleted goes once its final state is recorded."""
        with door(self.root):
            if self._acts:
                self._tend()
            found = []
            for folder in self._folders():
                with contextlib.suppress(FileNotFoundError):
                    job = self._observe(folder)
                    if job.labels.get(LABEL_SWEEP) != sweep:
                        continue
                    found.append(job)
                    if self._acts and job.deleting and job.finished and self._recorded(job):
                        with self._lock():
                            self._remove(folder)
            return sorted(found, key=lambda job: (job.created_at, job.name))

    def create_job(self, manifest: Mapping[str, Any]) -> Created:
        self._acts = True
        with door(self.root):
            folder = self._folder(str(manifest["metadata"]["name"]))
            with self._lock():
                if not folder.create(manifest):
                    labels = folder.job()["manifest"]["metadata"].get("labels", {})
                    ours = labels.get(LABEL_SWEEP) == manifest["metadata"].get("labels", {}).get(LABEL_SWEEP)
                    return Created.EXISTS if ours else Created.CONFLICT
            self._tend()
            return Created.CREATED

    def taken(self, name: str) -> bool:
        with door(self.root):
            return self._folder(name).root.exists()

    def said(self, job: ObservedJob) -> tuple[Event, ...]:
        """Nothing: whatever keeps a process from starting here ends it."""
        return ()

    def refreshed(self, job: ObservedJob) -> ObservedJob:
        """As it is: nothing here is hearsay."""
        return job

    def delete_job(self, name: str, uid: str | None = None) -> None:
        """Ask the Job to end and return: SIGTERM now, SIGKILL after its grace; recorded, it goes from `jobs`.

        One that does not run goes at once. Its log stays readable.
        """
        self._acts = True
        with door(self.root):
            folder = self._folder(name)
            with self._lock():
                if not folder.root.exists():
                    return
                if folder.state() == "running":
                    folder.ask_to_end()
                else:
                    self._remove(folder)
            self._tend()

    def retire_job(self, name: str, after_s: int) -> None:
        """Nothing: what is over here stays until its folder is removed."""

    def put_event(self, sweep: str, event: Event) -> None:
        """To the log of whoever controls: nobody else looks on this machine."""
        LOG.log(logging.WARNING if event.warning else logging.INFO, "%s: %s", event.reason, event.message)

    def logs(self, job: str, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """Log lines; NotFoundError for a Job that never was here."""
        folder, kept = self._folder(job), self.root / "logs" / f"{job}.log"
        if not folder.root.exists():
            if not kept.exists():
                raise NotFoundError(f"job {job}: has no log here; see `orch status` for those that have")
            return last_lines(kept, tail)
        return follow_log(folder, tail, POLL_S) if follow else last_lines(folder.log, tail)

    def wait(self, timeout_s: float) -> None:
        """Return when a file of a Job or Sweep has changed since the last return, or after `timeout_s`."""
        self._acts = True
        until = time.monotonic() + timeout_s
        pause = POLL_S
        with door(self.root):
            while True:
                self._tend()
                paths = [folder.root for folder in self._folders()]
                seen = stamps([*paths, *(self.root / "sweeps").glob("[!.]*.json")])
                left = until - time.monotonic()
                if seen != self._seen or left <= 0:
                    self._seen = seen
                    return
                time.sleep(min(pause, left))
                pause = min(pause * 1.25, SLOWEST_POLL_S)

    def tidy(self, before: float, sweeps: Collection[str] = (), *, delete: bool) -> list[Leftover]:
        """What of the state ended before `before` (Unix seconds) and is not needed; with `delete` it goes."""
        with door(self.root), self._lock() if delete else contextlib.nullcontext():
            return Leftovers(self.root, before, sweeps).tidy(delete=delete)

    # What the Job controller, scheduler and garbage collector do in a cluster

    def _tend(self) -> None:
        """Bury the lost, press the overdue, start what has a free slot."""
        if all(folder.state() == "ended" for folder in self._folders()):
            return
        with self._lock():
            waiting: list[tuple[int, Ask]] = []
            busy = []
            for folder in self._folders():
                state = folder.state()
                if state == "lost":
                    folder.bury()
                elif state == "running":
                    busy.append(Busy(folder.devices(), asked_share(folder.job()["manifest"])))
                    if folder.deleting and folder.overdue():
                        folder.signal(signal.SIGKILL)
                elif state == "pending":
                    job = folder.job()
                    asked = asked_gpus(job["manifest"]), asked_share(job["manifest"])
                    waiting.append((job["order"], Ask(folder.name, *asked)))
            queue = [ask for _, ask in sorted(waiting, key=lambda entry: (entry[0], entry[1].job))]
            for name, devices in assign(queue, busy, self.slots):
                _start(self._folder(name), devices)

    def _recorded(self, job: ObservedJob) -> bool:
        return self._objects.recorded(job.labels[LABEL_SWEEP], job.name)

    def _take_over(self) -> None:
        """Put right what a killed process left: files half written, a Job marked as going but not told so."""
        with self._lock():  # as everybody who writes here: nothing is being written
            records = self.root / "records"
            for place in (self.root, self.root / "sweeps", self.root / "jobs", *records.glob("*")):
                remove_asides(place)
            for folder in self._folders():
                if folder.deleting and folder.state() == "running":
                    folder.ask_to_end()

    def _remove(self, folder: JobFolder) -> None:
        """Take a Job that does not run away, but keep its log."""
        if folder.state() == "lost":
            folder.bury()
        if folder.log.exists():
            (self.root / "logs").mkdir(exist_ok=True)
            os.replace(folder.log, self.root / "logs" / f"{folder.name}.log")
        remove(folder.root)

    def _observe(self, folder: JobFolder) -> ObservedJob:
        """The Job as it is; what is over is read once."""
        key = (folder.name, folder.root.stat().st_ino)
        if key in self._over and not folder.deleting:
            return self._over[key]
        waits = folder.state() == "pending"
        job = folder.observe(waits and unschedulable(asked_gpus(folder.job()["manifest"]), self.slots))
        if job.finished:
            self._over[key] = job
        return job

    def _folder(self, name: str) -> JobFolder:
        return JobFolder(self.root / "jobs" / checked_name(name))

    def _folders(self) -> list[JobFolder]:
        found = (self.root / "jobs").glob("[!.]*/job.json")
        return [JobFolder(path.parent) for path in sorted(found)]

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Held by whoever changes state: two controllers cannot start one Job twice."""
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / "lock", timeout=LOCK_TIMEOUT_S)
        try:
            lock.acquire()
        except Timeout as error:
            raise ClusterError(
                f"{self.root}: is locked by another process for over {LOCK_TIMEOUT_S:.0f} s, got no turn; "
                "look for a stopped orch process"
            ) from error
        try:
            yield
        finally:
            lock.release()


def _start(folder: JobFolder, devices: tuple[str, ...]) -> None:
    fault = supervisor.start(folder.root, devices)
    if fault and folder.state() == "pending":
        folder.bury(fault)
