"""The share of a group's range that mse keeps, against a search written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.clipping import SHARES, clip_for
from trainer.config import ModelSettings, QuantType
from trainer.quant import quantise_weight


def _weight(rows: int = 12, columns: int = 96, seed: int = 5) -> torch.Tensor:
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return drawn * drawn.abs()  # heavy tails: ranges worth cutting


def _error(group: np.ndarray, share: float, quant_type: str) -> float:
    """Squared error of one group, the rule written out (scales in float32)."""
    group = group.astype(np.float32)
    if quant_type == "int4":
        low, high = group.min() * np.float32(share), group.max() * np.float32(share)
        scale = np.float32(high - low) / np.float32(15)
        codes = np.clip(np.round((group - low) / scale), 0, 15)
        found = codes * scale + low
    else:
        scale = np.abs(group).max() * np.float32(share) / np.float32(7.5)
        found = np.clip(np.round(group / scale), -8, 7) * scale
    return float(np.square((found - group).astype(np.float64)).sum())


@pytest.mark.parametrize("quant_type", ["int4", "int4_sym"])
def test_each_group_keeps_the_share_of_least_error(quant_type: QuantType) -> None:
    weight = _weight()
    settings = ModelSettings(quant_type=quant_type, group_size=32, qparams_dtype="fp32", ptq_init="mse")
    clip = clip_for(weight, settings)
    assert clip is not None
    assert clip.shape == (12, 3)
    groups = weight.numpy().reshape(12, 3, 32)
    for row in range(12):
        for group in range(3):
            errors = {share: _error(groups[row, group], share, quant_type) for share in SHARES}
            chosen = min(SHARES, key=lambda share: abs(share - float(clip[row, group])))
            assert errors[chosen] <= min(errors.values()) * 1.0001
    assert len(set(clip.flatten().tolist())) > 3


@pytest.mark.parametrize("quant_type", ["int4", "int4_sym"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cut_base_is_nearer_to_w(quant_type: QuantType, dtype: torch.dtype) -> None:
    weight = _weight(64, 256).to(dtype)
    settings = ModelSettings(quant_type=quant_type, group_size=64, ptq_init="mse")
    whole = quantise_weight(weight, quant_type, 64).weight
    cut = quantise_weight(weight, quant_type, 64, clip=clip_for(weight, settings)).weight
    groups = [(found - weight).float().square().unflatten(1, (-1, 64)).sum(-1) for found in (whole, cut)]
    # The search looks at float32 values; bf16 rounds both alike, so a tie may turn over by that much.
    assert (groups[1] <= groups[0] * 1.02).all()
    assert groups[1].sum() < 0.97 * groups[0].sum()


def test_a_whole_range_is_kept_where_cutting_only_hurts() -> None:
    # Sixteen equal steps: every code is met exactly.
    weight = torch.arange(16.0).repeat(2, 2)
    settings = ModelSettings(group_size=16, ptq_init="mse", qparams_dtype="fp32")
    clip = clip_for(weight, settings)
    assert clip is not None
    assert torch.equal(clip, torch.ones(2, 2))


def test_nothing_is_cut_unless_asked() -> None:
    assert clip_for(_weight(), ModelSettings(group_size=32)) is None


def test_mse_is_refused_where_no_range_can_be_chosen() -> None:
    with pytest.raises(ValueError, match="quant_type is bnb_nf4"):
        ModelSettings(quant_type="bnb_nf4", ptq_init="mse")
