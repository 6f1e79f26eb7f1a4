"""The one place that acts: observe → plan → act → tell, a turn for one sweep at a time.

`Controller.run` loops over the Jobs of this machine, `controller.serve` in a cluster.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.cluster.base import Cluster, ObservedJob
from orchestrator.controller.acts import CREATES_A_TURN, Acts
from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.memory import Memory
from orchestrator.controller.observed import Observed, RecordReader, stored_control
from orchestrator.controller.outcome import AttemptRecord, FailureClass
from orchestrator.controller.plan import plan
from orchestrator.controller.settling import record_as, record_of
from orchestrator.controller.status import SweepStatus, refused, stamped, unrenderable, waiting
from orchestrator.controller.teller import Teller
from orchestrator.controller.world import World
from orchestrator.errors import JobRefusedError, NotFoundError, RenderError, SweepError
from orchestrator.profile import Profile
from orchestrator.sweep.expand import expand
from orchestrator.sweep.load import from_object
from orchestrator.sweep.quantity import memory_bytes
from orchestrator.sweep.spec import Sweep

LOG = logging.getLogger(__name__)
MAX_BACKOFF_S = 30.0
REFUSED_AGAIN_S = 30.0
"""A Job that was not taken (quota) is tried again this much later, or as soon as another ends."""
NOTICES_S = 10.0
"""At its end a controller waits so long for the webhook to take what ended."""
OnStatus = Callable[[str, SweepStatus], None]


@dataclass(frozen=True)
class Turn:
    """What a turn ended with: the status, and in how many seconds the next is due though nothing changes."""

    status: SweepStatus
    again_s: float | None = None


class Controller:
    """Keeps sweeps going on a cluster. `clock` gives Unix seconds; `stop` ends `run` at its next turn.

    `check_schema` checks every Job against the Kubernetes client's models, whose import takes seconds.
    `writers` requests are under way at once; a status is told at most every `tell_every_s`, and every
    `hours_every_s` when only its GPU-hours are new. `on_record` gets each record that is new.
    """

    def __init__(
        self,
        cluster: Cluster,
        profile: Profile,
        clock: Callable[[], float] = time.time,
        *,
        stop: threading.Event | None = None,
        poll_s: float = 5.0,
        check_schema: bool = True,
        writers: int = 1,
        tell_every_s: float = 0.0,
        hours_every_s: float = 0.0,
        on_record: Callable[[AttemptRecord], None] | None = None,
    ) -> None:
        self.cluster = cluster
        self.profile = profile
        self.clock = clock
        self.stop = stop or threading.Event()
        self.poll_s = poll_s
        self.acts = Acts(cluster, writers, check_schema, on_record)
        self._memories: dict[str, Memory] = {}
        self.teller = Teller(cluster, tell_every_s, hours_every_s, notify=lambda: self.profile.notify)
        self._read = RecordReader()
        self._expanded: dict[str, tuple[Any, Sweep, Catalogue]] = {}

    def run(
        self,
        sweeps: Collection[str] | None = None,
        *,
        until_done: bool = False,
        on_status: OnStatus | None = None,
        give_up_after: int | None = None,
    ) -> dict[str, SweepStatus]:
        """Step every sweep (or those named) again and again; the last status of each.

        Ends when `stop` is set or, with `until_done`, when all are finished. A step that fails is logged and
        repeated later; its error is raised after `give_up_after` failures without a good turn between.
        """
        told: dict[str, SweepStatus] = {}
        failures = 0
        while not self.stop.is_set():
            names, good, again_s = sorted(sweeps or ()), True, self.poll_s
            try:
                names = names if sweeps is not None else self.names()
                for name in names:
                    turn = self.step(name)
                    told[name] = turn.status
                    again_s = min(again_s, self.poll_s if turn.again_s is None else turn.again_s)
                    if on_status:
                        on_status(name, told[name])
            except Exception as error:  # whatever went wrong, the next turn sees the world anew
                good = False
                failures += 1
                hopeless = isinstance(error, NotFoundError) and sweeps is not None
                if hopeless or (give_up_after is not None and failures >= give_up_after):
                    raise
                LOG.exception("controller: a step failed, tried again; failures in a row: %d", failures)
            if good:
                failures = 0
                if until_done and all(told[name].finished for name in names):
                    break
            self.cluster.wait(min(again_s * 2**failures, max(self.poll_s, MAX_BACKOFF_S)))
        self.teller.close(NOTICES_S, self.clock())
        return told

    def step(self, name: str) -> Turn:
        """One turn for one sweep: observe, plan, act, tell. NotFoundError if there is no such sweep."""
        stored = self._stored(name)
        if stored["metadata"].get("deletionTimestamp"):
            return Turn(SweepStatus(finished=True))  # what it owns goes with it: nothing may be made anew
        again_s: float | None = None
        try:
            sweep, runs = self._expand(name, stored)
            observed = self._observe(name, stored, runs)
            planned = plan(sweep, runs, observed, self.clock(), self._max_memory, CREATES_A_TURN)
            status = planned.status
            memory = self._memory(name, observed.uid)
            more_s = self.acts.do(name, planned.actions, self.profile, memory, self.clock())
            memory.close(planned.closed)
            again_s = _soonest(planned.due_s, more_s)
        except SweepError as error:
            status = refused(error.faults)
        except RenderError as error:
            status = unrenderable(status, str(error))
        except JobRefusedError as error:
            status, again_s = waiting(status, error), REFUSED_AGAIN_S
        told = stamped(status, stored.get("status"), stored["metadata"].get("generation"), self.clock())
        later_s = self.teller.tell(name, stored, told, self.clock())
        return Turn(told, _soonest(again_s, later_s))

    def drain(self, name: str) -> None:
        """End the sweep's Jobs (SIGTERM: they checkpoint) and record them, so that the next turn goes on.

        Whatever finished meanwhile is recorded as what it is; the others as preempted.
        """
        stored = self._stored(name)
        sweep, runs = self._expand(name, stored)
        observed = self._observe(name, stored, runs)
        ending = {job.name: job for job in observed.jobs if job.name not in observed.records}
        for job_name, job in ending.items():
            if not job.finished:
                self.cluster.delete_job(job_name)
        last = dict(ending)
        while living := self._living(name, ending, last):
            LOG.info("controller: waiting for %s to end", ", ".join(living))
            self.cluster.wait(self.poll_s)
        world = World(sweep, runs, observed, self.clock(), self._max_memory)
        for job in last.values():
            if not job.pods:
                continue  # it never started: the same attempt is made again
            record = record_of(world, job)
            record = record or record_as(world, job, FailureClass.PREEMPTED, "interrupted by its user")
            self.cluster.put_record(name, record.job, record.to_json())

    def forget(self, name: str) -> None:
        """Drop what is kept of a sweep that is gone."""
        self._expanded.pop(name, None)
        self._memories.pop(name, None)
        self._read.forget(name)
        self.teller.forget(name)

    def names(self) -> list[str]:
        """The stored sweeps."""
        return [str(stored["metadata"]["name"]) for stored in self.cluster.sweeps()]

    def _living(
        self, name: str, ending: Mapping[str, ObservedJob], last: dict[str, ObservedJob]
    ) -> list[str]:
        """Those of `ending` that still run; what is seen of them is kept in `last`."""
        seen = {job.name: job for job in self.cluster.jobs(name) if job.name in ending}
        last.update(seen)
        return [job.name for job in seen.values() if not job.finished]

    @property
    def _max_memory(self) -> int | None:
        limit = self.profile.maxMemory
        return memory_bytes(limit) if limit else None

    def _stored(self, name: str) -> dict[str, Any]:
        stored = self.cluster.sweep(name)
        if stored is not None:
            return stored
        raise NotFoundError(f"sweep {name}: is not submitted here; submit it with `orch submit FILE`")

    def _expand(self, name: str, stored: Mapping[str, Any]) -> tuple[Sweep, Catalogue]:
        """The sweep and its runs, made anew only when what is stored has changed."""
        spec = {key: value for key, value in stored.get("spec", {}).items() if key != "control"}
        known = self._expanded.get(name)
        if known is None or known[0] != spec:
            sweep = from_object(stored, name)
            known = self._expanded[name] = (spec, sweep, Catalogue(expand(sweep, name)))
        return known[1], known[2]

    def _observe(self, name: str, stored: Mapping[str, Any], runs: Catalogue) -> Observed:
        uid, control = stored["metadata"].get("uid"), stored_control(stored)
        memory = self._memory(name, uid)
        part = memory.open_part(runs, control, CREATES_A_TURN, partial(self.cluster.open_part, name))
        now, jobs, written = self.clock(), tuple(part.jobs), part.records
        records = self._read(name, written)
        said = memory.said((job for job in jobs if job.name not in written), now, self.cluster.said)
        since = memory.since((job for job in jobs if job.name not in written), now, said)
        if overdue := memory.overdue(now):
            jobs = tuple(self.cluster.refreshed(job) if job.name in overdue else job for job in jobs)
        observed = Observed(
            jobs=jobs,
            records=records,
            control=control,
            uid=uid,
            created=memory.created,
            conflicts=memory.conflicts(now, self.cluster.taken),
            unreadable=frozenset(written) - frozenset(records),
            since=since,
            said=said,
        )
        return memory.seen(observed, now)

    def _memory(self, name: str, uid: str | None) -> Memory:
        memory = self._memories.get(name)
        if memory is None or memory.uid != (uid or ""):
            memory = self._memories[name] = Memory(uid or "")
        return memory


def _soonest(*times_s: float | None) -> float | None:
    return min((one for one in times_s if one is not None), default=None)
