"""A namespace of a real cluster in which the real controller works, and a fake node on which pods run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import yaml

from bench.counting import Requests, counted, not_leases
from bench.fake_kubelet import NODE_LABEL, FakeKubelet
from bench.jobclock import JobClock
from bench.process import Process, until
from orchestrator.client import bundle
from orchestrator.client.install import sweeps_served
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.cluster import KubeCluster
from orchestrator.cluster.kube.errors import NotFound
from orchestrator.cluster.kube.paths import SWEEPS, Resource

T = TypeVar("T")
PARTS = {"Namespace", "CustomResourceDefinition", "ClusterRole", "ServiceAccount", "Role", "RoleBinding"}
"""What the controller needs of an installation; it runs outside of the cluster here."""
MANAGER = "orch-bench"
TOKEN_S = 6 * 3600
VOLUMES = Resource("api/v1", "persistentvolumes")
CLAIMS = Resource("api/v1", "persistentvolumeclaims")
ACCOUNTS = Resource("api/v1", "serviceaccounts")
STREAMED = {
    "sendInitialEvents": "true",
    "resourceVersionMatch": "NotOlderThan",
    "allowWatchBookmarks": "true",
}


class Stage:
    """Everything set up while the block lasts, and removed after it."""

    def __init__(self, namespace: str, python: str = sys.executable) -> None:
        self.namespace = namespace
        self.python = python
        self.api = Api.connect(namespace=namespace)
        self.cluster = KubeCluster(self.api)
        self.kubelet = FakeKubelet(self.api, f"{namespace}-node")
        self.clock = JobClock(self.api)
        self._folder = tempfile.TemporaryDirectory(prefix="orch-bench-")
        self.folder = Path(self._folder.name)
        self._made: list[str] = []
        self.controller: Process

    def __enter__(self) -> Stage:
        try:
            self._install()
            self._volume()
            self.kubelet.start()
            self.clock.start()
            self.start_controller()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "controller"):
            self.controller.stop()
        self.clock.stop()
        self.kubelet.stop()
        for path in reversed(self._made):
            self.api.delete(path)
        self._folder.cleanup()

    def start_controller(self) -> None:
        """As its own account, ready and leading."""
        config = self.folder / "controller.yaml"
        config.write_text(json.dumps(self._kubeconfig()))
        profile = self.folder / "orch.toml"
        digest = "0" * 64
        profile.write_text(
            f'image = "registry.example/orch-trainer@sha256:{digest}"\n'
            f"[nodeSelector]\n{json.dumps(NODE_LABEL)} = {json.dumps(self.kubelet.name)}\n"
        )
        arguments = ["--profile", str(profile), "controller", "-n", self.namespace, "--port", "0"]
        environment = os.environ | {"KUBECONFIG": str(config)}
        number = len(list(self.folder.glob("controller-*.log")))
        self.controller = Process(
            self.python, arguments, environment, self.folder / f"controller-{number}.log"
        )
        until(lambda: self.controller.get("/readyz")[0] == 200, 120, "the controller's /readyz")

    def until(self, done: Callable[[], T | None], within_s: float, what: str, every_s: float = 0.1) -> T:
        """As `until`, as long as the controller lives."""

        def alive() -> T | None:
            self.controller.check()
            return done()

        return until(alive, within_s, what, every_s=every_s)

    def submit(self, sweep: dict[str, Any]) -> None:
        """`orch submit` of a file that says this."""
        file = self.folder / f"{sweep['metadata']['name']}.yaml"
        file.write_text(yaml.safe_dump(sweep, sort_keys=False))
        command = [sys.executable, "-m", "orchestrator.cli", "submit", "-n", self.namespace, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"orch submit failed: {done.stdout}{done.stderr}")

    def status(self, name: str) -> dict[str, Any]:
        """What the controller told last of a sweep."""
        stored = self.cluster.sweep(name)
        return dict(stored.get("status") or {}) if stored else {}

    def finished(self, name: str, within_s: float) -> None:
        """Return once nothing of the sweep runs or will start."""
        self.until(lambda: self.status(name).get("finished"), within_s, f"the end of {name}", every_s=1.0)

    def quiet(self, within_s: float = 120) -> None:
        """Return once the controller has asked for nothing but its Lease for five seconds."""
        seen, since = Counter[Any](), time.monotonic()

        def is_quiet() -> bool:
            nonlocal seen, since
            now = not_leases(self.controller.requests())
            if now != seen:
                seen, since = now, time.monotonic()
            return time.monotonic() - since > 5

        self.until(is_quiet, within_s, "a controller at rest", every_s=0.5)

    def server_requests(self) -> Requests:
        """What everyone asked the API server so far, as the API server counts."""
        text = self.api.get("/metrics").decode()
        lines = [line for line in text.splitlines() if line.startswith("apiserver_request_total{")]
        found: Requests = Counter()
        for (verb, kind, sub, code), count in counted(
            "\n".join(lines), "apiserver_request_total", ("verb", "resource", "subresource", "code")
        ).items():
            found[verb, f"{kind}/{sub}" if sub else kind, code] += count
        return found

    # Setting up

    def _install(self) -> None:
        fresh = not sweeps_served(self.api)
        for one in bundle.bundle(bundle.Options(namespace=self.namespace)):
            if one["kind"] not in PARTS:
                continue
            path = bundle.path(one)
            if one["kind"] == "Namespace" or (bundle.cluster_scoped(one) and not self._exists(path)):
                self._made.append(path)
            self.api.apply(path, one, manager=MANAGER, force=True)
        if fresh:
            until(self._sweeps_ready, 60, "a cluster that serves Sweeps")

    def _sweeps_ready(self) -> bool:
        """Served is not enough: for a moment a new kind's storage answers 429."""
        with self.api.watch(SWEEPS.path(self.namespace), timeout_s=1, **STREAMED):
            return True

    def _volume(self) -> None:
        """The claim that Jobs mount, bound to a volume that is none."""
        name, size = f"{self.namespace}-volume", {"storage": "1Gi"}
        spec = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        claim = {"namespace": self.namespace, "name": "orch"}
        volume = {"capacity": size, "hostPath": {"path": "/nonexistent"}, "claimRef": claim}
        head = {"apiVersion": "v1", "metadata": {"name": name}}
        body = head | {"kind": "PersistentVolume", "spec": spec | volume}
        self.api.post(VOLUMES.path(None), body)
        self._made.append(VOLUMES.path(None, name))
        wanted = spec | {"volumeName": name, "resources": {"requests": size}}
        head = {"apiVersion": "v1", "metadata": {"name": "orch"}}
        self.api.post(CLAIMS.path(self.namespace), head | {"kind": "PersistentVolumeClaim", "spec": wanted})

    def _kubeconfig(self) -> dict[str, Any]:
        """That of the administrator, with the controller's own token."""
        found = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
        config = yaml.safe_load(found.read_text())
        context = next(one for one in config["contexts"] if one["name"] == config["current-context"])
        path = ACCOUNTS.path(self.namespace, "orch-controller", "token")
        head = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        token = json.loads(self.api.post(path, head | {"spec": {"expirationSeconds": TOKEN_S}}))
        user = {"name": "controller", "user": {"token": token["status"]["token"]}}
        context["context"]["user"] = "controller"
        return {**config, "users": [user]}

    def _exists(self, path: str) -> bool:
        try:
            self.api.get(path)
            return True
        except NotFound:
            return False
