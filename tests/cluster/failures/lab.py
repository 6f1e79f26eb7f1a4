"""A namespace with a controller of this process, the stand-in trainer, and a witness of what happens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.client.bundle import with_settings
from orchestrator.cluster.kube.client import Api
from orchestrator.controller.metrics import Metrics
from orchestrator.controller.requests import fetch_of, fetch_unit
from orchestrator.controller.serve import ProfileFile, Service
from orchestrator.sweep.expand import Run, expand
from orchestrator.sweep.load import from_object
from orchestrator.sweep.naming import LABEL_STAGE, LABEL_SWEEP, job_name
from tests.cluster.cluster import Cluster
from tests.cluster.failures.page import Row, steady
from tests.cluster.failures.scenes import Play, Scene
from tests.cluster.failures.witness import Witness
from tests.cluster.lab import Lab
from trainer.results import Stage

PROFILE = """\
image = "{image}"
serviceAccount = "default"
shmSize = "16Mi"
tmpSize = "16Mi"
maxMemory = "64Mi"
gpuTypeLabel = "kubernetes.io/hostname"
gpuTypes = {{first = ["orch-node-1"], second = ["orch-node-2"]}}
[[tolerations]]
key = "node.kubernetes.io/unreachable"
operator = "Exists"
effect = "NoExecute"
tolerationSeconds = 1
"""


class Entry(NamedTuple):
    """A line of the stand-in trainer's journal."""

    word: str
    run: str
    attempt: str
    pod: str
    at: str
    arguments: str


