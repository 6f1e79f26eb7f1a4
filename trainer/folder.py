"""Which folder a run has, whether it is done, and what forbids training in it. Torch-free."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

from trainer.config import TrainConfig, TrainPlace
from trainer.durable import read_object
from trainer.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CHECKPOINT_STATE, RunFolder
from trainer.results import Record
from trainer.settings import digest
from trainer.volume import of_volume

logger = logging.getLogger(__name__)

PROBE_BYTES = 1 << 16
"""Written and given back before anything is loaded, to learn of a full volume now."""


def run_folder(config: TrainConfig, place: TrainPlace) -> RunFolder:
    """Where the run lies: --output-dir, else dump/solo/train-<digest>."""
    root = place.output_dir or f"{os.environ.get('ORCH_DUMP', 'dump')}/solo/train-{digest(config)[:8]}"
    return RunFolder(Path(root))


def finished(config: TrainConfig, place: TrainPlace) -> Record | None:
    """The done record of this very config, when its folder has one and all it speaks of: needs no torch."""
    folder = run_folder(config, place)
    record = done_record(folder, digest(config))
    if record is None:
        return None
    fault = fault_of_result(folder, record)
    if fault:
        logger.warning("%s: marks nothing, got %s; going on from the last checkpoint", folder.done, fault)
        return None
    return record


def done_record(folder: RunFolder, config_digest: str) -> Record | None:
    """The done record of a config's run, None when its mark is absent, damaged or another config's."""
    found = read_object(folder.done)
    if not found or found.get("config_digest") != config_digest:
        return None
    try:
        record = Record.model_validate(found)
    except ValueError:
        return None  # a damaged mark marks nothing
    return record if record.status == "done" else None


def fault_of_result(folder: RunFolder, record: Record) -> str | None:
    """What is missing or damaged of what a done mark stands for; None when all is there."""
    weights = folder.adapter / ADAPTER_WEIGHTS
    if not weights.is_file():
        return f"no {weights.name}"
    with open(weights, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = record.train.adapter_sha256 if record.train else None
    if found != expected:
        return f"a changed {weights.name}"
    # Evaluation reads them, and cannot do without.
    for needed in (folder.adapter / ADAPTER_CONFIG, folder.run):
        if not read_object(needed):
            return f"no whole {needed.name}"
    return None


def check_folder(config: TrainConfig, place: TrainPlace) -> str | None:
    """What forbids training in the run folder: another config's run, or no way to write; None if nothing.

    Raises OSError for the faults of a volume: they are not the user's.
    """
    folder = run_folder(config, place)
    try:
        found = _digest_there(folder)
        folder.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.root) as probe:
            probe.write(b"\0" * PROBE_BYTES)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        if of_volume(error):
            error.filename = str(folder.root)
            raise
        return f"{folder.root}: cannot be written, got {error.strerror}; give another --output-dir"
    if found and found != digest(config):
        return (
            f"{folder.root}: holds a run of another config, got digest {found[:8]} "
            f"instead of {digest(config)[:8]}; give another --output-dir"
        )
    return None


def _digest_there(folder: RunFolder) -> str | None:
    """The digest of the config whose run lies here, from the first file that tells; None when none does."""
    if not folder.root.is_dir():
        return None
    if folder.run.exists() and not read_object(folder.run):
        logger.warning("%s: is damaged, and is written anew", folder.run)
    told = [read_object(folder.run).get("digest"), read_object(folder.done).get("config_digest")]
    told += [read_object(path / CHECKPOINT_STATE).get("digest") for path in folder.checkpoints()]
    return next((one for one in told if isinstance(one, str)), None)
