"""Resumable state of a run: written aside, hashed, renamed; read back only when every hash holds."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.adapter import save_adapter
from trainer.config import TrainConfig
from trainer.layout import RunFolder, new_folder, read_json

logger = logging.getLogger(__name__)

STATE, TENSORS, HASHES = "state.json", "optimizer.safetensors", "hashes.json"


@dataclass(frozen=True)
class State:
    """What a run is after `step` optimiser steps; everything random is a counter and needs no state.

    lora: masters by name. optimizer: Adam's moments, name.exp_avg and name.exp_avg_sq. totals: counts so
    far. conditions: what exact resume depends on (torch, threads, processes …).
    """

    step: int
    lora: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    totals: Mapping[str, float]
    conditions: Mapping[str, Any]


def save(folder: RunFolder, state: State, config: TrainConfig, digest: str) -> Path:
    """Publish checkpoint-<step>, then drop all but the newest `save_total_limit`."""
    path = folder.checkpoint(state.step)
    with new_folder(path) as aside:
        save_adapter(state.lora, aside, config)
        tensors = {f"lora.{name}": tensor for name, tensor in state.lora.items()}
        tensors |= {f"adam.{name}": tensor for name, tensor in state.optimizer.items()}
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / TENSORS
        )
        about = {
            "v": 1,
            "step": state.step,
            "digest": digest,
            "totals": dict(state.totals),
            "conditions": dict(state.conditions),
        }
        (aside / STATE).write_text(json.dumps(about, indent=1))
        hashes = {file.name: _sha256(file) for file in sorted(aside.iterdir())}
        (aside / HASHES).write_text(json.dumps(hashes, indent=1))
    # Higher steps are damaged or abandoned ones: this run is here, and they must not push it out.
    kept = [old for old in folder.checkpoints() if int(old.name[11:]) <= state.step][
        : config.save_total_limit
    ]
    for old in folder.checkpoints():
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return path


def load_newest(folder: RunFolder, digest: str) -> State | None:
    """The newest checkpoint whose hashes all hold, or None; each bad one is said and passed over."""
    for path in folder.checkpoints():
        fault = verify(path, digest)
        if fault is None:
            return _load(path)
        logger.warning("%s: cannot be resumed from, got %s; going back to the one before", path, fault)
    return None


def verify(path: Path, digest: str) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        hashes = read_json(path / HASHES)
        if not isinstance(hashes, dict) or STATE not in hashes or TENSORS not in hashes:
            return "no complete list of hashes"
        for name, expected in hashes.items():
            if _sha256(path / name) != expected:
                return f"a changed {name}"
        about = read_json(path / STATE)
    except (OSError, ValueError) as error:
        return str(error)
    return None if about.get("digest") == digest else f"the config {about.get('digest')}"


def _load(path: Path) -> State:
    about = read_json(path / STATE)
    tensors = load_file(path / TENSORS)
    return State(
        step=about["step"],
        lora={name[5:]: value for name, value in tensors.items() if name.startswith("lora.")},
        optimizer={name[5:]: value for name, value in tensors.items() if name.startswith("adam.")},
        totals=about["totals"],
        conditions=about["conditions"],
    )


def conditions(world_size: int, device: torch.device) -> dict[str, Any]:
    """What bit-exact resume depends on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "isa": torch.backends.cpu.get_cpu_capability(),
    }


def changed_conditions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which conditions differ, as `name: before → now`."""
    return [f"{key}: {before.get(key)} → {now[key]}" for key in now if before.get(key) != now[key]]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
