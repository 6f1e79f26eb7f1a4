"""Jobs with their pods by sweep, put together anew only where something changed since they were asked for."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass, field

from orchestrator.cluster.base import ObservedJob
from orchestrator.cluster.kube.decode import KeptJob, KeptPod
from orchestrator.cluster.kube.ownership import joined_one
from orchestrator.cluster.openindex import OpenIndex


@dataclass
class _Sweep:
    """Jobs by uid, pods by their group and by name, and what the sweep `uid` was told of them."""

    jobs: dict[str, KeptJob] = field(default_factory=dict)
    pods: dict[str, dict[str, KeptPod]] = field(default_factory=dict)
    changed: dict[str, None] = field(default_factory=dict)
    joined: OpenIndex[ObservedJob] = field(default_factory=OpenIndex)
    uid: str | None = None

    def look(self, uid: str) -> OpenIndex[ObservedJob]:
        """The Jobs of the sweep with this uid, those put together anew that changed since."""
        if uid != self.uid:
            known = (job.uid for job in self.joined.all())
            self.uid, self.changed = uid, dict.fromkeys((*self.jobs, *self.pods, *known))
        for one in self.changed:
            joined = joined_one(self.jobs.get(one), list(self.pods.get(one, {}).values()), uid)
            if joined is None:
                self.joined.drop(one)
            else:
                self.joined.set(one, joined)
        self.changed.clear()
        return self.joined


class JobIndex:
    """Tell it of every change, from any thread; an unchanged Job is the same object at every look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sweeps: dict[str, _Sweep] = defaultdict(_Sweep)

    def set_job(self, job: KeptJob) -> None:
        with self._lock:
            mine = self._sweeps[job.sweep]
            mine.jobs[job.uid] = job
            mine.changed[job.uid] = None

    def drop_job(self, job: KeptJob) -> None:
        """The Job is gone, and with it what is kept of its ended pods."""
        with self._lock:
            mine = self._sweeps[job.sweep]
            mine.jobs.pop(job.uid, None)
            living = {name: pod for name, pod in mine.pods.pop(job.uid, {}).items() if pod.living}
            if living:
                mine.pods[job.uid] = living
            self._touched(job.sweep, job.uid)

    def set_pod(self, pod: KeptPod) -> None:
        with self._lock:
            mine = self._sweeps[pod.sweep]
            mine.pods.setdefault(pod.group, {})[pod.name] = pod
            mine.changed[pod.group] = None

    def drop_pod(self, pod: KeptPod) -> None:
        with self._lock:
            pods = self._sweeps[pod.sweep].pods
            pods.get(pod.group, {}).pop(pod.name, None)
            if not pods.get(pod.group):
                pods.pop(pod.group, None)
            self._touched(pod.sweep, pod.group)

    def has(self, sweep: str, uid: str) -> bool:
        """Whether the Job with this uid exists."""
        with self._lock:
            return sweep in self._sweeps and uid in self._sweeps[sweep].jobs

    def of(self, sweep: str, uid: str) -> list[ObservedJob]:
        """The Jobs of the sweep with this uid: see ownership.joined."""
        with self._lock:
            return self._sweeps[sweep].look(uid).all() if sweep in self._sweeps else []

    def open(self, sweep: str, uid: str, closed: Set[str]) -> list[ObservedJob]:
        """As `of`, without those whose names are closed: see OpenIndex."""
        with self._lock:
            return self._sweeps[sweep].look(uid).open(closed) if sweep in self._sweeps else []

    def _touched(self, sweep: str, uid: str) -> None:
        mine = self._sweeps[sweep]
        mine.changed[uid] = None
        if not mine.jobs and not mine.pods:
            del self._sweeps[sweep]
