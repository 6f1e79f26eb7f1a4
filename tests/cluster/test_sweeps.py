"""Sweeps on a real cluster, with our own images, from `orch install` to the table: a lab's week."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.lab import ROOT, SWEEP, Lab, installed
from tests.hub import Hub


@pytest.fixture(scope="module")
def lab(cluster: Cluster, images: dict[str, str], hub: Hub) -> Iterator[Lab]:
    with installed(cluster, images, more_profile=f'HF_ENDPOINT = "{hub.url}"') as one:
        yield one


def adapters(dump: Path, sweep: str) -> dict[str, str]:
    """SHA-256 of every adapter's weights, by run id."""
    return {
        path.parts[-3]: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in dump.glob(f"{sweep}/*/adapter/adapter_model.safetensors")
    }


def test_kubectl_apply_takes_a_sweep_from_the_hub_to_its_results(lab: Lab) -> None:
    lab.apply(SWEEP.format(name="tiny", lmbda="[0, 1, 0.5]", more=""))
    status = lab.finished("tiny")
    assert status["counts"]["done"] == status["counts"]["total"] == 3, lab.evidence()
    stages = sorted(re.search(r"-([a-z]+)-\d+$", name)[1] for name in lab.records("tiny"))
    assert stages == ["eval", "fetch", "train", "train", "train"] or "baseline" in stages
    assert all(record["state"] == "done" for record in lab.records("tiny").values())
    table = lab.orch("results", "tiny").stdout
    assert "lmbda05" in table
    assert "teacher" in table
    columns = lab.kubectl("get", "sweeps").splitlines()
    assert columns[0].split()[:5] == ["NAME", "TOTAL", "RUNNING", "DONE", "FAILED"]
    assert columns[1].split()[:5] == ["tiny", "3", "0", "3", "0"]
    told = lab.kubectl("describe", "sweep", "tiny")
    assert re.search(r"Normal +AllDone", told)
    assert told.count(" Accepted ") == 1, "events are told once"


def test_its_adapters_are_those_of_this_machine_byte_for_byte(lab: Lab, hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP.format(name="tiny", lmbda="[0, 1, 0.5]", more=""))
    profile = tmp_path / "orch.toml"
    profile.write_text(f'[env]\nHF_ENDPOINT = "{hub.url}"\nOMP_NUM_THREADS = "1"\n')
    where = ["--dump", str(tmp_path / "dump"), "--profile", str(profile)]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *where, "submit", str(file), "--local", "--wait"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    here = adapters(tmp_path / "dump", "tiny")
    assert len(here) == 3
    assert adapters(lab.dump, "tiny") == here


def test_a_resubmitted_sweep_writes_nothing(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP.format(name="tiny", lmbda="[0.0, 1.0, 0.5]", more=""))
    before, jobs = lab.get("sweep", "tiny")["metadata"]["resourceVersion"], lab.jobs("tiny")
    said = json.loads(lab.orch("submit", file, "-o", "json").stdout)
    assert said["changed"] is False
    assert len(said["runs"]) == 3
    assert lab.get("sweep", "tiny")["metadata"]["resourceVersion"] == before
    assert lab.jobs("tiny") == jobs


def test_eval_after_adds_that_and_nothing_else(lab: Lab) -> None:
    before = set(lab.records("tiny"))
    lab.orch("eval", "--after", "tiny", "--limit", "2")
    lab.finished("tiny")
    added = set(lab.records("tiny")) - before
    assert {re.search(r"-([a-z]+)-\d+$", name)[1] for name in added} <= {"eval", "baseline"}
    assert added
    assert "asked for already" in lab.orch("eval", "--after", "tiny", "--limit", "2").stdout


