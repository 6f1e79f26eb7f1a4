"""A node without containers: its pods run because we say so, and end with a trainer's done record.

It does what a kubelet does to a pod's status, so scheduler, Job controller and our controller see real pods.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any

from bench.follow import Object, follow
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import NotFound
from orchestrator.cluster.kube.paths import LEASES, PODS, Resource
from orchestrator.errors import ClusterError
from orchestrator.sweep.naming import LABEL_MANAGED_BY, LABEL_RUN, LABEL_STAGE, LABEL_SWEEP, MANAGED_BY
from trainer.results import Protocol, Record, TaskScore, TextScore, TrainSummary, VariantResult, dump_record

LOG = logging.getLogger(__name__)
MANAGER = "fake-kubelet"
NODES = Resource("api/v1", "nodes")
NODE_LABEL = "bench.orch.dev/node"
HEARTBEAT_S = 10.0
WRITERS = 4
TASKS = ("hellaswag", "arc_easy", "arc_challenge", "winogrande", "mmlu")


@dataclass
class FakePod:
    """A pod of a Job and how far it is."""

    name: str
    sweep: str
    stage: str
    run: str
    args: tuple[str, ...]
    started: bool = False
    ended: bool = False


RunsFor = Callable[[FakePod], float | None]
"""Seconds that a pod runs; None: until it is released."""


class FakeKubelet:
    """The node `name`; `runs_for` may be set anew at any time and holds for pods that start later."""

    def __init__(self, api: Api, name: str) -> None:
        self.name = name
        self.runs_for: RunsFor = lambda pod: 0.0
        self._api = api
        self._stop = threading.Event()
        self._lock = threading.Condition()
        self._pods: dict[str, FakePod] = {}
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="kubelet")
        self._threads = [
            threading.Thread(target=run, name=f"kubelet-{run.__name__}", daemon=True)
            for run in (self._watch, self._work, self._beat)
        ]

    def start(self) -> None:
        """Register the node and take its pods."""
        self._api.post(NODES.path(None), _node(self.name))
        self._api.patch(NODES.path(None, self.name, "status"), {"status": _node_status()})
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Remove the node; the cluster then removes what is left of its pods."""
        self._stop.set()
        with self._lock:
            self._lock.notify_all()
        self._writers.shutdown(wait=True, cancel_futures=True)
        self._api.delete(NODES.path(None, self.name))

    def running(self, sweep: str, stage: str) -> list[FakePod]:
        """Pods that wait to be released, in the order in which they came."""
        with self._lock:
            pods = list(self._pods.values())
        return [
            one for one in pods if (one.sweep, one.stage) == (sweep, stage) and one.started and not one.ended
        ]

    def release(self, pods: Iterable[FakePod]) -> None:
        """Let them end now."""
        for one in pods:
            self._later(0.0, partial(self._end, one))

    # Threads

    def _watch(self) -> None:
        path = PODS.path(self._api.namespace)
        for kind, value in follow(self._api, path, self._stop, f"{LABEL_MANAGED_BY}={MANAGED_BY}"):
            uid = value["metadata"]["uid"]
            if kind == "DELETED":
                with self._lock:
                    self._pods.pop(uid, None)
            elif value["spec"].get("nodeName") == self.name:
                self._saw(uid, value)

    def _saw(self, uid: str, value: Object) -> None:
        if uid not in self._pods:
            pod = _pod(value)
            pod.started = pod.ended = value["status"].get("phase") not in (None, "Pending")
            with self._lock:
                self._pods[uid] = pod
            if not pod.started:
                self._later(0.0, lambda: self._begin(pod))
        elif value["metadata"].get("deletionTimestamp") and not self._pods[uid].ended:
            pod = self._pods[uid]
            pod.ended = True
            self._later(0.0, lambda: self._remove(pod))

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                wait_s = self._due[0][0] - time.monotonic() if self._due else None
                if wait_s is None or wait_s > 0:
                    self._lock.wait(wait_s)
                    continue
                _, _, act = heapq.heappop(self._due)
            self._writers.submit(self._act, act)

    def _beat(self) -> None:
        """A node that is silent for 50 s is lost."""
        while not self._stop.is_set():
            self._act(self._renew)
            self._stop.wait(HEARTBEAT_S)

    def _renew(self) -> None:
        path = LEASES.path("kube-node-lease", self.name)
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": _now("microseconds")}
        head = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.name}}
        self._api.apply(path, head | {"spec": spec}, manager=MANAGER, force=True)

    def _later(self, delay_s: float, act: Callable[[], object]) -> None:
        with self._lock:
            heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._order), act))
            self._lock.notify_all()

    def _act(self, act: Callable[[], object]) -> None:
        try:
            act()
        except NotFound:
            return  # deleted meanwhile
        except ClusterError as error:
            LOG.warning("fake kubelet: %s; tried again", error)
            self._later(1.0, act)

    # What happens to a pod

    def _begin(self, pod: FakePod) -> None:
        self._patch(pod, "Running", True, {"running": {"startedAt": _now()}})
        pod.started = True
        seconds = self.runs_for(pod)
        if seconds is not None:
            self._later(seconds, lambda: self._end(pod))

    def _end(self, pod: FakePod) -> None:
        if pod.ended:
            return
        ended = {"exitCode": 0, "reason": "Completed", "finishedAt": _now(), "startedAt": _now()}
        self._patch(pod, "Succeeded", False, {"terminated": ended | {"message": done_record(pod)}})
        pod.ended = True

    def _remove(self, pod: FakePod) -> None:
        ended = {"exitCode": 143, "reason": "Error", "finishedAt": _now(), "startedAt": _now()}
        self._patch(pod, "Failed", False, {"terminated": ended})
        self._api.delete(PODS.path(self._api.namespace, pod.name))

    def _patch(self, pod: FakePod, phase: str, ready: bool, state: Object) -> None:
        container = {
            "name": "trainer",
            "image": "fake",
            "imageID": "",
            "ready": ready,
            "restartCount": 0,
            "state": state,
        }
        conditions = [
            {"type": kind, "status": str(value), "lastTransitionTime": _now()}
            for kind, value in (("PodScheduled", True), ("Initialized", True), ("Ready", ready))
        ]
        status = {"phase": phase, "conditions": conditions, "containerStatuses": [container]}
        self._api.patch(PODS.path(self._api.namespace, pod.name, "status"), {"status": status})