@dataclass
class FailureLab(Lab):
    """As Lab; what is submitted here is known by sweep and name of run."""

    witness: Witness
    profile: Path
    plays: dict[str, Play] = field(default_factory=dict)
    _runs: dict[tuple[str, str], Run] = field(default_factory=dict)

    @contextmanager
    def profile_with(self, changes: Mapping[str, str | bool], tables: str = "") -> Iterator[None]:
        """Inside the block Jobs are made with other defaults."""
        before = self.profile.read_text()
        self._set_profile(with_settings(before, changes) + tables)
        yield
        self._set_profile(before)

    def _set_profile(self, text: str) -> None:
        aside = self.profile.with_suffix(".new")
        aside.write_text(text)
        aside.replace(self.profile)  # the controller may read it at any moment

    def begin(self, plays: Mapping[str, Play]) -> None:
        """Submit sweeps, and tell the stand-in trainer what to do."""
        manifests = {name: play.manifest(name) for name, play in plays.items()}
        for name, play in plays.items():
            for run in expand(from_object(manifests[name], name)):
                self._runs[name, run.name] = run
                self._instruct(run, play.scenes[run.name])
        self.plays |= plays
        self.apply("\n---\n".join(map(json.dumps, manifests.values())))

    def _instruct(self, run: Run, scene: Scene) -> None:
        folder = self.dump / ".behaviour" / run.id
        folder.mkdir(parents=True, exist_ok=True)  # one config in two sweeps has one id
        (folder / "digest").write_text(run.digest)
        for when, lines in scene.behaviour.items():
            (folder / when).write_text(lines + "\n")

    def scene(self, sweep: str, run: str) -> Scene:
        return self.plays[sweep].scenes[run]

    def run(self, sweep: str, run: str) -> Run:
        return self._runs[sweep, run]

    def unit(self, sweep: str, run: str, stage: Stage = "train") -> str:
        """The id under which a run's training, or what it fetches, is recorded."""
        found = self.run(sweep, run)
        return found.id if stage == "train" else fetch_unit(fetch_of(found.config)).id

    def job(self, sweep: str, run: str, attempt: int = 1, stage: Stage = "train") -> str:
        """The name of an attempt's Job."""
        return job_name(sweep, self.unit(sweep, run, stage), stage, attempt)

    def journal(self, sweep: str, run: str, word: str) -> list[Entry]:
        """What the stand-in trainer told of a run's training."""
        journal = self.dump / ".journal"
        lines = journal.read_text().splitlines() if journal.exists() else []
        entries = [Entry(*line.split("\t")) for line in lines]
        return [one for one in entries if (one.word, one.run) == (word, self.run(sweep, run).id)]

    def attempts(self, sweep: str, run: str, stage: Stage = "train") -> list[dict[str, Any]]:
        """The records of a run's training or fetch, by attempt."""
        unit = self.unit(sweep, run, stage)
        found = [one for one in self.witness.records(sweep) if one["run_id"] == unit]
        return sorted(found, key=lambda one: int(one["attempt"]))

    def concluded(self, sweep: str, run: str, stage: Stage = "train") -> list[dict[str, Any]]:
        """The records of a run once there are as many as its scene has attempts, and none was too many."""
        scene = self.scene(sweep, run)

        def all_there() -> list[dict[str, Any]] | None:
            found = self.attempts(sweep, run, stage)
            return found if len(found) >= scene.attempts else None

        found = self.until(all_there, f"attempt {scene.attempts} of {sweep}/{run}", 120)
        assert [one["attempt"] for one in found] == list(range(1, scene.attempts + 1))
        assert [one["state"] for one in found[:-1]] == ["failed"] * (len(found) - 1)
        shown = self.witness.shown(self.job(sweep, run, scene.attempts, stage))
        assert found[-1]["state"] == ("done" if scene.done else "failed"), shown
        return found

    def ended(self, sweep: str, run: str, stage: Stage = "train") -> list[dict[str, Any]]:
        """As concluded, with one pod at a time, and trained once by the stand-in if it is done."""
        found = self.concluded(sweep, run, stage)
        self.apart(sweep, run)
        assert len(self.journal(sweep, run, "trained")) == self.scene(sweep, run).done, "trained twice"
        return found

    def apart(self, sweep: str, run: str) -> None:
        """No pod of a run began before the one before had ended."""
        spans = self.witness.spans(self.run(sweep, run).id, sweep)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans)), f"two pods at once: {spans}"

    def evict(self, pod: str) -> None:
        """What a drain of its node does to a pod."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))

    def trains(self, sweep: str, run: str, attempt: int = 1, pods: int = 1) -> str:
        """The name of the pod in which an attempt trains, once it is Ready; `pods` it is of its Job."""
        job = self.job(sweep, run, attempt)

        def ready() -> str | None:
            found = self.witness.pods(job)
            conditions = found[-1]["status"].get("conditions", []) if len(found) == pods else []
            is_ready = any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)
            return str(found[-1]["metadata"]["name"]) if is_ready else None

        return self.until(ready, f"a pod of {job} to train", 120)

    def exits(self, sweep: str, run: str) -> list[tuple[str, str]]:
        """(pod uid, exit code) of each pod of a run's training that ended by itself."""
        return [(one.pod, one.arguments) for one in self.journal(sweep, run, "end")]

    def made(self, job: str) -> None:
        """Return when there is a Job of that name."""
        self.until(lambda: self.witness.jobs(job) or None, f"{job} to be made", 60)

    def suspend(self, job: str, suspended: bool) -> None:
        """What Kueue does to a Job."""
        self.kubectl("patch", "job", job, "-p", json.dumps({"spec": {"suspend": suspended}}))

    def queued(self, sweep: str, stage: str) -> list[str] | None:
        """Names of a sweep's Jobs of a stage once all of them wait in their queue."""
        found = [
            job
            for job in self.witness.all("jobs")
            if (job["metadata"]["labels"][LABEL_SWEEP], job["metadata"]["labels"][LABEL_STAGE])
            == (sweep, stage)
        ]
        waiting = [str(job["metadata"]["name"]) for job in found if job["spec"]["suspend"]]
        return waiting if waiting and len(waiting) == len(found) else None

    def age_s(self, job: str) -> float:
        made = datetime.fromisoformat(self.witness.jobs(job)[-1]["metadata"]["creationTimestamp"])
        return (datetime.now(UTC) - made).total_seconds()

    def failure(self, sweep: str, run: str) -> dict[str, Any] | None:
        """What the status of a sweep says of a run's failure."""
        told = self.status(sweep).get("failures", [])
        return next((one for one in told if one["run"] == self.run(sweep, run).id), None)

    def why(self, sweep: str, run: str) -> list[str]:
        """What `orch why` prints."""
        env = {"KUBECONFIG": str(self.cluster.kubeconfig), "COLUMNS": "160"}
        done = CliRunner().invoke(app, ["why", f"{sweep}/{run}", "-n", self.namespace], env=env)
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    def row(
        self, sweep: str, run: str, attempt: int = 1, stage: Stage = "train", *, stuck: bool = False
    ) -> Row:
        """What the page tells of a recorded attempt; `stuck`: as it stood before it was told to go."""
        record = next(one for one in self.attempts(sweep, run, stage) if one["attempt"] == attempt)
        line = next(one for one in self.why(sweep, run) if one.startswith(f"  {stage} {attempt}: "))
        job = self.job(sweep, run, attempt, stage)
        if not stuck:
            self.until(lambda: self.witness.still(job) or None, f"what is left of {job} to go", 60)
        return Row(
            self.scene(sweep, run).provoked,
            steady(self.witness.stuck(job) if stuck else self.witness.shown(job)),
            record.get("class", "done"),
            steady(record.get("remedy", "")),
            steady(line.strip()),
        )

    def waits(self, sweep: str, condition: str, reason: str) -> None:
        """Return when the sweep says what it waits for."""

        def told() -> bool | None:
            found = self.condition(sweep, condition)
            return True if found and found["reason"] == reason else None

        self.until(told, f"{sweep} to say {condition} ({reason})", 60)

    def goes_on(self, sweep: str, condition: str) -> dict[str, Any]:
        """The record of the sweep's one run: done in one attempt, and nothing is lacking any more."""
        [record] = self.ended(sweep, sweep)
        assert record["state"] == "done"
        self.finished(sweep, 60)
        assert self.condition(sweep, condition) is None
        return record

    def held(
        self, sweep: str, run: str, provoked: str, failure: str, followed: str, stage: Stage = "train"
    ) -> Row:
        """What the page tells of a run that waits for something."""
        job = self.job(sweep, run, stage=stage)
        shown = self.witness.stuck(job) if self.witness.jobs(job) else "no Job"
        said = self.why(sweep, run)[-1].strip()
        return Row(provoked, steady(shown), failure, followed, steady(said))


