"""The controller's cluster: reads cost no request, for reflectors hold the Sweeps, Jobs, pods and records.

Save one: a Job that is over while the end of its pod has not been seen makes that pod be looked up.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from typing import Any, Generic, TypeVar

from orchestrator.cluster.base import ObservedJob, OpenPart
from orchestrator.cluster.kube import decode
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.cluster import ALL_JOBS, ALL_RECORDS, ORPHANED, KubeCluster
from orchestrator.cluster.kube.decode import Kept, KeptJob, KeptPod, KeptRecord, KeptSweep
from orchestrator.cluster.kube.jobindex import JobIndex
from orchestrator.cluster.kube.paths import CONFIG_MAPS, JOBS, PODS, SWEEPS, Resource
from orchestrator.cluster.kube.reflector import Reflector
from orchestrator.cluster.kube.store import Item
from orchestrator.cluster.openindex import OpenIndex

K = TypeVar("K", bound=Kept)


class BySweep(Generic[K]):
    """What a reflector holds, by sweep and name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, OpenIndex[K]] = defaultdict(OpenIndex)

    def set(self, one: K) -> None:
        with self._lock:
            self._kept[one.sweep].set(one.name, one)

    def drop(self, one: Kept) -> None:
        with self._lock:
            if one.sweep in self._kept:
                self._kept[one.sweep].drop(one.name)
                if not len(self._kept[one.sweep]):
                    del self._kept[one.sweep]

    def of(self, sweep: str) -> list[K]:
        with self._lock:
            return self._kept[sweep].all() if sweep in self._kept else []

    def open(self, sweep: str, closed: Set[str]) -> tuple[list[K], int]:
        """Those whose names are not closed (see OpenIndex), and how many there are whose names are."""
        with self._lock:
            if sweep not in self._kept:
                return [], 0
            kept = self._kept[sweep]
            found = kept.open(closed)
            return found, len(kept) - len(found)

    def get(self, sweep: str, name: str) -> K | None:
        with self._lock:
            return self._kept[sweep].get(name) if sweep in self._kept else None

    def all(self) -> list[K]:
        with self._lock:
            return [one for kept in self._kept.values() for one in kept.all()]


