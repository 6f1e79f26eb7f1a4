"""A stand-in for Kueue 0.12, which cannot be installed here: what it does to Jobs, request by request.

Made from Kueue's documentation (Workload, ResourceFlavor, Troubleshooting Jobs) and from what its integration
of Jobs does. A queue's Jobs are suspended and have a Workload; admission writes the flavor's labels and
tolerations into the pod template and unsuspends, in one patch; eviction suspends, takes startTime away and
puts the template back, in three. Of the scheduler there is as much as a test needs: one flavor at a time, a
quota of GPUs, first come first served.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import Conflict, Invalid, NotFound, TooMany
from orchestrator.cluster.kube.paths import CORE_EVENTS, JOBS, Resource
from tests.cluster.kueue.objects import (
    GROUP,
    JOB_UID,
    MANAGED_LABELS,
    QUEUE_NAME,
    QUEUES,
    STOPPING,
    VERSION,
    WORKLOADS,
    Flavor,
    Object,
    condition_of,
    finished,
    gpus_of,
    holds,
    placed_meta,
    placed_spec,
    replaced,
    reserved,
)
from tests.cluster.rig.settings import GPU_RESOURCE

LOOKS_AGAIN_S = 0.2


class Kueue:
    """Works on the Jobs of a namespace while the block lasts.

    `flavor` is what it admits to from now on, `gpus` the quota of its ClusterQueue. A Job that asks for none
    is always admitted.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self.flavor, self.gpus = Flavor(), 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kueue")

    def __enter__(self) -> Kueue:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def workload(self, job: str) -> Object:
        """The Workload of a Job. NotFound when it has none yet."""
        return self._get(WORKLOADS, f"job-{job}")

    def condition(self, job: str, kind: str) -> Object | None:
        """A condition of a Job's Workload, None while it is not there."""
        try:
            return condition_of(self.workload(job), kind)
        except NotFound:
            return None

    def preempt(self, job: str, gpus: int) -> None:
        """What the scheduler does for a Workload of a higher priority; `gpus` is the quota that it leaves."""
        with self._lock:
            self.gpus = gpus
            said = "Preempted to accommodate a higher priority Workload"
            self._say(self.workload(job), Evicted=("True", "Preempted", said))

    def _run(self) -> None:
        while not self._ended.wait(LOOKS_AGAIN_S):
            with self._lock:
                jobs = self._list(JOBS)
                for job in sorted(jobs, key=lambda one: str(one["metadata"]["creationTimestamp"])):
                    try:
                        self._reconcile(job)
                    except (Conflict, Invalid, NotFound, TooMany):  # looked at again, as Kueue does
                        continue

    def _reconcile(self, job: Object) -> None:
        """One look at a Job: the steps of Kueue's reconciler, in its order."""
        queue = job["metadata"]["labels"].get(QUEUE_NAME)
        if not queue or "deletionTimestamp" in job["metadata"]:
            return
        try:
            workload = self.workload(job["metadata"]["name"])
        except NotFound:
            self._create_workload(job, queue)
            return
        if finished(job):
            self._say(workload, Finished=("True", "Succeeded", "Job finished"))
        elif holds(workload, "Evicted") and holds(workload, "QuotaReserved"):
            self._evict(job, workload)
        elif job["spec"]["suspend"] and holds(workload, "Admitted"):
            self._start(job, workload)
        elif job["spec"]["suspend"]:
            self._consider(job, workload, queue)
        elif not holds(workload, "Admitted"):
            self._stop(job, workload, "Not admitted by cluster queue")

    def _create_workload(self, job: Object, queue: str) -> None:
        meta, name = job["metadata"], f"job-{job['metadata']['name']}"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"]}
        template = {"metadata": placed_meta(job), "spec": placed_spec(job)}
        workload = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "Workload",
            "metadata": {
                "name": name,
                "labels": {JOB_UID: meta["uid"]},
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {"queueName": queue, "podSets": [{"name": "main", "count": 1, "template": template}]},
        }
        self._api.post(WORKLOADS.path(self._api.namespace), workload)
        self._event(job, "CreatedWorkload", f"Created Workload: {self._api.namespace}/{name}")

    def _consider(self, job: Object, workload: Object, queue: str) -> None:
        """Reserve quota and admit, or say why not."""
        wanted, used = gpus_of(job), sum(map(reserved, self._list(WORKLOADS)))
        if queue not in [one["metadata"]["name"] for one in self._list(QUEUES)]:
            said = f"LocalQueue {queue} doesn't exist"
            self._say(workload, QuotaReserved=("False", "Inadmissible", said))
        elif wanted and wanted + used > self.gpus:
            said = (
                f"couldn't assign flavors to pod set main: insufficient unused quota for {GPU_RESOURCE} in "
                f"flavor {self.flavor.name}, {wanted + used - self.gpus} more needed"
            )
            self._say(workload, QuotaReserved=("False", "Pending", said))
        else:
            flavors = {GPU_RESOURCE: self.flavor.name}
            given = {
                "name": "main",
                "count": 1,
                "flavors": flavors,
                "resourceUsage": {GPU_RESOURCE: str(wanted)},
            }
            self._say(
                workload,
                {"admission": {"clusterQueue": "cluster-queue", "podSetAssignments": [given]}},
                QuotaReserved=("True", "QuotaReserved", "Quota reserved in ClusterQueue cluster-queue"),
                Admitted=("True", "Admitted", "The workload is admitted"),
                Evicted=("False", "QuotaReserved", "Previously evicted"),
            )

    def _start(self, job: Object, workload: Object) -> None:
        """Unsuspend, with the flavor in the template: one patch."""
        spec, meta = job["spec"]["template"]["spec"], job["spec"]["template"]["metadata"]
        tolerations = list(spec.get("tolerations", []))
        tolerations += [dict(one) for one in self.flavor.tolerations if one not in tolerations]
        placed = {
            "nodeSelector": {**spec.get("nodeSelector", {}), **self.flavor.node_labels},
            "tolerations": tolerations,
        }
        marked = {
            "labels": {**meta.get("labels", {}), f"{GROUP}/podset": "main"},
            "annotations": {
                **meta.get("annotations", {}),
                f"{GROUP}/workload": workload["metadata"]["name"],
            },
        }
        self._patch(job, {"spec": {"suspend": False, "template": {"metadata": marked, "spec": placed}}})
        self._event(job, "Started", "Admitted by clusterQueue cluster-queue")

    def _evict(self, job: Object, workload: Object) -> None:
        """Stop the Job; once it has no active pod, its quota is free and it may be admitted anew."""
        said = str((condition_of(workload, "Evicted") or {})["message"])
        self._stop(job, workload, said)
        if not job["status"].get("active"):  # a pod that is still ending is not active
            self._say(
                workload,
                {"admission": None},
                QuotaReserved=("False", "Pending", said),
                Admitted=("False", "NoReservation", "The workload has no reservation"),
                Requeued=("True", "Preempted", said),
            )

    def _stop(self, job: Object, workload: Object, why: str) -> None:
        """Suspend, clear startTime, without which the template cannot be changed, and put that back."""
        if not job["spec"]["suspend"] or STOPPING in job["metadata"].get("annotations", {}):
            stopped = {"metadata": {"annotations": {STOPPING: "true"}}, "spec": {"suspend": True}}
            job = self._patch(job, stopped)
            self._event(job, "Stopped", why)
        if job["status"].get("startTime") is not None:
            job = self._patch(job, {"status": {"startTime": None}}, "status")
        [pod_set] = workload["spec"]["podSets"]
        was, now = pod_set["template"], job["spec"]["template"]
        managed = {key: one for key, one in now["metadata"]["labels"].items() if key in MANAGED_LABELS}
        meta = {
            "labels": replaced(now["metadata"]["labels"], {**was["metadata"]["labels"], **managed}),
            "annotations": replaced(now["metadata"].get("annotations", {}), was["metadata"]["annotations"]),
        }
        spec = {
            "nodeSelector": replaced(now["spec"].get("nodeSelector", {}), was["spec"]["nodeSelector"]),
            "tolerations": was["spec"]["tolerations"],
        }
        template = {"metadata": meta, "spec": spec}
        self._patch(job, {"metadata": {"annotations": {STOPPING: None}}, "spec": {"template": template}})

    def _patch(self, job: Object, change: Object, subresource: str | None = None) -> Object:
        """A merge patch, taken only if nobody changed the Job since it was read; the Job as it is then."""
        meta = job["metadata"]
        mine = {
            **change,
            "metadata": {**change.get("metadata", {}), "resourceVersion": meta["resourceVersion"]},
        }
        answer = self._api.patch(
            JOBS.path(self._api.namespace, meta["name"], subresource), mine, fieldManager="kueue"
        )
        changed: Object = json.loads(answer)
        return changed

    def _say(
        self, workload: Object, more: Mapping[str, Any] = {}, **conditions: tuple[str, str, str]
    ) -> None:
        """Write conditions (status, reason, message) of a Workload where they are not so yet."""
        status = workload.get("status", {})
        told = {one["type"]: one for one in status.get("conditions", [])}
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for kind, (state, reason, message) in conditions.items():
            new = {"type": kind, "status": state, "reason": reason, "message": message}
            if {**told.get(kind, {}), **new} != told.get(kind):
                told[kind] = {**new, "lastTransitionTime": stamp}
        if more or list(told.values()) != status.get("conditions", []):
            path = WORKLOADS.path(self._api.namespace, workload["metadata"]["name"], "status")
            self._api.patch(path, {"status": {**more, "conditions": list(told.values())}})

    def _event(self, job: Object, reason: str, message: str) -> None:
        meta = job["metadata"]
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {"kind": "Job", "apiVersion": "batch/v1", "name": meta["name"], "uid": meta["uid"]}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{uuid.uuid4().hex[:16]}"},
            "involvedObject": {**about, "namespace": self._api.namespace},
            "type": "Normal",
            "reason": reason,
            "message": message,
            "source": {"component": "batch/job-kueue-controller"},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        self._api.post(CORE_EVENTS.path(self._api.namespace), event)

    def _list(self, kind: Resource) -> list[Object]:
        items: list[Object] = json.loads(self._api.get(kind.path(self._api.namespace)))["items"]
        return items

    def _get(self, kind: Resource, name: str) -> Object:
        found: Object = json.loads(self._api.get(kind.path(self._api.namespace, name)))
        return found
