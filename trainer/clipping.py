"""Where a group's range is cut before it is quantised: `--ptq-init mse`.

A wide range spends its sixteen codes on outliers. Each group keeps the share of its range that gives the
least squared error of its weights; GPTQ's search (`Quantizer(mse=True)`, norm 2) on both ends alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.config import ModelSettings
from trainer.quant import GROUPED, quantise_weight

SHARES = tuple(1 - step / 40 for step in range(20))
"""Shares tried, from the whole range down to 0.525 of it; ties go to the widest."""
BLOCK_WEIGHTS = {"cpu": 2**17, "cuda": 2**25}
"""Weights worked on at a time: the float32 copies of a block stay in a CPU's cache."""


def clip_for(weight: Tensor, settings: ModelSettings) -> Tensor | None:
    """The share of each group's range to keep, float32 [out, groups]; None where nothing is cut (`rtn`)."""
    if settings.ptq_init == "rtn" or settings.quant_type not in GROUPED:
        return None
    rows = max(1, BLOCK_WEIGHTS[weight.device.type] // weight.shape[1])
    return torch.cat([_least_error(block, settings) for block in weight.detach().split(rows)])


def _least_error(weight: Tensor, settings: ModelSettings) -> Tensor:
    """`clip_for` some rows; the error is that of the dequantised weight, its scale as it is stored."""
    wanted = weight.float()
    best = torch.ones(len(weight), weight.shape[1] // settings.group_size, device=weight.device)
    least = torch.full_like(best, torch.inf)
    for share in SHARES:
        clip = torch.full_like(best, share)
        found = quantise_weight(
            wanted, settings.quant_type, settings.group_size, settings.qparams_dtype, clip
        ).weight
        error = found.sub_(wanted).square_().unflatten(1, (-1, settings.group_size)).sum(-1)
        better = error < least
        best, least = torch.where(better, clip, best), torch.where(better, error, least)
    return best
