"""Jobs on a Kubernetes cluster, read afresh at every call: what `orch` uses from a laptop.

The controller's cluster, which holds what it watches, is `watched.WatchedCluster`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec

from orchestrator.cluster.base import Change, Cluster, Created, Event, ObservedJob
from orchestrator.cluster.kube import decode, errors
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from orchestrator.cluster.kube.ownership import joined, whose
from orchestrator.cluster.kube.paths import CONFIG_MAPS, CORE_EVENTS, EVENTS, JOBS, PODS, SWEEPS, Resource
from orchestrator.cluster.objects import canonical
from orchestrator.errors import ClusterError, JobRefusedError, NotFoundError, StatusRefusedError
from orchestrator.sweep.naming import (
    ANNOTATION_SUBMITTER,
    LABEL_MANAGED_BY,
    LABEL_RECORD,
    LABEL_SWEEP,
    MANAGED_BY,
)
from orchestrator.sweep.spec import API_VERSION, KIND

MANAGER = "orch"
"""Field manager of what a sweep file says."""
CONTROL_MANAGER = "orch-control"
STATUS_MANAGER = "orch-controller"
NOTE_BYTES = 1024
ORPHANED = ""
"""Owner of a record that outlived its Sweep (`delete --cascade=orphan`): the next of the name has it."""
CONTROL_TRIES = 10
"""A status that is told meanwhile makes a command be read and written again."""
ALL_RECORDS = f"{LABEL_MANAGED_BY}={MANAGED_BY},{LABEL_RECORD}"
ALL_JOBS = f"{LABEL_MANAGED_BY}={MANAGED_BY}"


class KubeCluster(Cluster):
    """The Sweeps, Jobs, pods and records of one namespace."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.namespace = api.namespace

    # Sweeps

    def put_sweep(self, sweep: Mapping[str, Any]) -> bool:
        name = str(sweep["metadata"]["name"])
        stored = self.sweep(name)
        if stored and canonical(_wanted(stored)) == canonical(_wanted(sweep)):
            return False
        metadata: dict[str, Any] = {"name": name}
        if stored is None:  # whoever submits it first is its owner
            metadata["annotations"] = dict(sweep["metadata"].get("annotations") or {})
        elif submitter := (stored["metadata"].get("annotations") or {}).get(ANNOTATION_SUBMITTER):
            metadata["annotations"] = {ANNOTATION_SUBMITTER: submitter}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": _wanted(sweep)}
        self._now(SWEEPS, self.api.apply(self._path(SWEEPS, name), body, manager=MANAGER, force=True))
        return True

    def sweeps(self) -> list[dict[str, Any]]:
        found = [decode.sweep(raw).sweep_object for raw in self._list(SWEEPS)]
        return sorted(found, key=lambda one: str(one["metadata"]["name"]))

    def sweep(self, name: str) -> dict[str, Any] | None:
        try:
            return decode.sweep(self.api.get(self._path(SWEEPS, name))).sweep_object
        except NotFound as error:
            if error.kind:  # else the cluster serves no sweeps at all, which the message says
                return None
            raise

    def put_control(self, sweep: str, change: Change) -> bool:
        for _ in range(CONTROL_TRIES):
            stored = self._stored(sweep)
            before = stored["spec"].get("control") or {}
            after = change(dict(before))
            if canonical(after) == canonical(before):
                return False
            seen = {key: stored["metadata"][key] for key in ("name", "uid", "resourceVersion")}
            body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": seen, "spec": {"control": after}}
            try:
                self.api.apply(self._path(SWEEPS, sweep), body, manager=CONTROL_MANAGER, force=True)
                return True
            except Conflict as error:
                refused = error
        raise refused

    def put_status(self, sweep: str, status: Mapping[str, Any]) -> None:
        uid = self._stored(sweep)["metadata"]["uid"]
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": sweep, "uid": uid},
            "status": dict(status),
        }
        path = self._path(SWEEPS, sweep, "status")
        try:
            told = self.api.apply(path, body, manager=STATUS_MANAGER, force=True)
        except Invalid as error:
            raise StatusRefusedError(str(error)) from error
        self._now(SWEEPS, told)

    # Jobs

    def jobs(self, sweep: str) -> list[ObservedJob]:
        selector = f"{ALL_JOBS},{LABEL_SWEEP}={sweep}"
        uid = self._stored(sweep)["metadata"]["uid"]
        # Pods first: one that came in between is missed for now, but none is seen without its Job.
        pods = [decode.pod(raw) for raw in self._list(PODS, labelSelector=selector)]
        return joined((decode.job(raw) for raw in self._list(JOBS, labelSelector=selector)), pods, uid)

    def create_job(self, manifest: Mapping[str, Any]) -> Created:
        try:
            self._now(JOBS, self.api.post(self._path(JOBS), manifest))
            return Created.CREATED
        except (AlreadyExists, Forbidden, Invalid) as error:
            # A full quota answers 403 for a Job that exists, too.
            there = None if isinstance(error, Invalid) else self._job(str(manifest["metadata"]["name"]))
            if there is None and isinstance(error, AlreadyExists):
                return Created.GOING
            if there is None:
                raise JobRefusedError(str(error), errors.why_refused(error)) from error
            return whose(there, manifest)

    def taken(self, name: str) -> bool:
        return self._job(name) is not None

    def said(self, job: ObservedJob) -> tuple[Event, ...]:
        said: list[tuple[float, Event]] = []
        for uid in (job.uid, *(pod.uid for pod in job.pods if pod.living)):
            said += map(decode.event, self._list(CORE_EVENTS, fieldSelector=f"involvedObject.uid={uid}"))
        # Of what was said in one second the good news counts: it mends what was said before.
        return tuple(event for _, event in sorted(said, key=lambda one: (one[0], not one[1].warning)))

    def refreshed(self, job: ObservedJob) -> ObservedJob:
        there = (
            decode.pod(raw) for raw in self._list(PODS, labelSelector=f"{decode.JOB_NAME_LABEL}={job.name}")
        )
        pods = tuple(one.pod for one in there if one.owner == job.uid)
        return replace(job, pods=pods) if pods else job

    def delete_job(self, name: str, uid: str | None = None) -> None:
        try:
            self.api.delete(self._path(JOBS, name), propagation="Foreground", uid=uid)
        except Conflict:
            return  # another Job has the name by now
        except (Forbidden, Invalid) as error:
            raise JobRefusedError(str(error), "DeletionRefused") from error

    def retire_job(self, name: str, after_s: int) -> None:
        try:
            patch = {"spec": {"ttlSecondsAfterFinished": after_s}}
            self._now(JOBS, self.api.patch(self._path(JOBS, name), patch))
        except NotFound:
            return

    def logs(self, job: str, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        pods = [decode.pod(raw) for raw in self._list(PODS, labelSelector=f"{decode.JOB_NAME_LABEL}={job}")]
        newest = max(pods, key=lambda one: one.pod.created_at or 0.0, default=None)
        if newest is None:
            raise NotFoundError(
                f"job {job}: its pod is gone, and with it the log; `orch why` tells what is recorded"
            )
        options = {"container": decode.CONTAINER, "follow": str(follow).lower()} | (
            {"tailLines": str(tail)} if tail is not None else {}
        )
        path = self._path(PODS, newest.name, "log")
        lines = self.api.stream(path, idle_s=None, **options)
        return (line.decode("utf-8", "replace") for line in lines)

    # Records and events

    def records(self, sweep: str) -> dict[str, Mapping[str, Any]]:
        uid = self._stored(sweep)["metadata"]["uid"]
        selector = f"{ALL_RECORDS},{LABEL_SWEEP}={sweep}"
        kept = (decode.record(raw) for raw in self._list(CONFIG_MAPS, labelSelector=selector))
        return {one.name: one.record for one in kept if one.owner in (uid, ORPHANED)}

    def put_record(self, sweep: str, job: str, record: Mapping[str, Any]) -> bool:
        uid = str(self._stored(sweep)["metadata"]["uid"])
        owner = {"apiVersion": API_VERSION, "kind": KIND, "name": sweep, "uid": uid, "controller": True}
        labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_SWEEP: sweep, LABEL_RECORD: "attempt"}
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": job, "labels": labels, "ownerReferences": [owner]},
            "immutable": True,
            "data": {decode.RECORD_KEY: json.dumps(record, separators=(",", ":"))},
        }
        try:
            self._now(CONFIG_MAPS, self.api.post(self._path(CONFIG_MAPS), body))
            return True
        except (AlreadyExists, Forbidden, Invalid) as error:
            # A full quota answers 403 for a record that exists, too.
            there = None if isinstance(error, Invalid) else self._record(job)
            if there is None:
                if isinstance(error, AlreadyExists):
                    raise  # it went in between
                raise JobRefusedError(str(error), errors.why_refused(error)) from error
            if there.owner not in (uid, ORPHANED):
                raise ClusterError(
                    f"{self.namespace}/configmaps/{job}: is a record of a deleted sweep {sweep}, "
                    "got another owner; it goes by itself, then this is tried again"
                ) from None
            return False

    def put_event(self, sweep: str, event: Event) -> None:
        uid = str(self._stored(sweep)["metadata"]["uid"])
        told = sha256(f"{uid} {event.reason} {event.message}".encode()).hexdigest()[:16]
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{sweep}.{told}"},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": "Warning" if event.warning else "Normal",
            "reason": event.reason,
            "note": _cut(event.message, NOTE_BYTES),
            "action": "Reconcile",
            "reportingController": "orch.dev/controller",
            "reportingInstance": "orch-controller",
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": sweep,
                "namespace": self.namespace,
                "uid": uid,
            },
        }
        try:
            self.api.post(self._path(EVENTS), body)
        except AlreadyExists:
            return  # told already

    def wait(self, timeout_s: float) -> None:
        """Nothing here tells of changes: simply that long."""
        threading.Event().wait(timeout_s)

    # The parts

    def _now(self, resource: Resource, raw: bytes) -> None:
        """What the server answered to a write: the object as it is now."""

    def _stored(self, name: str) -> dict[str, Any]:
        stored = self.sweep(name)
        if stored is None:
            raise NotFoundError(f"sweep {name}: is not in namespace {self.namespace}; see `orch status`")
        return stored

    def _job(self, name: str) -> decode.KeptJob | None:
        try:
            return decode.job(self.api.get(self._path(JOBS, name)))
        except NotFound:
            return None

    def _record(self, name: str) -> decode.KeptRecord | None:
        try:
            return decode.record(self.api.get(self._path(CONFIG_MAPS, name)))
        except NotFound:
            return None

    def _path(self, resource: Resource, name: str | None = None, subresource: str | None = None) -> str:
        return resource.path(self.namespace, name, subresource)

    def _list(
        self, resource: Resource, *, labelSelector: str = "", fieldSelector: str = ""
    ) -> Iterator[bytes]:
        selectors = {"labelSelector": labelSelector, "fieldSelector": fieldSelector}
        wanted = {name: value for name, value in selectors.items() if value}
        for page in self.api.pages(self._path(resource), limit=500, **wanted):
            yield from map(bytes, _PAGE.decode(page).items or ())


class _Page(msgspec.Struct):
    items: list[msgspec.Raw] | None = None


_PAGE = msgspec.json.Decoder(_Page)


def _wanted(sweep: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sweep["spec"].items() if key != "control"}


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes: the server counts them, and refuses an event that has one more."""
    data = text.encode()
    return text if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "…"
