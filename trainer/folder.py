"""Which folder a run has, whether it is done, and what forbids training in it. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.config import TrainConfig, TrainPlace, digest
from trainer.layout import ADAPTER_WEIGHTS, RunFolder, read_json
from trainer.results import Record


def run_folder(config: TrainConfig, place: TrainPlace) -> RunFolder:
    """Where the run lies: --output-dir, else dump/solo/train-<digest>."""
    root = place.output_dir or f"{os.environ.get('ORCH_DUMP', 'dump')}/solo/train-{digest(config)[:8]}"
    return RunFolder(Path(root))


def finished(config: TrainConfig, place: TrainPlace) -> Record | None:
    """The done record of this very config, when its folder has one: needs no torch."""
    try:
        found = read_json(run_folder(config, place).done)
    except ValueError:
        return None  # a damaged mark marks nothing
    if not found or found.get("config_digest") != digest(config):
        return None
    # A done mark without its adapter is no result: train again from what is there.
    if not (run_folder(config, place).adapter / ADAPTER_WEIGHTS).is_file():
        return None
    return Record.model_validate(found)


def check_folder(config: TrainConfig, place: TrainPlace) -> str | None:
    """What forbids training in the run folder: another config's run, or no way to write; None if nothing."""
    folder = run_folder(config, place)
    try:
        found = read_json(folder.run)
        folder.root.mkdir(parents=True, exist_ok=True)
        probe = folder.root / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except ValueError as error:
        return f"{folder.run}: is damaged, got {error}; remove it if the run may start anew"
    except OSError as error:
        return f"{folder.root}: cannot be written, got {error.strerror}; give another --output-dir"
    if found and found.get("digest") != digest(config):
        return (
            f"{folder.root}: holds a run of another config, got digest {str(found.get('digest'))[:8]} "
            f"instead of {digest(config)[:8]}; give another --output-dir"
        )
    return None
