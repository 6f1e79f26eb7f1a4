"""When Jobs came and ended, all by one clock: that of a watch of our own."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from bench.follow import Object, follow
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.paths import JOBS
from orchestrator.sweep.naming import ANNOTATION_RUN, ANNOTATION_RUNS, LABEL_ATTEMPT, LABEL_STAGE, LABEL_SWEEP


@dataclass
class Seen:
    """A Job: monotonic seconds at which we first heard of it, and of its end."""

    name: str
    sweep: str
    stage: str
    attempt: int
    run: str
    runs: tuple[str, ...]
    created: float
    complete: float | None = None


class JobClock:
    """The Jobs of a namespace since `start`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._jobs: dict[str, Seen] = {}
        self._thread = threading.Thread(target=self._run, name="jobclock", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The thread ends with its next event, or with the process."""
        self._stop.set()

    def of(self, sweep: str, stage: str | None = None) -> list[Seen]:
        """The sweep's Jobs in the order in which they came."""
        with self._changed:
            mine = [one for one in self._jobs.values() if one.sweep == sweep and stage in (None, one.stage)]
        return sorted(mine, key=lambda one: one.created)

    def count(self) -> int:
        """All Jobs there are."""
        with self._changed:
            return len(self._jobs)

    def _run(self) -> None:
        for kind, job in follow(self._api, JOBS.path(self._api.namespace), self._stop):
            now = time.monotonic()
            with self._changed:
                if kind == "DELETED":
                    self._jobs.pop(job["metadata"]["name"], None)
                else:
                    self._note(job, now)

    def _note(self, job: Object, now: float) -> None:
        meta = job["metadata"]
        name, labels, annotations = meta["name"], meta.get("labels", {}), meta.get("annotations", {})
        seen = self._jobs.get(name)
        if seen is None:
            seen = self._jobs[name] = Seen(
                name=name,
                sweep=labels.get(LABEL_SWEEP, ""),
                stage=labels.get(LABEL_STAGE, ""),
                attempt=int(labels.get(LABEL_ATTEMPT, 1)),
                run=annotations.get(ANNOTATION_RUN, ""),
                runs=tuple(filter(None, annotations.get(ANNOTATION_RUNS, "").split(","))),
                created=now,
            )
        conditions = job.get("status", {}).get("conditions", [])
        if seen.complete is None and any(
            c["type"] == "Complete" and c["status"] == "True" for c in conditions
        ):
            seen.complete = now
