"""A lab on the test cluster: orch installed in a namespace, its volume, and a hub of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster.cluster import Cluster, until

ROOT = Path(__file__).parents[2]
T = TypeVar("T")
PROFILE = """\
image = "{image}"
nodeSelector = {{"kubernetes.io/hostname" = "{node}"}}
shmSize = "64Mi"
tmpSize = "2Gi"
[env]
OMP_NUM_THREADS = "1"
{more}
"""
SWEEP = """\
apiVersion: orch.dev/v1alpha1
kind: Sweep
metadata: {{name: {name}}}
spec:
  params:
    model_name: lab/tiny
    dataset_name: lab/rows
    mixed_precision: fp32
    group_size: 32
    lora_r: 4
    max_length: 64
    max_new_tokens: 8
    max_steps: 4
    save_steps: 2
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 1
    learning_rate: 1e-3
  groups:
    - name: lmbda
      run: "lmbda{{lmbda}}"
      grid: {{lmbda: {lmbda}}}
{more}
  resources: {{gpus: 0, cpu: 0.5, memory: 2Gi, maxDuration: 30m}}
  scheduling: {{parallelism: 2}}
  eval:
    tasks: [everyday]
    limit: 4
    batchSize: 4
    perplexity: pydoc_topics
    perplexityTokens: 256
    adaptersPerJob: 3
"""


@dataclass
class Lab:
    """`dump` is the volume as seen on this machine."""

    cluster: Cluster
    namespace: str
    dump: Path

    def orch(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `orch` as a user with a kubeconfig does."""
        env = {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig), "COLUMNS": "160"}
        env.pop("ORCH_DUMP", None)
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *map(str, words), "-n", self.namespace],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"orch {words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def kubectl(self, *words: str, input: str | None = None, check: bool = True) -> str:
        return self.cluster.kubectl("-n", self.namespace, *words, input=input, check=check).stdout

    def get(self, *words: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.kubectl("get", *words, "-o", "json"))
        return value

    def status(self, sweep: str) -> dict[str, Any]:
        return self.get("sweep", sweep).get("status") or {}

    def jobs(self, sweep: str) -> list[str]:
        found = self.get("jobs", "-l", f"orch.dev/sweep={sweep}")["items"]
        return sorted(str(job["metadata"]["name"]) for job in found)

    def records(self, sweep: str) -> dict[str, dict[str, Any]]:
        found = self.get("configmaps", "-l", f"orch.dev/record,orch.dev/sweep={sweep}")["items"]
        return {one["metadata"]["name"]: json.loads(one["data"]["record.json"]) for one in found}

    def finished(self, sweep: str, timeout_s: float = 900.0) -> dict[str, Any]:
        """The status of a sweep once nothing is left to do for what was asked last."""

        def over() -> dict[str, Any] | None:
            value = self.get("sweep", sweep)
            status: dict[str, Any] = value.get("status") or {}
            seen = status.get("observedGeneration") == value["metadata"]["generation"]
            return status if seen and status.get("finished") else None

        return self.until(over, f"sweep {sweep} to finish", timeout_s)

    def until(self, look: Callable[[], T | None], what: str, timeout_s: float = 300.0) -> T:
        """What `look` finds, as soon as it finds anything."""
        try:
            return until(look, what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.evidence()}") from None

    def counts(self, sweep: str) -> dict[str, int]:
        """How many runs are in which state, as far as that was told yet."""
        found: dict[str, int] = self.status(sweep).get("counts") or {}
        return found

    def condition(self, sweep: str, kind: str) -> dict[str, Any] | None:
        """The sweep's condition of that type, None when it is not there."""
        found = self.status(sweep).get("conditions") or []
        return next((one for one in found if one["type"] == kind), None)

    def living(self, sweep: str) -> list[str]:
        """The pods of a sweep that have not ended."""
        found = self.get("pods", "-l", f"orch.dev/sweep={sweep}")["items"]
        alive = [pod for pod in found if pod["status"]["phase"] in ("Pending", "Running")]
        return [str(pod["metadata"]["name"]) for pod in alive]

    @contextmanager
    def following(self, run: str) -> Iterator[Iterator[str]]:
        """The lines of `orch logs RUN --follow`, as they come."""
        command = [sys.executable, "-m", "orchestrator.cli", "logs", run, "--follow", "-n", self.namespace]
        env = {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)}
        with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield iter(process.stdout)
            finally:
                process.kill()

    def evidence(self) -> str:
        """What a person would look at when something hangs."""
        told = [
            self.kubectl("get", "sweeps,jobs,pods", "-o", "wide", check=False),
            self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-6000:],
            self.kubectl("logs", "deploy/orch-controller", "--tail=40", check=False),
        ]
        return "\n".join(told)

    def apply(self, text: str) -> None:
        """As a user who knows nothing but kubectl."""
        self.kubectl("apply", "-f", "-", input=text)


@contextmanager
def installed(
    cluster: Cluster, images: dict[str, str], *, more_profile: str = "", replicas: int = 1
) -> Iterator[Lab]:
    """A namespace in which `orch install` was run and the controller is ready."""
    with cluster.namespace("lab") as namespace:
        lab = Lab(cluster, namespace, cluster.volume(namespace, "orch"))
        node = cluster.nodes[0]
        profile = PROFILE.format(image=images["trainer"], node=node, more=more_profile)
        config_map = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "orch-profile"},
            "data": {"orch.toml": profile},
        }
        lab.kubectl("apply", "-f", "-", input=json.dumps(config_map))
        lab.orch("install", "--yes", "--size", "10Gi", "--controller-image", images["controller"])
        # Two cores a node: what trains needs the first one whole.
        elsewhere = {"spec": {"nodeSelector": {"kubernetes.io/hostname": cluster.nodes[-1]}}}
        patch = {"spec": {"replicas": replicas, "template": elsewhere}}
        lab.kubectl("patch", "deploy/orch-controller", "--patch", json.dumps(patch))
        lab.kubectl("rollout", "status", "deploy/orch-controller", "--timeout=180s")
        yield lab
