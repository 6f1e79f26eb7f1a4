"""Jobs with their pods by sweep, put together anew only where something changed since they were asked for."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field

from orchestrator.cluster.base import ObservedJob
from orchestrator.cluster.kube.decode import KeptJob, KeptPod
from orchestrator.cluster.kube.ownership import joined_one


@dataclass
class _Sweep:
    """Jobs by uid, pods by their group and by name, and what the sweep `uid` was told of them."""

    jobs: dict[str, KeptJob] = field(default_factory=dict)
    pods: dict[str, dict[str, KeptPod]] = field(default_factory=dict)
    changed: dict[str, None] = field(default_factory=dict)
    joined: dict[str, ObservedJob] = field(default_factory=dict)
    uid: str | None = None


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
            if sweep not in self._sweeps:
                return []
            mine = self._sweeps[sweep]
            if uid != mine.uid:
                mine.uid, mine.changed = uid, dict.fromkeys((*mine.jobs, *mine.pods, *mine.joined))
            for one in mine.changed:
                joined = joined_one(mine.jobs.get(one), list(mine.pods.get(one, {}).values()), uid)
                if joined is None:
                    mine.joined.pop(one, None)
                else:
                    mine.joined[one] = joined
            mine.changed.clear()
            return list(mine.joined.values())

    def _touched(self, sweep: str, uid: str) -> None:
        mine = self._sweeps[sweep]
        mine.changed[uid] = None
        if not mine.jobs and not mine.pods:
            del self._sweeps[sweep]
