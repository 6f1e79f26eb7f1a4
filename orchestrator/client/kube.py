"""The session of a namespace of a cluster: its own controller does the work, this command may end."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from orchestrator.client.session import Session, Stored
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.cluster import KubeCluster
from orchestrator.cluster.kube.errors import ApiError, Forbidden, NotFound
from orchestrator.cluster.kube.paths import CONFIG_MAPS, LEASES, Resource
from orchestrator.profile import PROFILE_FILE, Profile, load_profile, parse_profile
from orchestrator.sweep.naming import CONTROLLER_LEASE, DEFAULT_NAMESPACE, PROFILE_CONFIG_MAP
from trainer.layout import Dump

SELF = Resource("apis/authentication.k8s.io/v1", "selfsubjectreviews")
LEASE_STALE_S = 120.0
"""A Lease renewed longer ago than this, clocks apart included, has no controller behind it."""
NAMESPACE_ENV = "ORCH_NAMESPACE"


class KubeSession(Session):
    """`context` and `namespace` as kubectl takes them; without a namespace anywhere it is `orch`."""

    remote = True
    poll_s = 3.0
    unled = "`orch doctor` tells what is missing"

    def __init__(
        self, context: str | None = None, namespace: str | None = None, profile_path: Path | None = None
    ) -> None:
        self.profile_path = profile_path
        given = namespace or os.environ.get(NAMESPACE_ENV)
        self.api = Api.connect(context=context, namespace=given)
        if given is None and self.api.namespace == "default":
            self.api.namespace = DEFAULT_NAMESPACE
        options = ["--context", context] if context else []
        options += ["--namespace", namespace] if namespace else []
        self._options = " ".join(options)

    @property
    def where(self) -> str:
        of = f" of context {self.api.context}" if self.api.context else ""
        return f"in namespace {self.api.namespace}{of}"

    @property
    def namespace(self) -> str:
        return self.api.namespace

    @cached_property
    def profile(self) -> Profile:
        """That of --profile, else the cluster's, else the defaults."""
        if self.profile_path is not None:
            return load_profile(self.profile_path)
        path = CONFIG_MAPS.path(self.api.namespace, PROFILE_CONFIG_MAP)
        try:
            data = json.loads(self.api.get(path)).get("data") or {}
        except (NotFound, Forbidden):
            return Profile()
        return parse_profile(data.get(PROFILE_FILE, ""), f"configmap {PROFILE_CONFIG_MAP}")

    @cached_property
    def cluster(self) -> KubeCluster:
        return KubeCluster(self.api)

    @cached_property
    def user(self) -> str:
        """As the API server knows it."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = json.loads(self.api.post(SELF.path(None), body))
        return str(answer["status"]["userInfo"].get("username", "unknown"))

    def led(self) -> bool:
        try:
            spec = json.loads(self.api.get(LEASES.path(self.api.namespace, CONTROLLER_LEASE)))["spec"]
        except Forbidden:
            return True  # who may not look cannot say that there is none
        except ApiError:
            return False
        renewed = spec.get("renewTime")
        if not spec.get("holderIdentity") or not renewed:
            return False
        age = datetime.now(UTC) - datetime.fromisoformat(renewed)
        return age.total_seconds() < LEASE_STALE_S

    def settled(self, stored: Stored) -> bool:
        """As the controller says of exactly what is stored: it knows of refusals that no client sees."""
        seen = stored.status.get("observedGeneration") == stored.object["metadata"].get("generation")
        return seen and bool(stored.status.get("finished"))

    def leave(self, name: str) -> str:
        who = "its controller goes on" if self.led() else f"no controller works there: {self.unled}"
        return f"{who}; follow it with `{self.command_line('status', name, '-w')}`"

    def slots(self, name: str) -> int:
        return self.sweep(name).sweep.spec.scheduling.parallelism

    def absent(self, name: str) -> str:
        here = Dump(Path(os.environ.get("ORCH_DUMP", "dump"))).orch / "sweeps" / f"{name}.json"
        return "; on this machine there is one: add --local" if here.exists() else ""

    def command_line(self, *words: str) -> str:
        return " ".join(filter(None, ["orch", *words, self._options]))
