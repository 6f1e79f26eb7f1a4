"""Every file name under dump/. Torch-free.

A folder or file that exists under its final name is complete (`trainer.durable`); the done mark comes last.

    dump/
      .models/<key>/               a converted model
      .hub/                        HF_HOME of Jobs: what fetch brought, see trainer/mark.py
      .baselines/<hash>/           teacher.json, ptq.json: shared by all sweeps that measure the same
      .teacher/<hash>/<xx>/*.json  completions written by a teacher (seq_kd), one a prompt
      .teacher/<hash>/<xx>/*.safetensors  a teacher's likeliest tokens (teacher_topk), one a row
      .orch/                       state of the local cluster
      <sweep>/<run id>/            a run: everything below
        owner/<token>/             who may write here (the fence), and what it has not finished writing
        run.json                   config, versions, base, data, timings
        metrics.jsonl              one line an optimiser step
        checkpoint-<step>/         resumable state, complete when it has this name
        adapter/                   the result, in PEFT's layout
        samples.json               completions of teacher, ptq and adapter on fixed prompts
        eval/<hash>/<variant>.json evaluations, named by the hash of what they measure
        export/<format>/           what leaves the volume, whole when it has its manifest
        done.json                  the record of success; last
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
METRICS = "metrics.jsonl"
CHECKPOINT_STATE = "state.json"
EXPORT_MANIFEST, EXPORT_CARD = "manifest.json", "README.md"
EXPORT_ADAPTER = "adapter"
"""Folder of the PEFT files in an export that ships base and adapter apart."""
GGUF_MODEL, GGUF_ADAPTER = "model.gguf", "adapter.gguf"
TERMINATION_LOG_ENV = "ORCH_TERMINATION_LOG"
"""Where the record of an attempt is written; in a pod /dev/termination-log."""
READY_FILE_ENV = "ORCH_READY_FILE"
"""A file made after the first optimiser step: the readiness probe looks for it."""
ATTEMPT_ENV = "ORCH_ATTEMPT"
"""Token of the attempt (pod uid or process token): whoever holds the run folder's owner.json writes."""


def measure_key(measure: str, adapter_sha256: str = "") -> str:
    """Folder of what a measure (its hash) found, 16 hex: of the baselines, or of one adapter."""
    return hashlib.sha256(f"{measure}\0{adapter_sha256}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    root: Path

    @property
    def owner(self) -> Path:
        return self.root / "owner"

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        return self.root / METRICS

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def samples(self) -> Path:
        return self.root / "samples.json"

    @property
    def probe(self) -> Path:
        return self.root / "probe.json"

    @property
    def done(self) -> Path:
        return self.root / "done.json"

    def checkpoint(self, step: int) -> Path:
        return self.root / f"checkpoint-{step}"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        found = [p for p in self.root.glob("checkpoint-*") if p.name[11:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[11:]), reverse=True)

    @property
    def evaluations(self) -> Path:
        return self.root / "eval"

    def evaluation(self, eval_hash: str) -> Path:
        return self.evaluations / eval_hash

    def export(self, kind: str, checkpoint: str | None = None) -> Path:
        return self.root / "export" / (f"{kind}@{checkpoint}" if checkpoint else kind)


@dataclass(frozen=True)
class Dump:
    """The shared volume: everything the trainer and the local cluster write."""

    root: Path

    def run(self, sweep: str, run_id: str) -> RunFolder:
        return RunFolder(self.root / sweep / run_id)

    def model(self, key: str) -> Path:
        return self.models / key

    def runs(self, sweep: str) -> list[RunFolder]:
        """The runs in a sweep's folder that a trainer has begun, by id."""
        found = (RunFolder(path) for path in sorted((self.root / sweep).glob("[!.]*")))
        return [one for one in found if one.run.is_file() and not one.root.is_symlink()]

    def sweeps(self) -> list[str]:
        """Names of the folders of sweeps."""
        return sorted(path.name for path in self.root.glob("[!.]*") if path.is_dir())

    @property
    def models(self) -> Path:
        return self.root / ".models"

    @property
    def hub(self) -> Path:
        return self.root / ".hub"

    @property
    def teacher(self) -> Path:
        """What a teacher wrote or computed, kept for every run that asks for the same."""
        return self.root / ".teacher"

    @property
    def baselines(self) -> Path:
        return self.root / ".baselines"

    @property
    def orch(self) -> Path:
        return self.root / ".orch"
