"""A controller that outlives the command which started it, with real processes: nothing is replaced."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SWEEP = """\
apiVersion: orch.dev/v1alpha1
kind: Sweep
metadata: {name: night}
spec:
  params: {model_name: /nonexistent/model, dataset_name: pydoc_topics}
  groups:
    - {name: seed, runs: [{name: only}]}
  resources: {gpus: 0}
  eval: {enabled: false}
"""


def _orch(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "--dump", str(tmp_path / "dump"), *words],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_submit_leaves_a_controller_that_works_until_nothing_is_left(tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"
    file.write_text(SWEEP)
    submitted = _orch(tmp_path, "submit", str(file))
    assert submitted.returncode == 0, submitted.stderr
    assert "a controller was started" in submitted.stdout

    # Watches the controller if it still leads, and goes on where it was if not.
    waited = _orch(tmp_path, "submit", str(file), "--wait")
    assert waited.returncode == 3, waited.stderr
    assert "night: 1 runs, unchanged" in waited.stdout
    assert "model_name: no such folder, got '/nonexistent/model'" in waited.stdout
    assert "Traceback" not in waited.stderr

    log = (tmp_path / "dump" / ".orch" / "controller.log").read_text()
    assert len(re.findall(r"controller: created night--fetch-", log)) <= 1, "nobody did its work twice"
    records = list((tmp_path / "dump" / ".orch" / "records" / "night").glob("*.json"))
    assert len(records) == 1

    again = _orch(tmp_path, "submit", str(file))
    assert "nothing to do" in again.stdout


@pytest.mark.parametrize("words", [["submit", "--wait"], ["plan"], ["render"]], ids=" ".join)
def test_without_its_file_a_command_exits_2(tmp_path: Path, words: list[str]) -> None:
    done = _orch(tmp_path, *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Missing argument" in done.stderr
