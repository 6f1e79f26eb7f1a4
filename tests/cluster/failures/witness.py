"""What Kubernetes showed of Jobs and pods, to their last state: in every disruption the pod vanishes."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from orchestrator.cluster.kube.decode import JOB_NAME_LABEL
from orchestrator.sweep.naming import LABEL_RUN, LABEL_SWEEP
from tests.cluster.rig import tools
from tests.cluster.rig.network import inside_control
from tests.cluster.rig.settings import Rig

WATCHED = {
    "pods": "/api/v1/namespaces/{}/pods",
    "jobs": "/apis/batch/v1/namespaces/{}/jobs",
    "configmaps": "/api/v1/namespaces/{}/configmaps",
    "events": "/api/v1/namespaces/{}/events",
}


class Witness:
    """Watches a namespace with kubectl, apart from the product's own watches, while the block lasts."""

    def __init__(self, rig: Rig, namespace: str) -> None:
        kubectl = [*inside_control(rig), str(tools.binaries() / "kubectl"), f"--kubeconfig={rig.kubeconfig}"]
        self._lock = threading.Lock()
        self._last: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in WATCHED}
        self._standing: dict[str, dict[str, Any]] = {}
        self._gone: set[str] = set()
        self._watches = [
            (kind, [*kubectl, "get", "--raw", f"{path.format(namespace)}?watch=1"])
            for kind, path in WATCHED.items()
        ]
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Witness:
        for kind, command in self._watches:
            watch = subprocess.Popen(command, stdout=subprocess.PIPE)
            self._running.append(watch)
            assert watch.stdout is not None
            threading.Thread(target=self._follow, args=(kind, watch.stdout), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watch in self._running:
            watch.terminate()
            watch.wait()

    def _follow(self, kind: str, lines: Iterator[bytes]) -> None:
        for line in lines:
            event = json.loads(line)
            uid = event["object"]["metadata"]["uid"]
            with self._lock:
                self._last[kind][uid] = event["object"]
                if "deletionTimestamp" not in event["object"]["metadata"]:
                    self._standing[uid] = event["object"]
                if event["type"] == "DELETED":
                    self._gone.add(uid)

    def all(self, kind: str) -> list[dict[str, Any]]:
        """The last state of every object there ever was, oldest first."""
        with self._lock:
            return list(self._last[kind].values())

    def gone(self, uid: str) -> bool:
        with self._lock:
            return uid in self._gone

    def leaving(self, job: str) -> bool:
        """Whether a pod of this Job was told to go."""
        return any("deletionTimestamp" in pod["metadata"] for pod in self.pods(job))

    def still(self, job: str) -> bool:
        """Whether everything of this Job that was told to go is gone."""
        everything = (*self.jobs(job), *self.pods(job))
        leaving = [one["metadata"]["uid"] for one in everything if "deletionTimestamp" in one["metadata"]]
        return all(map(self.gone, leaving))

    def ended(self, job: str) -> bool:
        """Whether every Job of this name is gone, and every pod of theirs."""
        return all(self.gone(one["metadata"]["uid"]) for one in (*self.jobs(job), *self.pods(job)))

    def jobs(self, name: str) -> list[dict[str, Any]]:
        """The Jobs that had this name, one after another."""
        return [job for job in self.all("jobs") if job["metadata"]["name"] == name]

    def pods(self, job: str) -> list[dict[str, Any]]:
        """The pods of the Jobs of this name."""
        pods = self.all("pods")
        return [pod for pod in pods if pod["metadata"].get("labels", {}).get(JOB_NAME_LABEL) == job]

    def spans(self, run_id: str, sweep: str) -> list[tuple[str, str]]:
        """From when to when the containers of a run lived, earliest first; a time that is not known is ""."""
        found = []
        for pod in self.all("pods"):
            labels = pod["metadata"].get("labels", {})
            if (labels.get(LABEL_RUN), labels.get(LABEL_SWEEP)) == (run_id, sweep):
                for one in pod["status"].get("containerStatuses", []):
                    state = one["state"].get("terminated") or one["state"].get("running") or {}
                    found.append((state.get("startedAt") or "", state.get("finishedAt") or ""))
        return sorted(span for span in found if span[0])

    def records(self, sweep: str) -> list[dict[str, Any]]:
        """The records of a sweep's attempts."""
        records = [
            json.loads(one["data"]["record.json"])
            for one in self.all("configmaps")
            if "record.json" in one.get("data", {})
        ]
        return [record for record in records if record["sweep"] == sweep]

    def shown(self, job: str) -> str:
        """What a person sees of a Job and its pods: `pod Failed, container Error (64); Job Failed (…)`."""
        if not self.jobs(job):
            return "no Job"
        told = [self._pod(pod) for pod in self.pods(job)]
        return "; ".join([*told, *(self._job(one) for one in self.jobs(job))])

    def stuck(self, job: str) -> str:
        """As shown, before anyone told it to go; with its last warning where it tells nothing itself."""
        [standing] = [self._standing[one["metadata"]["uid"]] for one in self.jobs(job)]
        pods = [self._standing[one["metadata"]["uid"]] for one in self.pods(job)]
        told = [*map(_pod, pods)] or ["no pod"]
        about = {one["metadata"]["uid"] for one in (standing, *pods)}
        events = [
            f"event {one['reason']}"
            for one in self.all("events")
            if one["type"] == "Warning" and one["involvedObject"].get("uid") in about
        ]
        silent = not pods or "ContainerCreating" in told[-1]
        return "; ".join([*told, _job(standing), *(events[-1:] if silent else [])])

    def _pod(self, pod: dict[str, Any]) -> str:
        return _pod(pod) + self._fate(pod)

    def _job(self, job: dict[str, Any]) -> str:
        return _job(job) + self._fate(job)

    def _fate(self, one: dict[str, Any]) -> str:
        if self.gone(one["metadata"]["uid"]):
            return ", deleted"
        return ", Terminating" if "deletionTimestamp" in one["metadata"] else ""


def _pod(pod: dict[str, Any]) -> str:
    status = pod["status"]
    told = f"pod {status['phase']}" + (f" ({status['reason']})" if "reason" in status else "")
    for one in status.get("containerStatuses", []):
        told += _container(one["state"])
    for one in status.get("conditions", []):
        if one["type"] == "DisruptionTarget" or (one["type"], one["status"]) == ("PodScheduled", "False"):
            told += f", {one['type']} ({one['reason']})"
    return told


def _job(job: dict[str, Any]) -> str:
    final = [
        f"{one['type']} ({one['reason']})"
        for one in job["status"].get("conditions", [])
        if one["status"] == "True" and one["type"] in ("Complete", "Failed", "Suspended")
    ]
    return f"Job {', '.join(final) or 'without a condition'}"


def _container(state: dict[str, Any]) -> str:
    if ended := state.get("terminated"):
        return f", container {ended.get('reason', 'ended')} ({ended['exitCode']})"
    if waits := state.get("waiting"):
        return f", container waits: {waits.get('reason', '')}"
    return ", container runs"
