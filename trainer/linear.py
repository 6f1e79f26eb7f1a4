"""The linear that is teacher and student at once: one W, and Q(W) with LoRA outside or inside of Q."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.config import LoraOrder
from trainer.quant import Packed

Mode = Literal["teacher", "ptq", "student", "merged", "rollout"]
Held = Tensor | Packed
"""A weight as it lies in memory: dense, or as codes."""


@dataclass
class Switch:
    """Which function all linears of one model compute; shared by them."""

    mode: Mode = "student"
    order: LoraOrder = "outside"


class DualLinear(nn.Module):
    """A frozen linear that reads W as the teacher and Q(W) in every other mode (the output head).

    clip: see `quantise_weight`.
    """

    def __init__(self, linear: nn.Linear, quantised: Held, switch: Switch, clip: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.switch, self.quantised, self.clip = switch, quantised, clip

    @property
    def base(self) -> Tensor:
        """Q(W) [out, in], dense; made anew at each reading when it is packed."""
        return dense(self.quantised)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight if self.switch.mode == "teacher" else self.base, self.bias)


class LoraLinear(DualLinear):
    """A linear in five modes over one W.

    The student is Q(W)x + s·B(Ax) with LoRA outside the quantiser, and Q(W + s·BA)x inside. weight: W, the
    teacher's own parameter, frozen. quantised: Q(W). lora_A [r, in] and lora_B [out, r]: float32 masters,
    computed with in W's dtype. made: the weight of `merged` and `rollout` (and of the student inside), which
    `Student` fills. Only x is kept for the backward pass, once for all its readers.
    """

    def __init__(
        self, linear: nn.Linear, quantised: Held, switch: Switch, clip: Tensor | None, r: int, scale: float
    ) -> None:
        super().__init__(linear, quantised, switch, clip)
        self.scale = scale
        device = linear.weight.device
        self.lora_A = nn.Parameter(torch.zeros(r, self.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, r, dtype=torch.float32, device=device))
        self.made: Held | None = None
        self.made_key: tuple[object, ...] | None = None

    def initialise(self, seed: int, name: str) -> None:
        """A by Kaiming's uniform rule (as PEFT), drawn from (seed, name) alone; B zero."""
        key = hashlib.sha256(f"lora_A/{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
        bound = 1 / math.sqrt(self.in_features)
        drawn = torch.empty(self.lora_A.shape, dtype=torch.float32).uniform_(
            -bound, bound, generator=generator
        )
        with torch.no_grad():
            self.lora_A.copy_(drawn)
            self.lora_B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        match self.switch.mode:
            case "teacher":
                return F.linear(x, self.weight, self.bias)
            case "ptq":
                return F.linear(x, self.base, self.bias)
            case "student":
                out = self._outside(x.flatten(0, -2)) if self.switch.order == "outside" else self._inside(x)
                return out.unflatten(0, x.shape[:-1])
            case "merged" | "rollout":
                return F.linear(x, dense(self.filled()), self.bias)

    def _outside(self, rows: Tensor) -> Tensor:
        low_rank = F.linear(rows, self.lora_A.to(rows.dtype))
        if isinstance(self.quantised, Packed):
            frozen: Tensor = _PackedLinear.apply(rows, self.quantised, self.bias)
        else:
            frozen = F.linear(rows, self.quantised, self.bias)
        # One GEMM adds s·B(Ax) to Q(W)x as it is made: no tensor of the output's size but the output.
        return torch.addmm(frozen, low_rank, self.lora_B.to(rows.dtype).T, alpha=self.scale)

    def _inside(self, x: Tensor) -> Tensor:
        out: Tensor = _StraightThrough.apply(
            x.flatten(0, -2), self.lora_A, self.lora_B, self.filled(), self.bias, self.scale
        )
        return out

    def filled(self) -> Held:
        """The weight of `merged` and `rollout`, and of the student inside the quantiser."""
        if self.made is None:
            raise RuntimeError("merged weights are filled by Student.mode, which was not entered")
        return self.made

    @torch.no_grad()
    def plus_delta(self, weight: Tensor) -> Tensor:
        """weight + s·B·A in float32."""
        return torch.addmm(weight.float(), self.lora_B, self.lora_A, alpha=self.scale)


def dense(weight: Held) -> Tensor:
    """A weight as it is computed with."""
    return weight.weight if isinstance(weight, Packed) else weight


class _PackedLinear(torch.autograd.Function):
    """x Wᵀ for a frozen packed W: backward dequantises again, so that no dense weight waits for it."""

    @staticmethod
    def forward(ctx: Any, rows_NI: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return F.linear(rows_NI, packed.weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        return (grad_NO @ ctx.packed.weight if ctx.needs_input_grad[0] else None), None, None


class _StraightThrough(torch.autograd.Function):
    """Q(W + s·BA)x, differentiated as if Q were the identity (straight through; LR-QAT, arXiv 2406.06385).

    d(W + s·BA) = s(dB·A + B·dA), so the gradients of A and B are those of plain LoRA at x and at the output's
    gradient; no gradient of W's size is ever made. The gradient of x is exact.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows_NI: Tensor,
        lora_A: Tensor,
        lora_B: Tensor,
        merged: Held,
        bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(rows_NI, lora_A, lora_B)
        ctx.merged, ctx.scale = merged, scale
        return F.linear(rows_NI, dense(merged), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        rows_NI, lora_A, lora_B = ctx.saved_tensors
        grad_NI = grad_NO @ dense(ctx.merged) if ctx.needs_input_grad[0] else None
        low_NR = F.linear(rows_NI, lora_A.to(rows_NI.dtype))
        grad_low_NR = grad_NO @ lora_B.to(grad_NO.dtype)
        grad_A = (grad_low_NR.T @ rows_NI).float().mul_(ctx.scale)
        grad_B = (grad_NO.T @ low_NR).float().mul_(ctx.scale)
        return grad_NI, grad_A, grad_B, None, None, None
