"""`orch doctor`: look at an installation, as far as this user may, and say what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from orchestrator.client import capacity, findings
from orchestrator.client.bundle import CONTROLLER
from orchestrator.client.capacity import Node
from orchestrator.client.findings import Finding, Right, Seen
from orchestrator.client.install import sweeps_served
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import Forbidden, NotFound
from orchestrator.cluster.kube.paths import CONFIG_MAPS, LEASES, NAMESPACES, PODS, Resource
from orchestrator.errors import UserError
from orchestrator.profile import PROFILE_FILE, Profile, parse_profile
from orchestrator.sweep.crd import crd
from orchestrator.sweep.naming import CONTROLLER_LEASE, PROFILE_CONFIG_MAP

DEPLOYMENTS = Resource("apis/apps/v1", "deployments")
CLAIMS = Resource("api/v1", "persistentvolumeclaims")
SECRETS = Resource("api/v1", "secrets")
NODES = Resource("api/v1", "nodes")
POLICIES = Resource("apis/networking.k8s.io/v1", "networkpolicies")
STORAGE_CLASSES = Resource("apis/storage.k8s.io/v1", "storageclasses")
PRIORITY_CLASSES = Resource("apis/scheduling.k8s.io/v1", "priorityclasses")
DEFINITIONS = Resource("apis/apiextensions.k8s.io/v1", "customresourcedefinitions")
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
KUEUE_VERSIONS = ("v1beta2", "v1beta1")
AT_ONCE = 8
CONTROLLER_PODS = "app.kubernetes.io/part-of=orch,app.kubernetes.io/component=controller"
DEFINITION = "sweeps.orch.dev"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"

NEEDED = (
    *(("orch.dev", "sweeps", verb) for verb in ("get", "list", "watch", "create", "patch", "delete")),
    *(("batch", "jobs", verb) for verb in ("get", "list", "watch")),
    *(("", "pods", verb) for verb in ("list", "watch")),
    ("", "pods/log", "get"),
    ("", "configmaps", "list"),
    ("events.k8s.io", "events", "list"),
)
"""What the commands of `orch` do, by API group, resource and verb."""


def examine(api: Api, queue: str | None = None, now: datetime | None = None) -> list[Finding]:
    """All findings about the namespace of `api`; `queue` is a LocalQueue to look for.

    ClusterError when the server does not answer at all.
    """
    return list(_Examination(api, now or datetime.now(UTC)).findings(queue))


def to_json(found: list[Finding]) -> dict[str, Any]:
    """{"ok", "checks": [{"check", "state", "message", "remedy"}]}; ok: nothing is missing."""
    checks = [
        {"check": one.check, "state": one.state, "message": one.message, "remedy": one.remedy}
        for one in found
    ]
    return {"ok": all(one.state != "missing" for one in found), "checks": checks}


class _Examination:
    """What is fetched, and which check gets it."""

    def __init__(self, api: Api, now: datetime) -> None:
        self.api = api
        self.now = now

    def findings(self, queue: str | None) -> Iterator[Finding]:
        yield from findings.api(self.api.host, json.loads(self.api.get("/version")))
        definition = self._see(DEFINITIONS.path(None, DEFINITION))
        yield from findings.definition(definition, sweeps_served(self.api), crd())
        here = self._see(NAMESPACES.path(None, self.api.namespace))
        yield from findings.namespace(self.api.namespace, here)
        if here.absent:
            return
        yield from findings.rights(self._rights())
        pods = self._list(self._path(PODS), CONTROLLER_PODS)
        yield from findings.controller(self._see(self._path(DEPLOYMENTS, CONTROLLER)), pods)
        yield from findings.lease(self._see(self._path(LEASES, CONTROLLER_LEASE)), self.now)
        yield from findings.network(self._list(self._path(POLICIES)))
        stored = self._see(self._path(CONFIG_MAPS, PROFILE_CONFIG_MAP))
        lab, fault = read_profile(stored)
        yield from findings.profile(stored, fault)
        yield from self._needs(lab)
        if queue is not None:
            yield from self._queue(queue)

    def _needs(self, lab: Profile) -> Iterator[Finding]:
        """What Jobs of this profile need."""
        yield from findings.image(lab)
        secret = self._see(self._path(SECRETS, lab.hubTokenSecret)) if lab.hubTokenSecret else Seen()
        yield from findings.token(lab, secret)
        nodes = self._nodes()
        claim = self._see(self._path(CLAIMS, lab.volumeClaim))
        yield from capacity.volume(lab.volumeClaim, claim, self._storage_class(claim), nodes)
        yield from capacity.gpus(lab, nodes)
        classes = {
            name: self._see(PRIORITY_CLASSES.path(None, name)) for name in lab.priorityClasses.values()
        }
        yield from capacity.priorities(lab, classes)

    def _queue(self, name: str) -> Iterator[Finding]:
        served = [one for one in KUEUE_VERSIONS if not self._see(f"/apis/kueue.x-k8s.io/{one}").absent]
        queues = Resource(f"apis/kueue.x-k8s.io/{served[0]}", "localqueues") if served else None
        yield from capacity.queue(
            name, bool(served), self._see(self._path(queues, name)) if queues else Seen()
        )

    def _rights(self) -> list[Right]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._right, NEEDED))

    def _right(self, needed: tuple[str, str, str]) -> Right:
        group, resource, verb = needed
        kind, _, part = resource.partition("/")
        asked = {"namespace": self.api.namespace, "group": group, "resource": kind, "verb": verb}
        asked |= {"subresource": part} if part else {}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = json.loads(self.api.post(REVIEWS, review))
        return Right(verb, f"{resource}.{group}" if group else resource, answer["status"]["allowed"])

    def _nodes(self) -> Seen:
        try:
            pages = (json.loads(page)["items"] for page in self.api.pages(NODES.path(None)))
            return Seen([Node.read(one) for page in pages for one in page])
        except Forbidden as error:
            return Seen(denied=error.message)

    def _storage_class(self, claim: Seen) -> Seen:
        """The storage class that a claim asks for; one that asks for none gets the default."""
        name = claim.value["spec"].get("storageClassName") if claim.value else None
        if name:
            return self._see(STORAGE_CLASSES.path(None, name))
        classes = self._list(STORAGE_CLASSES.path(None))
        if classes.denied:
            return classes
        return Seen(next((one for one in classes.value if _is_default(one)), None))

    def _path(self, kind: Resource, name: str | None = None) -> str:
        return kind.path(self.api.namespace, name)

    def _see(self, path: str, selector: str = "") -> Seen:
        try:
            return Seen(json.loads(self.api.get(path, labelSelector=selector)))
        except NotFound:
            return Seen()
        except Forbidden as error:
            return Seen(denied=error.message)

    def _list(self, path: str, selector: str = "") -> Seen:
        seen = self._see(path, selector)
        return Seen(seen.value["items"]) if seen.value else seen


def read_profile(stored: Seen) -> tuple[Profile, str]:
    """The profile in its ConfigMap, else the defaults, and what is wrong with it."""
    if stored.value is None:
        return Profile(), ""
    text = (stored.value.get("data") or {}).get(PROFILE_FILE)
    if text is None:
        return Profile(), f"ConfigMap {PROFILE_CONFIG_MAP} has no key {PROFILE_FILE}"
    try:
        return parse_profile(text, f"{PROFILE_CONFIG_MAP}/{PROFILE_FILE}"), ""
    except UserError as error:
        return Profile(), str(error)


def _is_default(storage_class: Mapping[str, Any]) -> bool:
    annotations = storage_class["metadata"].get("annotations") or {}
    return str(annotations.get(DEFAULT_CLASS)) == "true"
