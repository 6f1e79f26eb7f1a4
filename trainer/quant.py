"""Q(W): how a weight is quantised and read back. The only importer of bitsandbytes.

`int4` is torchao's groupwise asymmetric rule, `int4_sym` what compressed-tensors holds exactly, `bnb_nf4` and
`bnb_fp4` are bitsandbytes' own. Sources: torchao `Int4WeightOnlyConfig`, compressed-tensors `pack-quantized`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

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
    """One quantised weight as a packed file would hold it; `weight` is what is computed with.

    shape, dtype: of the original. codes: int8 [out, in] in [-8, 7] for int4 types, packed uint8 for bnb
    types, the weight itself for `none`. scale: [out, groups] for int4 types (float32 or bfloat16), absmax for
    bnb. zero: [out, groups] for int4 alone.
    """

    quant_type: QuantType
    shape: torch.Size
    dtype: torch.dtype
    codes: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """Dequantised [out, in], made anew each time (but for `none`)."""
        if self.quant_type == "none" or self.scale is None:
            return self.codes
        if self.quant_type in ("bnb_nf4", "bnb_fp4"):
            return _bnb_dequantise(self.codes, self.scale, self.quant_type, self.shape, self.dtype)
        return dequantise(self.codes, self.scale, self.zero, self.dtype)


class Packed:
    """A weight that lies in memory as 4-bit codes and is dequantised each time it is read.

    Bit for bit the dense weight it stands for. A weight of quant type `none` is kept as it is.
    """

    def __init__(self, quantised: Quantised, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._quantised = quantised
        self._nibbles = quantised.quant_type in GROUPED
        if self._nibbles:
            self._quantised = replace(quantised, codes=pack_nibbles(quantised.codes))

    @property
    def weight(self) -> Tensor:
        """Dense [out, in], in the dtype given."""
        quantised = self._quantised
        if self._nibbles:
            quantised = replace(quantised, codes=unpack_nibbles(quantised.codes))
        return quantised.weight.to(self._dtype)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        parts = (self._quantised.codes, self._quantised.scale, self._quantised.zero)
        return sum(part.nbytes for part in parts if part is not None)


def pack_nibbles(codes: Tensor) -> Tensor:
    """uint8 [out, in / 2] of codes [out, in] in [-8, 7]: the even column in the low half, plus 8."""
    shifted = (codes + 8).to(torch.uint8)
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`, int8."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).to(torch.int8).sub_(8)


def quantise_weight(
    weight: Tensor,
    quant_type: QuantType,
    group_size: int = 128,
    qparams_dtype: Dtype = "bf16",
    clip: Tensor | None = None,
) -> Quantised:
    """Quantise a linear weight [out, in].

    `group_size`, `qparams_dtype` and `clip` matter to int4 and int4_sym alone. clip: share of each group's
    range that is kept, float32 [out, groups] in (0, 1]; what lies outside gets the nearest code. Raises
    ValueError when groups do not divide the width (see `check_divides`). Deterministic; CPU and GPU may
    differ in rare ties of bnb types.
    """
    weight = weight.detach()
    if quant_type == "none":
        return Quantised(quant_type, weight.shape, weight.dtype, weight)
    if quant_type in ("bnb_nf4", "bnb_fp4"):
        return Quantised(quant_type, weight.shape, weight.dtype, *_bnb(weight, quant_type))
    if weight.shape[1] % group_size:
        raise ValueError(_does_not_divide("weight", weight.shape[1], group_size, weight.shape[1]))
    groups = weight.float().unflatten(1, (-1, group_size))
    rule = _int4_sym if quant_type == "int4_sym" else _int4
    kept = 1.0 if clip is None else clip.unsqueeze(-1)
    codes, scale, zero = rule(groups, DTYPES[qparams_dtype], kept)
    return Quantised(
        quant_type=quant_type,
        shape=weight.shape,
        dtype=weight.dtype,
        codes=codes.flatten(1),
        scale=scale.squeeze(-1),
        zero=None if zero is None else zero.squeeze(-1),
    )


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that int4 codes [out, in] stand for; scale and zero are [out, groups]."""
    # Codes times a bf16 scale are exact in float32, so this is the kernels' fused multiply-add: one rounding.
    values = codes.unflatten(1, (scale.shape[1], -1)).float().mul_(scale.float().unsqueeze(-1))
    if zero is not None:
        values.add_(zero.float().unsqueeze(-1))
    return values.flatten(1).to(dtype)


def _int4(groups: Tensor, qparams: torch.dtype, clip: Tensor | float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes in [-8, 7] by float32 statistics; scale and zero point are rounded after the codes are fixed."""
    low, high = groups.amin(-1, keepdim=True) * clip, groups.amax(-1, keepdim=True) * clip
    scale = (high - low).clamp(min=1e-6) / 15
    codes = groups.sub(low).div_(scale).round_().clamp_(0, 15).sub_(8)
    return codes.to(torch.int8), scale.to(qparams), (low + 8 * scale).to(qparams)


def _int4_sym(
    groups: Tensor, qparams: torch.dtype, clip: Tensor | float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes in [-8, 7] by the stored scale amax / 7.5, no zero point."""
    scale = ((groups.abs().amax(-1, keepdim=True) * clip).clamp(min=1e-6) / 7.5).to(qparams)
    return groups.div(scale.float()).round_().clamp_(-8, 7).to(torch.int8), scale, None


def _bnb(weight: Tensor, quant_type: QuantType) -> tuple[Tensor, Tensor]:
    """Codes and absmax by bitsandbytes' own rule, block 64, absmax in float32 (no double quantisation)."""
    # Costs about 10 s of CPU per process, so only the runs that need it pay.
    import bitsandbytes.functional as bnb

    kind = quant_type.removeprefix("bnb_")
    codes, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BNB_BLOCK, quant_type=kind)
    return codes, state.absmax


def _bnb_dequantise(
    codes: Tensor, absmax: Tensor, quant_type: QuantType, shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    import bitsandbytes.functional as bnb

    kind = quant_type.removeprefix("bnb_")
    state = bnb.QuantState(absmax=absmax, shape=shape, dtype=dtype, blocksize=BNB_BLOCK, quant_type=kind)
    weight: Tensor = bnb.dequantize_4bit(codes, state)
    return weight


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
        """Take in one layer; the order of layers counts."""
        self._sha256.update(layer.encode() + b"\0")
        for part in (quantised.codes, quantised.scale, quantised.zero):
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
