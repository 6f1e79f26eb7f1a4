"""Resumable state of a run: written aside, hashed, renamed; read back only when every hash holds.

Everything that a resumed run needs is inside, the lines of metrics too: no other file has to be whole.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as in_bytes
from torch import Tensor

from trainer.adapter import save_adapter
from trainer.config import TrainConfig
from trainer.durable import read_json, write_bytes, write_json
from trainer.fence import Fence
from trainer.layout import CHECKPOINT_STATE, METRICS, RunFolder

logger = logging.getLogger(__name__)

TENSORS, HASHES = "optimizer.safetensors", "hashes.json"


@dataclass(frozen=True)
class State:
    """What a run is after `step` optimiser steps; everything random is a counter and needs no state.

    lora: masters by name. optimizer: Adam's moments, name.exp_avg and name.exp_avg_sq. totals: counts so
    far. best: the masters of least held-out KL, where a run stops early. metrics: the lines of metrics.jsonl.
    codes_sha256: hash of the base's codes. conditions: what exact resume depends on (torch, threads,
    processes …).
    """

    step: int
    lora: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    totals: Mapping[str, float]
    metrics: bytes
    codes_sha256: str
    conditions: Mapping[str, Any]
    best: Mapping[str, Tensor] = field(default_factory=dict)


def save(fence: Fence, folder: RunFolder, state: State, config: TrainConfig, digest: str) -> Path:
    """Publish checkpoint-<step>, then drop all but the newest `save_total_limit`."""
    path = folder.checkpoint(state.step)
    with fence.new_folder(path) as aside:
        save_adapter(state.lora, aside, config)
        tensors = {f"lora.{name}": tensor for name, tensor in state.lora.items()}
        tensors |= {f"adam.{name}": tensor for name, tensor in state.optimizer.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        # Not by safetensors' own writer: its errors carry no number, and it fsyncs nothing.
        write_bytes(aside / TENSORS, in_bytes(plain), aside)
        write_bytes(aside / METRICS, state.metrics, aside)
        about = {
            "v": 1,
            "step": state.step,
            "digest": digest,
            "codes_sha256": state.codes_sha256,
            "totals": dict(state.totals),
            "conditions": dict(state.conditions),
        }
        write_json(aside / CHECKPOINT_STATE, about, aside)
        hashes = {file.name: _sha256(file) for file in sorted(aside.iterdir())}
        write_json(aside / HASHES, hashes, aside)
    # Higher steps are damaged or abandoned ones: this run is here, and they must not push it out.
    kept = [old for old in folder.checkpoints() if int(old.name[11:]) <= state.step][
        : config.save_total_limit
    ]
    for old in folder.checkpoints():
        if old not in kept:
            fence.remove(old)
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
        if not isinstance(hashes, dict) or not {CHECKPOINT_STATE, TENSORS, METRICS} <= hashes.keys():
            return "no complete list of hashes"
        for name, expected in hashes.items():
            if _sha256(path / name) != expected:
                return f"a changed {name}"
        about = read_json(path / CHECKPOINT_STATE)
    except (OSError, ValueError) as error:
        return str(error)
    return None if about.get("digest") == digest else f"the config {about.get('digest')}"


def _load(path: Path) -> State:
    about = read_json(path / CHECKPOINT_STATE)
    tensors = load_file(path / TENSORS)
    return State(
        step=about["step"],
        lora={name[5:]: value for name, value in tensors.items() if name.startswith("lora.")},
        optimizer={name[5:]: value for name, value in tensors.items() if name.startswith("adam.")},
        totals=about["totals"],
        metrics=(path / METRICS).read_bytes(),
        codes_sha256=about["codes_sha256"],
        conditions=about["conditions"],
        best={name[5:]: value for name, value in tensors.items() if name.startswith("best.")},
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
