"""Every file name under dump/, and the only ways files are published there: aside, fsync, rename.

Torch-free. A folder or file that exists under its final name is complete; the done mark is written last.

    dump/
      .models/<key>/               a converted model
      .hub/                        HF_HOME of Jobs: what fetch brought, see trainer/mark.py
      .baselines/<hash>/           teacher.json, ptq.json: shared by all sweeps that measure the same
      .teacher/<hash>/<xx>/*.json  completions written by a teacher (seq_kd), one a prompt
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

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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

_ASIDE = re.compile(r"\.(.+\.[0-9a-f]{8}|probe-[0-9]+)")


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

    def evaluation(self, eval_hash: str) -> Path:
        return self.root / "eval" / eval_hash

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
    def baselines(self) -> Path:
        return self.root / ".baselines"

    @property
    def orch(self) -> Path:
        return self.root / ".orch"


def write_bytes(path: Path, data: bytes, desk: Path | None = None) -> None:
    """Publish a file whole: written aside, fsynced, renamed; then the folder is fsynced.

    desk: an existing folder of the same volume to write in; without it, beside `path`. Whatever step fails,
    the OSError names `path`.
    """
    aside = _aside(path, desk)
    with _naming(path):
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            _remove(aside)
        fsync_folder(path.parent)


def append_bytes(file: BinaryIO, data: bytes) -> None:
    """Add to an open file, durably; a failure may leave a part of `data` in it, and names the file."""
    with _naming(Path(file.name)):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any, desk: Path | None = None) -> None:
    """Publish a JSON file whole; nan and infinity are refused."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), desk)


def write_json_once(path: Path, value: Any) -> None:
    """Publish a JSON file unless a whole one of that name exists: the first writer wins."""
    aside = _aside(path, None)
    try:
        write_json(aside, value)
        with _naming(path):
            try:
                os.link(aside, path)
            except FileExistsError:
                if not _is_json(path):
                    os.replace(aside, path)
    finally:
        _remove(aside)


@contextlib.contextmanager
def new_folder(path: Path, *, keep: bool = False, desk: Path | None = None) -> Iterator[Path]:
    """A folder to fill aside, which appears as `path` only when the block ends without error.

    An older folder of that name is replaced; with `keep` it stays, for others may be reading it, and the new
    one goes. Everything inside is fsynced first. desk: as in `write_bytes`.
    """
    aside = _aside(path, desk)
    try:
        with _naming(path):
            aside.mkdir()
            yield aside
            _fsync_tree(aside)
            if keep:
                # One step, so that of two writers the first wins: a folder is not renamed onto a filled one.
                try:
                    os.rename(aside, path)
                except OSError:
                    if not path.is_dir():
                        raise
            else:
                # A folder cannot be renamed over another: the old one steps aside, then goes.
                remove(path, desk)
                os.rename(aside, path)
            fsync_folder(path.parent)
    finally:
        _remove(aside)


def remove(path: Path, desk: Path | None = None, *, wholly: bool = False) -> None:
    """Take a file or folder away in one step; its bytes go after. Nothing happens if it is not there.

    Bytes that cannot go are left to the next owner, or with `wholly` are an OSError that names `path`.
    """
    aside = _aside(path, desk or path.parent)
    with _naming(path), contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if wholly:
            _delete(aside, wholly=True)
    _remove(aside)


def remove_asides(folder: Path) -> None:
    """Remove what writers that were killed left unfinished in `folder`: only its owner may."""
    for aside in folder.glob(".*"):
        _remove(aside)


def _aside(path: Path, desk: Path | None) -> Path:
    """A name no other writer has, in `desk`; without one beside `path`, whose folder is made."""
    if desk is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return (desk or path.parent) / f".{path.name}.{uuid.uuid4().hex[:8]}"


def _remove(path: Path) -> None:
    """Remove a file or folder that nobody reads; one that cannot go now is left to the next owner."""
    with contextlib.suppress(OSError):
        _delete(path, wholly=False)


def _delete(path: Path, *, wholly: bool) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=not wholly)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have an OSError name `path`: of a failed write Python says no name, of a rename one aside."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _fsync_tree(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        else:
            fsync_folder(file)
    fsync_folder(folder)


def is_aside(path: Path) -> bool:
    """Whether it has the name of something that is written, or removed, aside."""
    return _ASIDE.fullmatch(path.name) is not None


def fsync_folder(path: Path) -> None:
    """Make renames in `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """The JSON value in `path`, or None when there is no such file. Raises ValueError for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _is_json(path: Path) -> bool:
    try:
        return read_json(path) is not None
    except ValueError:
        return False


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; {} when there is no such file, or a damaged one that can be done without."""
    try:
        value = read_json(path)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
