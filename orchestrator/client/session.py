"""What every command works with: cluster, profile, stored sweeps, and finding a run by its name.

A session is of this machine (`local.LocalSession`) or of a namespace of a cluster (`kube.KubeSession`).
"""

from __future__ import annotations

import contextlib
import difflib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.client.given_up import with_given_up
from orchestrator.cluster.base import Cluster
from orchestrator.controller.loop import Controller
from orchestrator.controller.memory import Memory
from orchestrator.controller.observed import Control, Observed, read_records, stored_control
from orchestrator.controller.outcome import AttemptRecord
from orchestrator.controller.plan import plan
from orchestrator.controller.status import RunState, run_states
from orchestrator.errors import NotFoundError, SweepError, UserError
from orchestrator.profile import Profile
from orchestrator.sweep.expand import Run, expand
from orchestrator.sweep.load import from_object
from orchestrator.sweep.naming import ANNOTATION_SUBMITTER
from orchestrator.sweep.quantity import memory_bytes
from orchestrator.sweep.spec import Sweep

MakeController = Callable[[threading.Event], Controller]
"""A controller that ends when the event is set."""


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

    @property
    def status(self) -> Mapping[str, Any]:
        """What the controller told last; {} before it has seen the sweep."""
        return self.object.get("status") or {}


@dataclass(frozen=True)
class Found:
    """A run with its sweep."""

    stored: Stored
    run: Run


class Session(ABC):
    """The place a command works in.

    `poll_s` is how often someone who watches looks again; `unled` says what to do when no controller works.
    In a `remote` place others keep one going.
    """

    poll_s: float
    remote: bool
    unled: str

    @property
    @abstractmethod
    def where(self) -> str:
        """The place, in a sentence: `here, in dump`."""

    @property
    def namespace(self) -> str | None:
        """The namespace of a cluster; None on this machine."""
        return None

    @property
    @abstractmethod
    def profile(self) -> Profile:
        """The lab's defaults there."""

    @property
    @abstractmethod
    def cluster(self) -> Cluster:
        """Where Jobs run; nothing is written before something is changed."""

    @property
    @abstractmethod
    def user(self) -> str:
        """Who is working."""

    @abstractmethod
    def command_line(self, *words: str) -> str:
        """How `orch` is called to work here: `orch status lmbda0 -w --namespace ml`."""

    @abstractmethod
    def led(self) -> bool:
        """Whether a controller works now."""

    @abstractmethod
    def leave(self, name: str) -> str:
        """See that a controller goes on with a sweep; how to follow it."""

    @abstractmethod
    def slots(self, name: str) -> int:
        """How many Jobs of a sweep run at once, at most."""

    @contextlib.contextmanager
    def lead(self) -> Iterator[MakeController | None]:
        """Be the one controller inside the block; None when another is, or has to be."""
        yield None

    def start_controller(self) -> bool:
        """Start a controller that outlives this command; False when one leads, or others start it."""
        return False

    def absent(self, name: str) -> str:
        """What to say of a sweep that is not there, after a semicolon."""
        return ""

    def sweeps(self) -> list[Stored]:
        """All submitted sweeps, by name; one that no longer expands is left out: its status says why."""
        found = []
        for value in self.cluster.sweeps():
            with contextlib.suppress(SweepError):
                found.append(self.expanded(value))
        return found

    def objects(self, *, mine: bool = False) -> list[dict[str, Any]]:
        """All stored Sweep objects by name, or only those that this user submitted."""
        found = self.cluster.sweeps()
        return [one for one in found if not mine or submitter(one) == self.user]

    def sweep(self, name: str) -> Stored:
        """The submitted sweep of that name. NotFoundError, with the nearest names, when there is none."""
        value = self.cluster.sweep(name)
        if value is None:
            known = [str(one["metadata"]["name"]) for one in self.cluster.sweeps()]
            raise NotFoundError(
                f"sweep {name}: is not submitted {self.where}{_nearest(name, known)}{self.absent(name)}"
            )
        return self.expanded(value)

    @staticmethod
    def expanded(value: Mapping[str, Any]) -> Stored:
        """A stored Sweep object with its runs. SweepError when it no longer expands."""
        name = str(value["metadata"]["name"])
        sweep = from_object(value, name)
        return Stored(value, sweep, expand(sweep, name))

    def records(self, stored: Stored) -> list[AttemptRecord]:
        """The records of a sweep's attempts, oldest first."""
        records = read_records(self.cluster.records(stored.name)).values()
        return sorted(records, key=lambda one: (one.finished_at or 0.0, one.stage, one.attempt))

    def observe(self, stored: Stored) -> Observed:
        """The sweep's surroundings now: Jobs first, so that none is missed between Jobs and records."""
        jobs, now = tuple(self.cluster.jobs(stored.name)), time.time()
        written = self.cluster.records(stored.name)
        records = read_records(written)
        uid = stored.object["metadata"].get("uid")
        pending = (job for job in jobs if job.name not in written)
        return Observed(
            jobs=jobs,
            records=records,
            control=stored.control,
            uid=uid,
            unreadable=frozenset(written) - frozenset(records),
            said=Memory(str(uid)).said(pending, now, self.cluster.said),
        )

    def states(self, stored: Stored) -> tuple[RunState, ...]:
        """Where each run of a sweep is now."""
        observed = self.observe(stored)
        states = run_states(stored.sweep, stored.runs, observed, time.time(), self.max_memory)
        return with_given_up(stored.name, states, stored.status)

    def settled(self, stored: Stored) -> bool:
        """Whether a controller would find nothing to do or wait for; it may have told something older."""
        observed = self.observe(stored)
        now = plan(stored.sweep, stored.runs, observed, time.time(), self.max_memory)
        return now.status.finished and not now.actions

    @property
    def max_memory(self) -> int | None:
        """The profile's limit in bytes."""
        limit = self.profile.maxMemory
        return memory_bytes(limit) if limit else None

    def run(self, text: str) -> Found:
        """The run that `text` names: run name, run id, or SWEEP/RUN.

        UserError that lists the candidates when several have the name, NotFoundError with the nearest names
        when none has.
        """
        return find(text, self.sweeps())

    def control(self, name: str, **changes: object) -> bool:
        """Change a sweep's control where it differs; whether anything was written."""
        return self.command(name, lambda control: changes)

    def command(self, name: str, change: Callable[[Control], Mapping[str, object]]) -> bool:
        """As control, by a change that depends on what is stored."""

        def changed(stored: dict[str, Any]) -> dict[str, Any]:
            before = Control.model_validate(stored)
            after = before.model_copy(update=dict(change(before)))
            return stored if after == before else after.model_dump(mode="json", exclude_none=True)

        return self.cluster.put_control(name, changed)


def submitter(sweep: Mapping[str, Any]) -> str | None:
    """Who submitted a Sweep object first, as far as that is known."""
    annotations: Mapping[str, str] = sweep["metadata"].get("annotations") or {}
    return annotations.get(ANNOTATION_SUBMITTER)


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
