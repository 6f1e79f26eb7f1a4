"""Real processes and real SIGKILL: `orch submit --local --wait` and supervisors, at a change to a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.cluster.container import JOB_UID_ENV

ROOT = Path(__file__).parents[2]
SITE = ROOT / "tests/orchestrator/cluster/site"
SWEEP = """
apiVersion: orch.dev/v1alpha1
kind: Sweep
metadata: {name: demo}
spec:
  groups:
    - name: g
      runs:
        - {name: r0, params: {learning_rate: 1e-5}}
        - {name: r1, params: {learning_rate: 2e-5}}
  resources: {gpus: 1, cpu: 1, memory: 1Gi}
  eval: {tasks: [everyday], perplexity: none}
"""
CONTROLLER, SUPERVISOR = "orchestrator.cli", "orchestrator.cluster.shim"


class Lab:
    """A dump, and `orch` over it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.dump = folder / "dump"
        self.file = folder / "demo.yaml"
        self.file.write_text(SWEEP)
        self.once = folder / "killed"

    def submit(self, kill: dict[str, Any] | None = None) -> int:
        """Submit and wait for the end; the exit code."""
        command = [sys.executable, "-m", CONTROLLER, "--dump", str(self.dump)]
        wanted = {**kill, "root": str(self.dump), "once": str(self.once)} if kill else None
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT)]),
            "CUDA_VISIBLE_DEVICES": "0,1",
            "STUB_DUMP": str(self.dump),
            "ORCH_KILL": json.dumps(wanted),
        }
        done = subprocess.run(
            [*command, "submit", str(self.file), "--local", "--wait"],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
        return done.returncode

    def json(self, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(path.read_text())
        return value

    @property
    def outcomes(self) -> dict[str, str]:
        files = (self.dump / ".orch/records/demo").glob("[!.]*.json")
        records = [self.json(file) for file in files]
        return {one["job"]: one.get("class", one["state"]) for one in records}

    @property
    def trainings(self) -> dict[str, int]:
        """How often each unit was worked on, by its folder's name."""
        return {file.parent.name: file.read_text().count("trained") for file in self.dump.rglob("trainings")}

    def check(self) -> None:
        """Whatever died: everything is done, once, and nothing is left running or half written."""
        status = self.json(self.dump / ".orch/sweeps/demo.json")["status"]
        assert status["finished"]
        assert status["counts"]["done"] == status["counts"]["total"] == 2
        assert set(self.trainings.values()) == {1}
        jobs = {path.parent.name: self.json(path) for path in (self.dump / ".orch/jobs").glob("*/job.json")}
        assert jobs.keys() == self.outcomes.keys()
        assert not [path for path in (self.dump / ".orch").rglob(".*") if path != self.dump / ".orch"]
        assert not {job["uid"] for job in jobs.values()} & living()


def living() -> set[str]:
    """Uids of Jobs that have a process."""
    found = set()
    for process in psutil.process_iter():
        try:
            found.add(process.environ().get(JOB_UID_ENV, ""))
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("whole") / "lab")
    assert lab.submit() == 0
    lab.check()
    assert sorted(lab.outcomes.values()) == ["done"] * 6 + ["internal"]
    return lab


@pytest.mark.slow
def test_a_controller_killed_for_real_changes_nothing(whole: Lab, tmp_path: Path) -> None:
    killed = 0
    for at in range(1, 200, 13):
        lab = Lab(tmp_path / str(at))
        if lab.submit({"program": CONTROLLER, "at": at}) == 0:
            break  # it makes no more changes than that
        killed += 1
        assert lab.submit() == 0
        lab.check()
        assert lab.outcomes == whole.outcomes
    assert killed > 4


@pytest.mark.slow
def test_a_supervisor_killed_for_real_costs_an_attempt_and_no_training(whole: Lab, tmp_path: Path) -> None:
    killed = 0
    for at in range(200):
        lab = Lab(tmp_path / str(at))
        assert lab.submit({"program": SUPERVISOR, "at": at}) == 0
        if not lab.once.exists():
            break
        killed += 1
        lab.check()
        more = lab.outcomes.keys() - whole.outcomes.keys()
        assert len(more) <= 1
        assert {lab.outcomes[name] for name in whole.outcomes} <= {"done", "internal", "lost", "unverified"}
        assert set(map(lab.outcomes.get, more)) <= {"done"}
    assert killed > 4
