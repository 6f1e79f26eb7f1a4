"""What a Kubernetes cluster does by itself to Jobs, a step at a time, over an `ApiStore`.

The Job controller, the kubelet, TTL and the garbage collector; and `Process`, the API server as one process
sees it, which can be killed, or its connection cut, at any call.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import urllib3

from orchestrator.cluster.kube import decode
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import Request, refused, unreachable
from orchestrator.cluster.kube.paths import CONFIG_MAPS, EVENTS, JOBS, PODS, SWEEPS
from orchestrator.cluster.kube.transport import Sent, Timeouts
from orchestrator.sweep.naming import LABEL_ATTEMPT, LABEL_RUN
from tests.orchestrator.cluster.kube.apistore import ApiStore, Asked, Json, drop, respond, store
from tests.orchestrator.fakes import done_record, record_message

NAMESPACE = "ml"
STEP_S = 10.0
KINDS = (SWEEPS, JOBS, PODS, CONFIG_MAPS, EVENTS)
PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}

Fate = Literal["done", "preempted", "endless"] | int
"""How a pod ends: well, preempted (and then it is gone), not before it is deleted, or with this code."""


@dataclass
class JobWorld:
    """A namespace. `fates` by (run name, attempt), "done" where nothing is said; `now` in Unix seconds."""

    fates: Mapping[tuple[str, int], Fate] = field(default_factory=dict)
    now: float = 1_800_000_000.0
    store: ApiStore = field(
        default_factory=lambda: ApiStore(served=tuple(one.plural for one in KINDS), collects=True)
    )

    def submit(self, sweep: Mapping[str, Any]) -> None:
        body = {**sweep, "metadata": {**sweep["metadata"], "generation": 1}}
        self._put(SWEEPS.path(NAMESPACE), body)

    def objects(self, kind: Any) -> dict[str, Json]:
        return self.store.objects[kind.path(NAMESPACE)]

    def created(self, kind: Any) -> Counter[str]:
        """How often each name was made."""
        path = kind.path(NAMESPACE)
        made = (one for one in self.store.history if one.collection == path and one.kind == "ADDED")
        return Counter(one.object["metadata"]["name"] for one in made)

    def done_pods(self) -> Counter[str]:
        """How many pods of each run ended well."""
        path = PODS.path(NAMESPACE)
        ended = {
            one.object["metadata"]["uid"]: one.object["metadata"]["labels"][LABEL_RUN]
            for one in self.store.history
            if one.collection == path and one.object["status"]["phase"] == "Succeeded"
        }
        return Counter(ended.values())

    def delete_sweep(self, name: str) -> None:
        with self.store.changed:
            drop(self.store, SWEEPS.path(NAMESPACE), name)

    def step(self) -> None:
        """Each Job one step further, then what should go goes."""
        self.now += STEP_S
        for name in list(self.objects(JOBS)):
            self._advance(self.objects(JOBS)[name])
        self._collect()

    def _advance(self, job: Json) -> None:
        pods = [pod for pod in self.objects(PODS).values() if _owner(pod) == job["metadata"]["uid"]]
        running = [pod for pod in pods if pod["status"]["phase"] == "Running"]
        if "deletionTimestamp" in job["metadata"]:
            if running:
                self._end(running[0], job, 75)
            else:
                self._remove(PODS, *pods)
                self._remove(JOBS, job)
        elif _finished(job):
            return
        elif running:
            if self._fate(job) != "endless":
                self._end(running[0], job, self._fate(job))
        elif "fate" in job.get("status", {}):
            self._put(JOBS.path(NAMESPACE), {**job, "status": _final(job["status"]["fate"], self._time)})
        else:
            self._put(PODS.path(NAMESPACE), self._pod(job))

    def _fate(self, job: Json) -> Fate:
        labels = job["metadata"]["labels"]
        wanted = (labels[LABEL_RUN].rpartition("-")[0], int(labels[LABEL_ATTEMPT]))
        return self.fates.get(wanted, "done")

    def _pod(self, job: Json) -> Json:
        metadata = job["metadata"]
        owner = {"kind": "Job", "name": metadata["name"], "uid": metadata["uid"], "controller": True}
        labels = {**metadata["labels"], decode.JOB_NAME_LABEL: metadata["name"]}
        running = {"name": decode.CONTAINER, "state": {"running": {"startedAt": self._time}}}
        return {
            "metadata": {
                "name": f"{metadata['name']}-pod",
                "labels": labels,
                "ownerReferences": [owner],
                "creationTimestamp": self._time,
            },
            "spec": {"nodeName": "node-a"},
            "status": {"phase": "Running", "containerStatuses": [running]},
        }

    def _end(self, pod: Json, job: Json, fate: Fate) -> None:
        """The pod ends; the Job's condition says so only at the next step."""
        seen = decode.job(_raw(job)).job
        code = 0 if fate == "done" else 143 if fate == "preempted" else fate
        message = {"done": done_record(seen), "preempted": ""}.get(
            str(fate), record_message(seen, status="failed", exit_code=code, error="it went wrong")
        )
        began = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
        ended = {"exitCode": code, "message": message, "startedAt": began, "finishedAt": self._time}
        status = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{"name": decode.CONTAINER, "state": {"terminated": ended}}],
            "conditions": [PREEMPTED] if fate == "preempted" else [],
        }
        pod = self._put(PODS.path(NAMESPACE), {**pod, "status": status})
        if fate == "preempted":
            self._remove(PODS, pod)
        self._put(JOBS.path(NAMESPACE), {**job, "status": {"fate": fate}})

    def _collect(self) -> None:
        """TTL, and what is left of owners that are gone."""
        for job in list(self.objects(JOBS).values()):
            ttl = job["spec"].get("ttlSecondsAfterFinished")
            if ttl is not None and _finished(job) and self.now >= job["status"]["endedAt"] + ttl:
                self._remove(JOBS, job)
        uids = {one["metadata"]["uid"] for kind in KINDS for one in self.objects(kind).values()}
        for kind in (JOBS, CONFIG_MAPS, PODS):
            self._remove(kind, *(one for one in self.objects(kind).values() if _owner(one) not in uids))

    def _put(self, path: str, body: Json) -> Json:
        with self.store.changed:
            return store(self.store, path, body["metadata"]["name"], body)

    def _remove(self, kind: Any, *bodies: Json) -> None:
        with self.store.changed:
            for body in bodies:
                drop(self.store, kind.path(NAMESPACE), body["metadata"]["name"])

    @property
    def _time(self) -> str:
        return datetime.fromtimestamp(self.now, UTC).isoformat()


