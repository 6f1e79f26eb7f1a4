"""The one place that loops: observe → plan → act, until told to stop. The one sleep is `cluster.wait`."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from orchestrator.cluster.base import Cluster, Created, ObservedJob
from orchestrator.controller.observed import Control, Observed, read_records
from orchestrator.controller.outcome import FailureClass
from orchestrator.controller.plan import Action, CreateJob, DeleteJob, RecordAttempt, plan
from orchestrator.controller.retry import memory_bytes
from orchestrator.controller.status import SweepStatus, refused, unrenderable
from orchestrator.controller.world import World, record_as, record_of
from orchestrator.errors import NotFoundError, RenderError, SweepError
from orchestrator.profile import Profile
from orchestrator.render import render_job
from orchestrator.sweep.expand import Run, expand
from orchestrator.sweep.load import from_object
from orchestrator.sweep.naming import ANNOTATION_RUNS
from orchestrator.sweep.spec import Sweep

LOG = logging.getLogger(__name__)
MAX_BACKOFF_S = 30.0
OnStatus = Callable[[str, SweepStatus], None]


class Controller:
    """Keeps sweeps going on a cluster. `clock` gives Unix seconds; `stop` ends `run` at its next turn.

    `check_schema` checks every Job against the Kubernetes client's models, whose import takes seconds.
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
    ) -> None:
        self.cluster = cluster
        self.profile = profile
        self.clock = clock
        self.stop = stop or threading.Event()
        self.poll_s = poll_s
        self.check_schema = check_schema
        self._created: Counter[str] = Counter()
        self._conflicts: set[str] = set()
        self._expanded: dict[str, tuple[Any, Sweep, tuple[Run, ...]]] = {}

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
            names, good = sorted(sweeps or ()), True
            try:
                names = names if sweeps is not None else self._names()
                for name in names:
                    told[name] = self.step(name)
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
            self.cluster.wait(min(self.poll_s * 2**failures, max(self.poll_s, MAX_BACKOFF_S)))
        return told

    def step(self, name: str) -> SweepStatus:
        """One turn for one sweep: observe, plan, act, tell. NotFoundError if there is no such sweep."""
        stored = self._stored(name)
        try:
            sweep, runs = self._expand(name, stored)
            planned = plan(sweep, runs, self._observe(name, stored), self.clock(), self._max_memory)
            status = planned.status
            for action in planned.actions:
                self._act(name, action)
        except SweepError as error:
            status = refused(error.faults)
        except RenderError as error:
            status = unrenderable(status, str(error))
        self.cluster.put_status(name, status.to_json())
        return status

    def drain(self, name: str) -> None:
        """End the sweep's Jobs (SIGTERM: they checkpoint) and record them, so that the next turn goes on.

        Whatever finished meanwhile is recorded as what it is; the others as preempted.
        """
        stored = self._stored(name)
        sweep, runs = self._expand(name, stored)
        observed = self._observe(name, stored)
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

    def _names(self) -> list[str]:
        return [str(stored["metadata"]["name"]) for stored in self.cluster.sweeps()]

    def _stored(self, name: str) -> dict[str, Any]:
        for stored in self.cluster.sweeps():
            if stored["metadata"]["name"] == name:
                return stored
        raise NotFoundError(f"sweep {name}: is not submitted here; submit it with `orch submit FILE`")

    def _expand(self, name: str, stored: Mapping[str, Any]) -> tuple[Sweep, tuple[Run, ...]]:
        """The sweep and its runs, made anew only when what is stored has changed."""
        spec = stored.get("spec")
        known = self._expanded.get(name)
        if known is None or known[0] != spec:
            sweep = from_object(stored, name)
            known = self._expanded[name] = (spec, sweep, expand(sweep, name))
        return known[1], known[2]

    def _observe(self, name: str, stored: Mapping[str, Any]) -> Observed:
        # Jobs before records: a Job recorded and gone in between is then seen twice rather than never.
        jobs = tuple(self.cluster.jobs(name))
        return Observed(
            jobs=jobs,
            records=read_records(self.cluster.records(name)),
            control=stored_control(stored),
            uid=stored["metadata"].get("uid"),
            created=self._created,
            conflicts=frozenset(self._conflicts),
        )

    def _act(self, name: str, action: Action) -> None:
        match action:
            case RecordAttempt(record):
                LOG.info("controller: %s %s: %s", record.job, record.failure or "done", record.evidence)
                self.cluster.put_record(name, record.job, record.to_json())
            case DeleteJob(job, reason):
                LOG.info("controller: deletes %s: %s", job, reason)
                self.cluster.delete_job(job)
            case CreateJob():
                self._create(action)

    def _create(self, action: CreateJob) -> None:
        manifest = render_job(action.request, self.profile, check_schema=self.check_schema)
        if action.runs:
            manifest["metadata"].setdefault("annotations", {})[ANNOTATION_RUNS] = ",".join(action.runs)
        made = self.cluster.create_job(manifest)
        LOG.info("controller: %s %s", made.value, action.name)
        if made is Created.CREATED:
            self._created[action.name] += 1
        elif made is Created.CONFLICT:
            self._conflicts.add(action.name)


def stored_control(stored: Mapping[str, Any]) -> Control:
    """The commands in a stored Sweep object."""
    return Control.model_validate(stored.get("spec", {}).get("control") or {})
