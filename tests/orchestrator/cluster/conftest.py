"""A local cluster over an empty dump, and Jobs whose container is a line of Python."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.base import Created, ObservedJob
from orchestrator.cluster.local import LocalCluster
from orchestrator.cluster.slots import Slots
from orchestrator.cluster.supervisor import end_stragglers
from orchestrator.profile import Profile
from orchestrator.sweep.naming import LABEL_SWEEP

SWEEP = "night"
LIMIT_S = 120.0

# What scripts of Jobs begin with: `ready()` tells the test that they run.
PRELUDE = """
import os, signal, sys, time
def ready():
    open(os.environ["ORCH_READY_FILE"], "w").close()
def record(text):
    with open(os.environ["ORCH_TERMINATION_LOG"], "w") as file:
        file.write(text)
"""


def manifest(
    name: str, script: str = "", *, gpus: int = 0, pod: dict[str, Any] | None = None, **container: Any
) -> dict[str, Any]:
    """A Job of sweep `night` that runs `script`."""
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    rules = [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    rules += [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [code]}} for code in (64, 75)]
    main = {
        "name": "trainer",
        "command": ["python", "-c", (PRELUDE + script).replace("$", "$$")],
        "resources": {"limits": limits},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **container,
    }
    return {
        "metadata": {"name": name, "labels": {LABEL_SWEEP: SWEEP}, "annotations": {"note": name}},
        "spec": {
            "podFailurePolicy": {"rules": rules},
            "template": {"spec": {"terminationGracePeriodSeconds": 60, **(pod or {}), "containers": [main]}},
        },
    }


@dataclass
class Machine:
    """A dump folder with local clusters over it."""

    dump: Path
    slots: Slots
    cluster: LocalCluster = field(init=False)

    def __post_init__(self) -> None:
        self.cluster = self.restarted()

    def restarted(self) -> LocalCluster:
        """A cluster object as a new process would have it."""
        return LocalCluster(self.dump, Profile(), self.slots)

    def create(self, name: str, script: str = "", **more: Any) -> Created:
        return self.cluster.create_job(manifest(name, script, **more))

    def job(self, name: str, cluster: LocalCluster | None = None) -> ObservedJob | None:
        return next((job for job in (cluster or self.cluster).jobs(SWEEP) if job.name == name), None)

    def until(
        self, name: str, true: Callable[[ObservedJob], object], cluster: LocalCluster | None = None
    ) -> ObservedJob:
        """The Job once `true` holds of it."""
        cluster = cluster or self.cluster
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            job = self.job(name, cluster)
            if job and true(job):
                return job
            cluster.wait(1.0)
        raise AssertionError(f"{name} came to nothing: {self.job(name)}, log {list(self.cluster.logs(name))}")

    def finished(self, name: str) -> ObservedJob:
        return self.until(name, lambda job: job.finished)

    def running(self, name: str) -> ObservedJob:
        return self.until(name, lambda job: job.pods and job.pods[0].ready)

    def supervisor(self, name: str) -> int:
        """The supervisor's process id."""
        return int(json.loads((self.dump / ".orch/jobs" / name / "pid.json").read_text())["pid"])

    def log(self, name: str) -> list[str]:
        return list(self.cluster.logs(name))


@pytest.fixture
def machine_with(tmp_path: Path) -> Iterator[Callable[[Slots], Machine]]:
    dump = tmp_path / "dump"
    yield lambda slots: Machine(dump, slots)
    for file in (dump / ".orch/jobs").glob("*/job.json"):
        end_stragglers(json.loads(file.read_text())["uid"])


@pytest.fixture
def machine(machine_with: Callable[[Slots], Machine]) -> Machine:
    """A machine without GPUs."""
    return machine_with(Slots())
