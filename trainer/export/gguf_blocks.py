"""int4 groups as GGML blocks: the codes as they are, scale and offset in fp16.

Q4_1 is y = d·q + m for q in 0..15, Q4_0 is y = d·(q - 8), both for 32 weights; a group is several equal
blocks. With codes c = q - 8: int4's s·c + z is d = s, m = z - 8s; int4_sym's s·c is Q4_0 with d = s, half a
bit a weight less than Q4_1 and as exact. Source: ggml, `block_q4_0`, `block_q4_1`.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from trainer.export.rules import GGML_BLOCK
from trainer.quant import Quantised

Array = np.ndarray
HALF_ULP = 2.0**-11
"""Largest relative rounding error of fp16; below 2^-14 it is absolute, at most TINY."""
TINY = 2.0**-25


def to_blocks(quantised: Quantised) -> tuple[Array, Type]:
    """(uint8 [out, bytes], block type) of an int4 or int4_sym weight whose groups are whole blocks."""
    assert quantised.codes is not None
    assert quantised.scale is not None
    out, width = quantised.codes.shape
    nibbles = (quantised.codes.cpu().numpy() + 8).astype(np.uint8).reshape(out, -1, 2, GGML_BLOCK // 2)
    packed = nibbles[:, :, 0] | nibbles[:, :, 1] << 4
    repeats = width // GGML_BLOCK // quantised.scale.shape[1]
    numbers = [_half(quantised.scale, repeats)]
    if quantised.zero is not None:
        numbers.append(_half(quantised.zero.float() - 8 * quantised.scale.float(), repeats))
    blocks = np.concatenate([*numbers, packed], axis=-1)
    return np.ascontiguousarray(blocks.reshape(out, -1)), Type.Q4_0 if quantised.zero is None else Type.Q4_1


def _half(values: Tensor, repeats: int) -> Array:
    """fp16 bytes [out, blocks, 2] of one number a group."""
    halves = np.repeat(values.float().cpu().numpy().astype(np.float16), repeats, axis=1)
    return halves[..., None].view(np.uint8)


def plain(tensor: Tensor) -> tuple[Array, Type]:
    """A tensor that is not quantised, exact: float32, or for matrices bf16 where that loses nothing."""
    values = tensor.detach().float().cpu()
    if values.dim() > 1 and torch.equal(values.bfloat16().float(), values):
        return values.bfloat16().view(torch.uint8).numpy(), Type.BF16
    return values.numpy(), Type.F32


def dequantise(data: Array, kind: Type) -> Tensor:
    """The float32 values of stored data, by gguf's own rule."""
    return torch.from_numpy(np.array(gguf.dequantize(data, kind), dtype=np.float32))


def offset_error(found: Tensor, quantised: Quantised) -> tuple[float, bool]:
    """(largest error in steps, whether every error is what fp16 must lose) of a dequantised weight.

    An error in steps is the difference to s·c + z in float32, over s. Groups without a spread have no step.
    """
    assert quantised.codes is not None
    assert quantised.scale is not None
    scale = quantised.scale.float().cpu()[..., None]
    codes = quantised.codes.float().cpu().unflatten(1, (scale.shape[1], -1))
    zero = torch.zeros_like(scale) if quantised.zero is None else quantised.zero.float().cpu()[..., None]
    wanted = codes * scale + zero
    error = (found.view_as(wanted) - wanted).abs()
    offset = zero - 8 * scale
    # The last term: float32's own rounding of sums of numbers of that size.
    bound = HALF_ULP * (offset.abs() + 15 * scale) * (offset != 0) + 16 * TINY + 2.0**-22 * offset.abs()
    bound += 16 * HALF_ULP * scale * (scale < 2.0**-14)
    steps = torch.where(scale > 1e-6, error / scale, torch.zeros_like(error))
    return float(steps.max()), bool((error <= bound).all())
