"""Does what was planned, on the cluster: outcomes first, then deletions, then new Jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from orchestrator.cluster.base import Cluster, Created
from orchestrator.controller.memory import Memory
from orchestrator.controller.outcome import AttemptRecord
from orchestrator.controller.plan import Action, CreateJob, DeleteJob, RecordAttempt, RetireJob
from orchestrator.errors import JobRefusedError
from orchestrator.profile import Profile
from orchestrator.render import render_job
from orchestrator.sweep.naming import ANNOTATION_RUNS

LOG = logging.getLogger(__name__)
GOING_AGAIN_S = 2.0
CREATES_A_TURN = 50
"""Jobs made in one turn: what ended meanwhile is recorded before more are made."""
CREATES_AT_ONCE = 8  # what is refused now would be refused fifty times
OnRecord = Callable[[AttemptRecord], None]
T = TypeVar("T")
R = TypeVar("R")


class Acts:
    """`writers` requests are under way at once; `on_record` gets each record that is new.

    `check_schema` checks every Job against the Kubernetes client's models, whose import takes seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        writers: int = 1,
        check_schema: bool = True,
        on_record: OnRecord | None = None,
    ) -> None:
        self.cluster = cluster
        self._check_schema = check_schema
        self._on_record = on_record
        self._pool = ThreadPoolExecutor(writers, thread_name_prefix="writer") if writers > 1 else None

    def do(
        self, sweep: str, actions: Iterable[Action], profile: Profile, memory: Memory, now: float
    ) -> float | None:
        """Do it all; in how many seconds there is more to do, None: in no foreseeable time.

        JobRefusedError when a Job or a record is not taken, or a Job may not be deleted.
        """
        todo = list(actions)
        records = [one.record for one in todo if isinstance(one, RecordAttempt)]
        retired = [one.name for one in todo if isinstance(one, RetireJob)]
        deleted = [one for one in todo if isinstance(one, DeleteJob)]
        created = [one for one in todo if isinstance(one, CreateJob)]
        refused = self._records(sweep, records)
        # What rests on a record that was not taken waits for it, and no other Job's end does.
        self._each(
            lambda job: self.cluster.retire_job(job, profile.keep_jobs_s),
            [job for job in retired if job not in refused],
        )
        refusal = self._delete(one for one in deleted if one.name not in refused)
        if refused:
            raise next(iter(refused.values()))  # and nothing new begins beside an end that is not stored
        made: list[Created] = []
        for first in range(0, len(created), CREATES_AT_ONCE):
            some = created[first : first + CREATES_AT_ONCE]
            made += self._each(lambda one: self._create(one, profile, memory, now), some)
        if refusal:
            raise refusal  # told once everything else is done
        if Created.GOING in made:
            return GOING_AGAIN_S
        # There may be more to make; and of a conflict the runs fail at once, and say why.
        return 0.0 if len(created) == CREATES_A_TURN or Created.CONFLICT in made else None

    def _each(self, act: Callable[[T], R], items: list[T]) -> list[R]:
        """`act` on every item, several at once where there are writers; the first error is raised."""
        if self._pool is None or len(items) < 2:
            return [act(item) for item in items]
        return list(self._pool.map(act, items))

    def _records(self, sweep: str, records: list[AttemptRecord]) -> dict[str, JobRefusedError]:
        """Store them; what the cluster says to those that it does not take, by Job."""
        said = self._each(lambda record: self._record(sweep, record), records)
        return {record.job: one for record, one in zip(records, said, strict=True) if one}

    def _record(self, sweep: str, record: AttemptRecord) -> JobRefusedError | None:
        LOG.info("controller: %s %s: %s", record.job, record.failure or "done", record.evidence)
        try:
            new = self.cluster.put_record(sweep, record.job, record.to_json())
        except JobRefusedError as error:
            return error
        if new and self._on_record:
            self._on_record(record)
        return None

    def _delete(self, jobs: Iterable[DeleteJob]) -> JobRefusedError | None:
        """End them; what the cluster says to the last one that may not be deleted."""
        refusal = None
        for one in jobs:
            LOG.info("controller: deletes %s: %s", one.name, one.reason)
            try:
                self.cluster.delete_job(one.name, one.uid)
            except JobRefusedError as error:
                refusal = error
        return refusal

    def _create(self, action: CreateJob, profile: Profile, memory: Memory, now: float) -> Created:
        manifest = render_job(action.request, profile, check_schema=self._check_schema)
        if action.runs:
            manifest["metadata"].setdefault("annotations", {})[ANNOTATION_RUNS] = ",".join(action.runs)
        made = self.cluster.create_job(manifest)
        LOG.info("controller: %s %s", made.value, action.name)
        memory.tried(action.request.run_id)
        if made is Created.CREATED:
            memory.created[action.name] += 1
        elif made is Created.CONFLICT:
            memory.conflict(action.name, now)
        return made
