"""Students for tests: their settings, an adapter that does something, and what they compute in a mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.linear import Mode
from trainer.student import Student


def small_config(**fields: Any) -> TrainConfig:
    return TrainConfig(**{"group_size": 32, "lora_r": 4, "mixed_precision": "fp32", **fields})


def perturb(student: Student, seed: int = 7) -> Student:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.lora_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return student


@torch.no_grad()
def logits_of(student: Student, ids_BT: Tensor, mode: Mode) -> Tensor:
    with student.mode(mode):
        logits: Tensor = student.model(ids_BT).logits
    return logits