class WatchedCluster(KubeCluster):
    """As KubeCluster; `on_change` gets the name of a sweep that something happened to, from any thread.

    A pod that is gone is kept in its last state until its Job is gone: in every disruption the pod vanishes
    before the Job is Failed.
    """

    def __init__(self, api: Api, on_change: Callable[[str], None]) -> None:
        super().__init__(api)
        self._on_change = on_change
        self._sweeps: BySweep[KeptSweep] = BySweep()
        self._jobs = JobIndex()
        self._records: BySweep[KeptRecord] = BySweep()
        self._decoders: dict[Resource, Callable[[bytes], Kept]] = {
            SWEEPS: decode.sweep,
            JOBS: decode.job,
            PODS: decode.pod,
            CONFIG_MAPS: decode.record,
        }
        self.reflectors: dict[Resource, Reflector[Any]] = {
            SWEEPS: self._reflector(SWEEPS, "", self._keep(self._sweeps)),
            JOBS: self._reflector(JOBS, ALL_JOBS, self._job_changed),
            PODS: self._reflector(PODS, ALL_JOBS, self._pod_changed),
            CONFIG_MAPS: self._reflector(CONFIG_MAPS, ALL_RECORDS, self._keep(self._records)),
        }

    def start(self) -> None:
        """Begin to watch."""
        for reflector in self.reflectors.values():
            reflector.start()

    def stop(self) -> None:
        """Stop watching and wait for the threads."""
        for reflector in self.reflectors.values():
            reflector.stop()
        for reflector in self.reflectors.values():
            reflector.join()

    @property
    def synced(self) -> bool:
        """Whether all that exists has been seen once: before that, nothing may be concluded from absence."""
        return all(reflector.synced.is_set() for reflector in self.reflectors.values())

    def wait_synced(self, timeout_s: float) -> bool:
        """Whether that came about within the time."""
        return all(reflector.synced.wait(timeout_s) for reflector in self.reflectors.values())

    # Reads

    def sweeps(self) -> list[dict[str, Any]]:
        return [one.sweep_object for one in sorted(self._sweeps.all(), key=lambda one: one.name)]

    def sweep(self, name: str) -> dict[str, Any] | None:
        found = self._sweeps.get(name, name)
        return found.sweep_object if found else None

    def jobs(self, sweep: str) -> list[ObservedJob]:
        uid = self._stored(sweep)["metadata"]["uid"]
        return self._explained(sweep, self._jobs.of(sweep, uid))

    def records(self, sweep: str) -> dict[str, Mapping[str, Any]]:
        uid = self._stored(sweep)["metadata"]["uid"]
        return _of_owner(uid, self._records.of(sweep))

    def open_part(self, sweep: str, closed: Set[str]) -> OpenPart:
        uid = self._stored(sweep)["metadata"]["uid"]
        jobs = self._explained(sweep, self._jobs.open(sweep, uid, closed))
        # Nobody makes a record for a sweep that is gone: one with a closed name has the owner it had.
        kept, recorded = self._records.open(sweep, closed)
        return OpenPart(jobs, _of_owner(uid, kept), complete=recorded == len(closed))

    def _explained(self, sweep: str, jobs: Iterable[ObservedJob]) -> list[ObservedJob]:
        return [self.refreshed(job) if self._unexplained(sweep, job) else job for job in jobs]

    def _unexplained(self, sweep: str, job: ObservedJob) -> bool:
        """Whether a Job is over, and how its pod ended was neither seen nor recorded.

        The watch of the Jobs may be ahead of that of the pods.
        """
        ended = any(pod.phase in ("Succeeded", "Failed") for pod in job.pods)
        return job.finished and not ended and self._records.get(sweep, job.name) is None

    # Changes, on the reflectors' threads

    def _now(self, resource: Resource, raw: bytes) -> None:
        # Read your writes: what was made is seen at the next turn, however late its event comes.
        self.reflectors[resource].put(_item(self._decoders[resource])(raw))

    def _reflector(
        self, resource: Resource, selector: str, on_change: Callable[[str, Any, Any], None]
    ) -> Reflector[Any]:
        return Reflector(
            self.api,
            self._path(resource),
            _item(self._decoders[resource]),
            selector=selector,
            on_change=on_change,
            name=resource.plural,
        )

    def _keep(self, index: BySweep[K]) -> Callable[[str, K | None, K | None], None]:
        def changed(key: str, old: K | None, new: K | None) -> None:
            if new is not None:
                index.set(new)
            elif old is not None:
                index.drop(old)
            self._woken(new or old)

        return changed

    def _job_changed(self, key: str, old: KeptJob | None, new: KeptJob | None) -> None:
        if old is not None and (new is None or new.uid != old.uid):
            self._jobs.drop_job(old)
        if new is not None:
            self._jobs.set_job(new)
        self._woken(new or old)

    def _pod_changed(self, key: str, old: KeptPod | None, new: KeptPod | None) -> None:
        if old is not None and new is not None and old.group != new.group:
            self._jobs.drop_pod(old)  # its Job was deleted, and it was left behind
        if new is not None:
            self._jobs.set_pod(new)
        elif old is not None:
            if self._jobs.has(old.sweep, old.owner):
                self._jobs.set_pod(_gone(old))
            else:
                self._jobs.drop_pod(old)
        self._woken(new or old)

    def _woken(self, one: Kept | None) -> None:
        if one is not None and one.sweep:
            self._on_change(one.sweep)


def _of_owner(uid: str, kept: Iterable[KeptRecord]) -> dict[str, Mapping[str, Any]]:
    return {one.name: one.record for one in kept if one.owner in (uid, ORPHANED)}


def _gone(pod: KeptPod) -> KeptPod:
    """The last state of a pod that is no more: it cannot write any longer, nor use a GPU."""
    phase = "Failed" if pod.living else pod.pod.phase
    missed = pod.pod.started_at is not None and pod.pod.finished_at is None
    ended = time.time() if missed else pod.pod.finished_at
    return replace(pod, pod=replace(pod.pod, phase=phase, ready=False, gone_by=None, finished_at=ended))


def _item(decoder: Callable[[bytes], Kept]) -> Callable[[bytes], Item[Any]]:
    def item(raw: bytes) -> Item[Any]:
        kept = decoder(raw)
        return Item(kept.name, kept.resource_version, kept)

    return item