class Killed(BaseException):
    """SIGKILL: nothing catches it."""


Fault = Literal["die", "reset"]


@dataclass
class Blow:
    """What happens at the call of this number: the process dies or its connection, before or after it."""

    call: int
    fault: Fault
    after: bool


class Process:
    """The transport of a process to the API server: it counts calls, and takes the blow at one of them."""

    host = "https://nowhere"

    def __init__(self, world: JobWorld, due: Callable[[Asked], Blow | None]) -> None:
        self.timeouts = Timeouts()
        self._world = world
        self._due = due
        self._dead = False

    def open(
        self, request: Request, query: Mapping[str, str], sent: Sent | None = None, *, read_s: float | None
    ) -> urllib3.HTTPResponse:
        """As Transport.open."""
        if self._dead:  # other threads of it
            raise Killed
        body = decode.msgspec.json.decode(sent.body) if sent else None
        asked = Asked(request.method, request.path, dict(query), {}, body)
        blow = self._due(asked)
        if blow and not blow.after:
            self._strike(blow, request)
        code, said, plain = respond(self._world.store, asked)
        if blow and blow.after:
            self._strike(blow, request)
        if code >= 300:
            headers = urllib3.HTTPHeaderDict({"Content-Type": "text/plain" if plain else "application/json"})
            raise refused(request, code, headers, said)
        return urllib3.HTTPResponse(io.BytesIO(said), status=code, preload_content=False)

    def _strike(self, blow: Blow, request: Request) -> None:
        if blow.fault == "die":
            self._dead = True
            raise Killed
        raise unreachable(request, "Connection reset by peer")


class ProcessApi(Api):
    """The door of one process."""

    def __init__(self, process: Process) -> None:
        self.namespace = NAMESPACE
        self.context = "lab"
        self._limiter = None
        self._transport = process  # type: ignore[assignment]


def _raw(body: Json) -> bytes:
    return decode.msgspec.json.encode(body)


def _owner(body: Json) -> str:
    return str(body["metadata"]["ownerReferences"][0]["uid"])


def _finished(job: Json) -> bool:
    return bool(job.get("status", {}).get("conditions"))


def _final(fate: Fate, time: str) -> Json:
    ended = datetime.fromisoformat(time).timestamp()
    if fate == "done":
        return {"conditions": [{"type": "Complete", "status": "True"}], "endedAt": ended}
    said = (
        "Pod ml/x has condition DisruptionTarget matching FailJob rule at index 0"
        if fate == "preempted"
        else f"Container trainer for pod ml/x failed with exit code {fate} matching FailJob rule at index 1"
    )
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": said}
    return {"conditions": [failed], "endedAt": ended}
