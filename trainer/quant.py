"""Q(W): how the student's frozen base is quantised, once. The only importer of bitsandbytes.

`int4` is torchao's groupwise asymmetric rule, `int4_sym` what compressed-tensors holds exactly, `bnb_nf4` and
`bnb_fp4` are bitsandbytes' own. Sources: torchao `Int4WeightOnlyConfig`, compressed-tensors `pack-quantized`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.config import Dtype, QuantType

DTYPES: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
GROUPED: tuple[QuantType, ...] = ("int4", "int4_sym")
"""The types whose groups must divide a layer's width."""
BNB_BLOCK = 64
"""Weights sharing one absmax in the bnb types, bitsandbytes' default."""
SMALLEST_GROUP = 8
"""As in trainer.config: what check_divides proposes at least."""


@dataclass(frozen=True)
class Quantised:
    """One quantised weight: what is computed with, and what a packed file holds.

    weight: dequantised, shape and dtype of the original. codes: int8 [out, in] for int4 types, packed uint8
    for bnb types, None for `none`. scale: [out, groups] for int4 types (float32 or bfloat16), absmax for bnb.
    zero: [out, groups] for int4 alone.
    """

    weight: Tensor
    codes: Tensor | None = None
    scale: Tensor | None = None
    zero: Tensor | None = None


def quantise_weight(
    weight: Tensor, quant_type: QuantType, group_size: int = 128, qparams_dtype: Dtype = "bf16"
) -> Quantised:
    """Quantise a linear weight [out, in] and give it back dequantised, in its own dtype.

    `group_size` and `qparams_dtype` matter to int4 and int4_sym alone. Raises ValueError when groups do not
    divide the width (see `check_divides`). Deterministic; CPU and GPU may differ in rare ties of bnb types.
    """
    weight = weight.detach()
    if quant_type == "none":
        return Quantised(weight)
    if quant_type in ("bnb_nf4", "bnb_fp4"):
        return _bnb(weight, quant_type.removeprefix("bnb_"))
    if weight.shape[1] % group_size:
        raise ValueError(_does_not_divide("weight", weight.shape[1], group_size, weight.shape[1]))
    groups = weight.float().unflatten(1, (-1, group_size))
    rule = _int4_sym if quant_type == "int4_sym" else _int4
    codes, scale, zero = rule(groups, DTYPES[qparams_dtype])
    # Codes times a bf16 scale are exact in float32, so this is the kernels' fused multiply-add: one rounding.
    values = codes.float() * scale.float()
    if zero is not None:
        values += zero.float()
    return Quantised(
        weight=values.flatten(1).to(weight.dtype),
        codes=codes.flatten(1),
        scale=scale.squeeze(-1),
        zero=None if zero is None else zero.squeeze(-1),
    )


def _int4(groups: Tensor, qparams: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes in [-8, 7] by float32 statistics; scale and zero point are rounded after the codes are fixed."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-6) / 15
    codes = torch.round((groups - low) / scale).clamp(0, 15) - 8
    return codes.to(torch.int8), scale.to(qparams), (low + 8 * scale).to(qparams)


def _int4_sym(groups: Tensor, qparams: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes in [-8, 7] by the stored scale amax / 7.5, no zero point."""
    scale = (groups.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 7.5).to(qparams)
    return torch.round(groups / scale.float()).clamp(-8, 7).to(torch.int8), scale, None


def _bnb(weight: Tensor, kind: str) -> Quantised:
    """bitsandbytes' own quantise and dequantise, block 64, absmax in float32 (no double quantisation)."""
    # Costs about 10 s of CPU per process, so only the runs that need it pay.
    import bitsandbytes.functional as bnb

    codes, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BNB_BLOCK, quant_type=kind)
    dequantised = bnb.dequantize_4bit(codes, state)
    return Quantised(dequantised.to(weight.dtype).view_as(weight), codes, state.absmax)


def quantised_linears(model: nn.Module, lm_head: bool = False) -> dict[str, nn.Linear]:
    """The linears of `model` that quantisation replaces, by name: all but the output head unless asked."""
    heads = {id(getattr(model, "get_output_embeddings", lambda: None)())}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (lm_head or id(module) not in heads)
    }


def check_divides(model: nn.Module, group_size: int, lm_head: bool = False) -> None:
    """Raise ValueError, naming layers and the sizes that work, unless `group_size` divides every width."""
    linears = quantised_linears(model, lm_head)
    faults: dict[int, str] = {}
    for name, linear in linears.items():
        if linear.in_features % group_size:
            faults.setdefault(linear.in_features, name)
    if faults:
        common = math.gcd(*(linear.in_features for linear in linears.values()))
        raise ValueError(
            "\n".join(_does_not_divide(name, width, group_size, common) for width, name in faults.items())
        )


def _does_not_divide(layer: str, width: int, group_size: int, common: int) -> str:
    works = [str(size) for size in range(SMALLEST_GROUP, common + 1) if common % size == 0]
    advice = f"choose one of {', '.join(works)}" if works else "choose another quant_type"
    return f"group_size: must divide the width {width} of {layer}, got {group_size}; {advice}"


class CodesHash:
    """SHA-256 over layer names, codes, scales and zero points: which base an adapter belongs to."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, layer: str, quantised: Quantised) -> None:
        """Take in one layer; the order of layers counts. Without codes the weight itself is hashed."""
        self._sha256.update(layer.encode() + b"\0")
        parts = (quantised.codes, quantised.scale, quantised.zero)
        for part in parts if quantised.codes is not None else (quantised.weight,):
            if part is not None:
                data = part.detach().cpu().contiguous().flatten().view(torch.uint8)
                self._sha256.update(data.numpy().data)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def codes_hash(layers: dict[str, Quantised]) -> str:
    """`CodesHash` of all layers at once."""
    accumulated = CodesHash()
    for name, quantised in layers.items():
        accumulated.add(name, quantised)
    return accumulated.hexdigest()
