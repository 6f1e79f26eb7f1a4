"""Generalised Jensen-Shannon divergence between teacher and student, from logits or fused with the heads.

With P = teacher and S = student, both softmax(logits / temperature) over the whole vocabulary, and
M = βP + (1 - β)S: JSD_β = β KL(P‖M) + (1 - β) KL(S‖M), except that β = 0 is the forward KL(P‖S) and β = 1 the
reverse KL(S‖P) (arXiv 2306.13649; orientation as in TRL's GKDTrainer). JSD_β goes to 0 as β does, so losses
of different β are on different scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.jsd import JsdKernel, chunk_rows_of, jsd_and_grad_, project, pull_back

ChunkLoss = Callable[[slice, Tensor], Tensor]
"""(rows, the student's logits of these) → losses [rows] in nats, their gradient left in the logits' place."""
_FROZEN = "loss: the heads must be frozen, got a head that requires a gradient; call requires_grad_(False)"


def generalized_jsd(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, beta: float, temperature: float = 1.0
) -> Tensor:
    """Divergence of each row in nats, float32 or wider: the readable twin of `fused_jsd`.

    Shapes: logits [rows, vocabulary]; result [rows]. Differentiable with respect to both logits.
    Raises ValueError for unequal vocabularies, a beta outside [0, 1] or a temperature that is not positive.
    """
    _check(teacher_logits_NV.shape[-1], student_logits_NV.shape[-1], beta, temperature)
    dtype = torch.promote_types(student_logits_NV.dtype, torch.float32)
    log_s_NV = torch.log_softmax(student_logits_NV.to(dtype) / temperature, dim=-1)
    log_p_NV = torch.log_softmax(teacher_logits_NV.to(dtype) / temperature, dim=-1)
    if beta == 0:
        return _kl(log_p_NV, log_s_NV)
    if beta == 1:
        return _kl(log_s_NV, log_p_NV)
    log_m_NV = torch.logaddexp(log_p_NV + math.log(beta), log_s_NV + math.log1p(-beta))
    return beta * _kl(log_p_NV, log_m_NV) + (1 - beta) * _kl(log_s_NV, log_m_NV)


def fused_jsd(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    teacher_hidden_NH: Tensor,
    teacher_head_VH: Tensor,
    beta: float,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
    kernel: JsdKernel = jsd_and_grad_,
) -> Tensor:
    """Sum over rows of `generalized_jsd` of the two heads' logits, in nats, without the logits of all rows.

    Shapes: hidden [rows, width], head [vocabulary, width]; the widths of teacher and student may differ.
    Result: a float32 scalar, the sum (the caller divides by the step's completion tokens), differentiable
    with respect to `student_hidden_NH` alone, once. Give it completion rows only: every row counts.
    `chunk_rows` rows of both models' logits are alive at a time (default: `chunk_rows_of`), and `kernel`
    turns them into losses and gradient in place. So the work is 6·N·H·V floating-point operations: two
    projections and one gradient GEMM, which is what the unchunked way needs with frozen heads.
    Raises ValueError as `generalized_jsd`, and for a head that requires a gradient.
    """
    _check(len(teacher_head_VH), len(student_head_VH), beta, temperature)
    if teacher_head_VH.requires_grad:
        raise ValueError(_FROZEN)
    if len(student_hidden_NH) != len(teacher_hidden_NH):
        raise ValueError(
            f"loss: teacher and student must have the same rows, got {len(teacher_hidden_NH)} and "
            f"{len(student_hidden_NH)}; select the same positions from both"
        )
    teacher_NH, teacher_CV = teacher_hidden_NH.detach(), None

    def of_chunk(rows: slice, student_CV: Tensor) -> Tensor:
        nonlocal teacher_CV
        teacher_CV = project(teacher_NH[rows], teacher_head_VH, teacher_CV)
        return kernel(student_CV, teacher_CV, beta, temperature)

    return fused(student_hidden_NH, student_head_VH, of_chunk, chunk_rows)


def fused(
    student_hidden_NH: Tensor, student_head_VH: Tensor, of_chunk: ChunkLoss, chunk_rows: int | None = None
) -> Tensor:
    """Sum over rows of any loss of the student's logits, made chunk by chunk; see `fused_jsd`."""
    if student_head_VH.requires_grad:
        raise ValueError(_FROZEN)
    loss: Tensor = _Fused.apply(
        student_hidden_NH,
        student_head_VH,
        of_chunk,
        chunk_rows or chunk_rows_of(student_head_VH),
        # Inside forward gradients are always off, so it cannot see for itself.
        torch.is_grad_enabled() and student_hidden_NH.requires_grad,
    )
    return loss


class _Fused(torch.autograd.Function):
    """Forward makes loss and gradient together, so that backward is one multiplication."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden_NH: Tensor,
        student_head_VH: Tensor,
        of_chunk: ChunkLoss,
        chunk_rows: int,
        want_grad: bool,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=student_hidden_NH.device)
        grad_NH = torch.empty_like(student_hidden_NH) if want_grad else None
        student_CV = None
        for start in range(0, len(student_hidden_NH), chunk_rows):
            rows = slice(start, start + chunk_rows)
            # Over the logits of the chunk before: fresh memory of this size costs page faults.
            student_CV = project(student_hidden_NH[rows], student_head_VH, student_CV)
            total += of_chunk(rows, student_CV).sum(dtype=torch.float64)
            if grad_NH is not None:
                pull_back(student_CV, student_head_VH, grad_NH[rows])
        if grad_NH is not None:
            ctx.save_for_backward(grad_NH)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NH,) = ctx.saved_tensors
        return (grad_NH * grad_output.to(grad_NH.dtype), *[None] * 4)


def _kl(log_a_NV: Tensor, log_b_NV: Tensor) -> Tensor:
    """KL(a‖b) of each row, from log-probabilities."""
    return (log_a_NV.exp() * (log_a_NV - log_b_NV)).sum(-1)


def _check(teacher_vocabulary: int, vocabulary: int, beta: float, temperature: float) -> None:
    if teacher_vocabulary != vocabulary:
        raise ValueError(
            f"loss: teacher and student must share one vocabulary, got {teacher_vocabulary} and {vocabulary} "
            "entries; distil from a teacher with the student's tokenizer and head size"
        )
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: must lie in [0, 1], got {beta}; 0 is forward KL, 1 reverse KL")
    if not temperature > 0:
        raise ValueError(f"loss_temperature: must be positive, got {temperature}; 1 is the usual value")