def done_record(pod: FakePod) -> str:
    """The termination message of a trainer that did what the pod's arguments ask for."""
    known: dict[str, Any] = {}
    if pod.stage == "train":
        known["train"] = TrainSummary(
            step=500,
            max_steps=500,
            loss=0.4321,
            tokens=1_234_567,
            rollout_tokens=654_321,
            seconds=3600.5,
            adapter_sha256=sha256(pod.run.encode()).hexdigest(),
            codes_sha256=sha256(b"codes").hexdigest(),
        )
    elif pod.stage in ("baseline", "eval"):
        known["protocol"] = Protocol(
            model="model", quant="int4", dtype="bf16", batch_size=32, text="wikitext"
        )
        known["variants"] = list(_variants(pod))
    record = Record(stage=pod.stage, status="done", exit_code=0, run_id=pod.run, **known)
    return dump_record(record).decode()


def _variants(pod: FakePod) -> Iterable[VariantResult]:
    """As many numbers as a real evaluation has; none of them means anything."""
    runs = [text.rsplit("/", 1)[-1] for text in pod.args if text.count("/") and pod.sweep in text.split("/")]
    adapters = [run for run in dict.fromkeys(runs) if run != pod.run]
    measured: list[tuple[Any, str | None]] = [(v, r) for r in adapters for v in ("adapter", "merged")]
    for variant, run in measured or [("teacher", None), ("ptq", None)]:
        tasks = {task: TaskScore(0.5123, 0.0051, 10042, 103, 97) for task in TASKS}
        text = TextScore(280_000, 2.9123, 0.0123, 0.1234, 0.0012, -0.1023, 0.0031, -0.0412, 0.0009)
        yield VariantResult(variant=variant, run_id=run, tasks=tasks, text=text)


def _pod(value: Object) -> FakePod:
    labels, containers = value["metadata"]["labels"], value["spec"]["containers"]
    args = (*containers[0].get("command", ()), *containers[0].get("args", ()))
    return FakePod(
        value["metadata"]["name"], labels[LABEL_SWEEP], labels[LABEL_STAGE], labels[LABEL_RUN], args
    )


def _node(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {NODE_LABEL: name}}}


def _node_status() -> Object:
    room = {"cpu": "100000", "memory": "1000Ti", "pods": "100000", "ephemeral-storage": "1000Ti"}
    room |= {"nvidia.com/gpu": "100000"}
    ready = {"type": "Ready", "status": "True", "reason": "Fake", "lastHeartbeatTime": _now()}
    return {"capacity": room, "allocatable": room, "conditions": [ready]}


def _now(precision: str = "seconds") -> str:
    return datetime.now(UTC).isoformat(timespec=precision).replace("+00:00", "Z")
