"""A whole sweep as a user runs it: real processes, a tiny real model, killed and submitted again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
SWEEP = """
apiVersion: orch.dev/v1alpha1
kind: Sweep
metadata: {{name: tiny}}
spec:
  params:
    model_name: "{model}"
    dataset_name: "{model}/rows.jsonl"
    mixed_precision: fp32
    group_size: 32
    lora_r: 4
    max_length: 64
    max_new_tokens: 8
    max_steps: 12
    save_steps: 2
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 1
    learning_rate: 1e-3
  groups:
    - name: lmbda
      run: "lmbda{{lmbda}}"
      grid: {{lmbda: [0, 1]}}
  resources: {{gpus: 0, cpu: 2, memory: 4Gi, maxDuration: 1h}}
  eval:
    {{tasks: [everyday], limit: 4, batchSize: 4, perplexity: pydoc_topics, perplexityTokens: 256,
     adaptersPerJob: 2}}
"""


@pytest.fixture
def sweep(tmp_path, make_tiny_folder) -> Path:
    model = make_tiny_folder(tmp_path / "model")
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP.format(model=model))
    return file


def orch(dump: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "--dump", str(dump), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(process: subprocess.Popen[str], mark: str) -> None:
    """Read what it prints up to a line with `mark`."""
    assert process.stdout is not None
    for line in process.stdout:
        if mark in line:
            return
    pytest.fail(f"ended without {mark!r}")


def adapters(dump: Path) -> dict[str, bytes]:
    return {
        path.parts[-3]: path.read_bytes() for path in dump.glob("tiny/*/adapter/adapter_model.safetensors")
    }


@pytest.mark.slow
def test_killed_anywhere_a_sweep_goes_on_to_the_same_adapters_and_then_has_nothing_to_do(sweep, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = orch(whole, "submit", str(sweep), "--local", "--wait")
    text = first.communicate()[0]
    assert first.returncode == 0, text

    killed = orch(cut, "submit", str(sweep), "--local", "--wait")
    until(killed, "lmbda0: running")
    until(orch(cut, "logs", "lmbda0", "--stage", "train", "--follow"), "[train] 3/12")
    trainers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(cut) in (line := " ".join(process.info["cmdline"] or [])) and "-m trainer train" in line
    ]
    assert len(trainers) == 1
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    for trainer in trainers:
        trainer.kill()

    again = orch(cut, "submit", str(sweep), "--local", "--wait")
    text = again.communicate()[0]
    assert again.returncode == 0, text
    assert adapters(cut) == adapters(whole)
    assert len(adapters(cut)) == 2

    third = orch(cut, "submit", str(sweep), "--local", "--wait")
    text = third.communicate()[0]
    assert third.returncode == 0, text
    shown = json.loads(orch(cut, "results", "tiny", "-o", "json").communicate()[0])
    assert "merged" in json.dumps(shown)
    status = json.loads(orch(cut, "status", "tiny", "-o", "json").communicate()[0])
    assert json.dumps(status).count('"done"') >= 2