@contextmanager
def failure_lab(cluster: Cluster, profile: str, folder: Path) -> Iterator[FailureLab]:
    """A namespace with this profile, which is kept in `folder`: see PROFILE."""
    with cluster.namespace("fail") as namespace:
        dump = cluster.volume(namespace, "orch")
        file = folder / "orch.toml"
        file.write_text(profile)
        with Witness(cluster.rig, namespace) as witness:
            lab = FailureLab(cluster, namespace, dump, witness, file)
            lab.apply("\n---\n".join(map(json.dumps, _parts(profile))))
            with _controller(cluster, namespace, file):
                yield lab


def _parts(profile: str) -> list[dict[str, Any]]:
    """What `orch install` would have made, as far as Jobs and commands need it."""
    claim = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    return [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "orch"}, "spec": claim},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "orch-profile"},
            "data": {"orch.toml": profile},
        },
    ]


@contextmanager
def _controller(cluster: Cluster, namespace: str, profile: Path) -> Iterator[None]:
    api = Api.connect(kubeconfig=cluster.kubeconfig, namespace=namespace)
    service = Service(api, ProfileFile(profile), Metrics())
    service.cluster.start()
    worker = threading.Thread(target=service.run, name="worker")
    try:
        assert service.cluster.wait_synced(60)
        worker.start()
        yield
    finally:
        service.end()
        if worker.is_alive():
            worker.join()
        service.cluster.stop()
