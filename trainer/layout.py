"""Every file name under dump/, and the only ways files are published there: aside, fsync, rename.

Torch-free. A folder or file that exists under its final name is complete; the done mark is written last.

    dump/
      .models/<key>/               a converted model
      .hub/                        HF_HOME of Jobs: what fetch brought, see trainer/mark.py
      .baselines/<hash>/           teacher.json, ptq.json: shared by all sweeps that measure the same
      .teacher/<hash>/<xx>/*.json  completions written by a teacher (seq_kd), one a prompt
      .orch/                       state of the local cluster
      <sweep>/<run id>/            a run: everything below
        owner.json                 who may write here (the fence)
        run.json                   config, versions, base, data, timings
        metrics.jsonl              one line an optimiser step
        checkpoint-<step>/         resumable state, complete when it has this name
        adapter/                   the result, in PEFT's layout
        samples.json               completions of teacher, ptq and adapter on fixed prompts
        eval/<hash>/<variant>.json evaluations, named by the hash of what they measure
        done.json                  the record of success; last
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TERMINATION_LOG_ENV = "ORCH_TERMINATION_LOG"
"""Where the record of an attempt is written; in a pod /dev/termination-log."""
READY_FILE_ENV = "ORCH_READY_FILE"
"""A file made after the first optimiser step: the readiness probe looks for it."""
ATTEMPT_ENV = "ORCH_ATTEMPT"
"""Token of the attempt (pod uid or process token): whoever holds the run folder's owner.json writes."""

_ASIDE = re.compile(r"\.(.+\.[0-9a-f]{8}|probe-[0-9]+)")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    root: Path

    @property
    def owner(self) -> Path:
        return self.root / "owner.json"

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def samples(self) -> Path:
        return self.root / "samples.json"

    @property
    def done(self) -> Path:
        return self.root / "done.json"

    def checkpoint(self, step: int) -> Path:
        return self.root / f"checkpoint-{step}"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        found = [p for p in self.root.glob("checkpoint-*") if p.name[11:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[11:]), reverse=True)

    def evaluation(self, eval_hash: str) -> Path:
        return self.root / "eval" / eval_hash


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
    def baselines(self) -> Path:
        return self.root / ".baselines"

    @property
    def orch(self) -> Path:
        return self.root / ".orch"


def write_bytes(path: Path, data: bytes) -> None:
    """Publish a file whole: written aside, fsynced, renamed; then the folder is fsynced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Publish a JSON file whole; nan and infinity are refused."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_json_once(path: Path, value: Any) -> None:
    """Publish a JSON file unless one of that name exists: the first writer wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        write_json(aside, value)
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """A folder to fill aside, which appears as `path` only when the block ends without error.

    An older folder of that name is replaced; with `keep` it stays, for others may be reading it, and the new
    one goes. Everything inside is fsynced first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
            else:
                fsync_folder(file)
        fsync_folder(aside)
        if keep:
            # One step, so that of two writers the first wins: a folder is not renamed onto a filled one.
            try:
                os.rename(aside, path)
            except OSError:
                if not path.is_dir():
                    raise
        elif path.exists():
            # A folder cannot be renamed over another: the old one steps aside, then goes.
            old = path.with_name(f".{path.name}.old.{uuid.uuid4().hex[:8]}")
            os.rename(path, old)
            os.rename(aside, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(aside, path)
        fsync_folder(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_asides(folder: Path) -> None:
    """Remove what writers that were killed left unfinished in `folder`: only its owner may."""
    for aside in folder.glob(".*"):
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def is_aside(path: Path) -> bool:
    """Whether it has the name of something that is written, or removed, aside."""
    return _ASIDE.fullmatch(path.name) is not None


def remove_whole(path: Path) -> None:
    """Remove a folder that others may look at: under its name it is there whole or not at all."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    os.rename(path, aside)
    shutil.rmtree(aside)


def fsync_folder(path: Path) -> None:
    """Make renames in `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """The JSON value in `path`, or None when there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
