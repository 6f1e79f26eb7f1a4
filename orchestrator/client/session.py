"""What every command works with: cluster, profile, stored sweeps, and finding a run by its name."""

from __future__ import annotations

import contextlib
import difflib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from orchestrator.controller.loop import Controller, stored_control
from orchestrator.controller.observed import Control, Observed, read_records
from orchestrator.controller.outcome import AttemptRecord
from orchestrator.controller.plan import plan
from orchestrator.controller.retry import memory_bytes
from orchestrator.controller.status import RunState, run_states
from orchestrator.errors import NotFoundError, SweepError, UserError
from orchestrator.profile import Profile, load_profile
from orchestrator.sweep.expand import Run, expand
from orchestrator.sweep.load import from_object
from orchestrator.sweep.spec import Sweep
from trainer.layout import Dump

if TYPE_CHECKING:
    from orchestrator.cluster.local import LocalCluster


@dataclass(frozen=True)
class Stored:
    """A submitted sweep: what is stored, and what it expands to."""

    object: Mapping[str, Any]
    sweep: Sweep
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return self.sweep.metadata.name

    @property
    def control(self) -> Control:
        return stored_control(self.object)


@dataclass(frozen=True)
class Found:
    """A run with its sweep."""

    stored: Stored
    run: Run


@dataclass(frozen=True)
class Session:
    """The place a command works in. `dump` is the folder of all state and artefacts."""

    dump: Path
    profile_path: Path | None = None

    @cached_property
    def profile(self) -> Profile:
        return load_profile(self.profile_path)

    @cached_property
    def cluster(self) -> LocalCluster:
        """The Jobs of this machine; nothing is written before something is changed."""
        from orchestrator.cluster.local import LocalCluster

        return LocalCluster(self.dump, self.profile)

    def sweeps(self) -> list[Stored]:
        """All submitted sweeps, by name; one that no longer expands is left out: its status says why."""
        found = []
        for value in self.cluster.sweeps():
            with contextlib.suppress(SweepError):
                found.append(self._expanded(value))
        return found

    def sweep(self, name: str) -> Stored:
        """The submitted sweep of that name. NotFoundError, with the nearest names, when there is none."""
        objects = {one["metadata"]["name"]: one for one in self.cluster.sweeps()}
        if name not in objects:
            raise NotFoundError(f"sweep {name}: is not submitted here{_nearest(name, objects)}")
        return self._expanded(objects[name])

    @staticmethod
    def _expanded(value: Mapping[str, Any]) -> Stored:
        name = str(value["metadata"]["name"])
        sweep = from_object(value, name)
        return Stored(value, sweep, expand(sweep, name))

    def records(self, stored: Stored) -> list[AttemptRecord]:
        """The records of a sweep's attempts, oldest first."""
        records = read_records(self.cluster.records(stored.name)).values()
        return sorted(records, key=lambda one: (one.finished_at or 0.0, one.stage, one.attempt))

    def observe(self, stored: Stored) -> Observed:
        """The sweep's surroundings now: Jobs first, so that none is missed between Jobs and records."""
        jobs = tuple(self.cluster.jobs(stored.name))
        records = read_records(self.cluster.records(stored.name))
        uid = stored.object["metadata"].get("uid")
        return Observed(jobs=jobs, records=records, control=stored.control, uid=uid)

    def states(self, stored: Stored) -> tuple[RunState, ...]:
        """Where each run of a sweep is now."""
        observed = self.observe(stored)
        return run_states(stored.sweep, stored.runs, observed, time.time(), self._max_memory)

    def settled(self, stored: Stored) -> bool:
        """Whether a controller would find nothing to do or wait for; it may have told something older."""
        observed = self.observe(stored)
        now = plan(stored.sweep, stored.runs, observed, time.time(), self._max_memory)
        return now.status.finished and not now.actions

    @property
    def _max_memory(self) -> int | None:
        limit = self.profile.maxMemory
        return memory_bytes(limit) if limit else None

    def controller(self, stop: threading.Event | None = None, poll_s: float = 1.0) -> Controller:
        """A controller of local Jobs, which never reach Kubernetes: its schema takes seconds to load."""
        return Controller(self.cluster, self.profile, stop=stop, poll_s=poll_s, check_schema=False)

    @property
    def log(self) -> Path:
        """Where a controller that was started in the background writes what it does."""
        return Dump(self.dump).orch / "controller.log"

    def run(self, text: str) -> Found:
        """The run that `text` names: run name, run id, or SWEEP/RUN.

        UserError that lists the candidates when several have the name, NotFoundError with the nearest names
        when none has.
        """
        return find(text, self.sweeps())

    @property
    def orch(self) -> str:
        """How `orch` is called to work in this place, other than where ORCH_DUMP points."""
        here = self.dump == Path(os.environ.get("ORCH_DUMP", "dump"))
        options = [] if here else ["--dump", str(self.dump)]
        options += ["--profile", str(self.profile_path)] if self.profile_path else []
        return " ".join(["orch", *options])

    def slots(self, name: str) -> int:
        """How many trainings of a sweep run at once on this machine."""
        each = self.sweep(name).sweep.spec.resources.gpus
        return max(1, len(self.cluster.slots.devices) // max(1, each))

    @contextlib.contextmanager
    def lead(self) -> Iterator[bool]:
        """Be the one controller of the dump inside the block; False when another is."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.cluster.lead())
            except UserError:
                if not self.led():
                    raise
                yield False
                return
            yield True

    def led(self) -> bool:
        """Whether a controller leads now, here or in another process."""
        if not self.cluster.root.is_dir():
            return False
        lock = FileLock(self.cluster.root / "leader.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return True
        lock.release()
        return False

    def control(self, name: str, **changes: object) -> bool:
        """Change a sweep's control where it differs; whether anything was written."""
        stored = self.sweep(name)
        control = stored.control.model_copy(update=changes)
        if control == stored.control:
            return False
        self.cluster.put_control(name, control.model_dump(mode="json", exclude_none=True))
        return True


def find(text: str, sweeps: Iterable[Stored]) -> Found:
    """As Session.run, in given sweeps."""
    everything = [Found(stored, run) for stored in sweeps for run in stored.runs]
    sweep, _, name = text.rpartition("/")
    found = [
        one
        for one in everything
        if name in (one.run.name, one.run.id, *one.run.also) and sweep in ("", one.stored.name)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(f"{one.stored.name}/{one.run.id}" for one in found)
        raise UserError(f"run {text}: names {len(found)} runs; say which: {choices}")
    known = [one.run.name for one in everything] + [one.run.id for one in everything]
    known += [f"{one.stored.name}/{one.run.name}" for one in everything]
    raise NotFoundError(f"run {text}: is in no submitted sweep{_nearest(text, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    choices = sorted(set(known))
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {', '.join(close)}?"
    return f"; there are {', '.join(choices[:5])}" if choices else "; submit it with `orch submit FILE`"