def test_a_run_that_is_added_is_the_only_new_one_and_one_that_is_dropped_can_be_pruned(
    lab: Lab, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP.format(name="tiny", lmbda="[0, 1, 0.25]", more=""))
    before = set(lab.records("tiny"))
    plan = lab.orch("plan", file).stdout
    assert "3 runs, 1 new, 0 changed, 2 exist" in plan
    assert "removed" in plan
    lab.orch("submit", file, "--prune")
    status = lab.finished("tiny")
    assert status["counts"]["total"] == status["counts"]["done"] == 3
    trained = [name for name in set(lab.records("tiny")) - before if "-train-" in name]
    assert len(trained) == 1
    assert "lmbda025" in trained[0]


def test_a_sweep_deleted_and_submitted_anew_is_recorded_again_and_nothing_is_trained(
    lab: Lab, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP.format(name="tiny", lmbda="[0, 1, 0.25]", more=""))
    weights = {path: path.stat().st_mtime_ns for path in lab.dump.glob("tiny/*/adapter/*")}
    lab.kubectl("delete", "sweep", "tiny")
    lab.orch("submit", file)
    status = lab.finished("tiny")
    assert status["counts"]["done"] == 3, lab.evidence()
    assert {path: path.stat().st_mtime_ns for path in lab.dump.glob("tiny/*/adapter/*")} == weights
    assert len([name for name in lab.records("tiny") if "-train-" in name]) == 3


def test_a_users_error_fails_at_once_says_why_and_the_rest_goes_on(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    more = "    - {name: bad, runs: [{name: nodata, params: {dataset_name: lab/nowhere}}]}"
    file.write_text(SWEEP.format(name="bad", lmbda="[0]", more=more))
    lab.orch("submit", file)
    status = lab.finished("bad")
    assert (status["counts"]["done"], status["counts"]["failed"]) == (1, 1), lab.evidence()
    told = lab.orch("why", "nodata").stdout
    assert "userError" in told
    assert "lab/nowhere" in told
    account = json.loads(lab.orch("why", "nodata", "-o", "json").stdout)
    assert account["state"] == "failed"
    assert len([one for one in account["attempts"] if one["stage"] == "fetch"]) <= 2
    assert re.search(r"Warning +UserError", lab.kubectl("describe", "sweep", "bad"))


def test_a_run_is_followed_cancelled_and_its_sweep_suspended_and_resumed(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    # Its tiny model never ends an answer by itself.
    slow = "max_steps: 100000, save_steps: 50000, allow_cut_rollouts: true"
    more = f"    - {{name: long, runs: [{{name: slow, params: {{{slow}}}}}]}}"
    file.write_text(
        SWEEP.format(name="long", lmbda="[0.75]", more=more).replace("parallelism: 2", "parallelism: 1")
    )
    lab.orch("submit", file)
    lab.until(lambda: lab.counts("long").get("trained") or None, "the first run to be trained")
    lab.until(lambda: lab.counts("long").get("running") or None, "the second to run")
    with lab.following("slow") as lines:
        assert any("step" in line for line in lines), "its log is told while it runs"
        lab.orch("suspend", "long")
        held = lab.until(lambda: lab.condition("long", "Suspended"), "the sweep to be suspended")
        assert held["reason"] == "Requested"
        assert lab.counts("long")["running"] == 1, "what runs is left alone"
        lab.orch("cancel", "long", "slow")
        status = lab.finished("long", 120)
        for _ in lines:  # ends by itself with the pod
            pass
    assert (status["counts"]["trained"], status["counts"]["cancelled"]) == (1, 1)
    lab.until(lambda: True if not lab.living("long") else None, "its pod to end", 90)
    [record] = [one for name, one in lab.records("long").items() if one.get("class") == "cancelled"]
    assert record["evidence"] == "cancelled by its user"
    lab.orch("resume", "long")
    lab.until(lambda: True if lab.condition("long", "Suspended") is None else None, "the sweep to be resumed")
    counts = lab.finished("long")["counts"]
    assert (counts["done"], counts["cancelled"]) == (1, 1), lab.evidence()
