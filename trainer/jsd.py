"""What the fused loss does with one chunk of rows: project, loss and gradient in place, pull back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

JsdKernel = Callable[[Tensor, Tensor, float, float], Tensor]
"""(student logits [rows, vocabulary], teacher logits, beta, temperature) → losses [rows] in nats, float32.

The gradient of each row's loss in its student logits is left in their place and dtype.
"""

CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 28}
"""One model's logits of a chunk in float32: enough rows for a fast GEMM, little beside the model."""
MIN_ROWS = 64
BLOCK_ELEMENTS = 1 << 18
"""The elementwise passes go over so many logits at a time, which stay in the cache between passes."""
SLICE_ENTRIES = 8192
"""Entries of a bf16 head that are widened at a time."""
TINY = torch.finfo(torch.float32).tiny


def chunk_rows_of(head_VH: Tensor) -> int:
    """Rows of logits alive at a time for a vocabulary, at least 64 (fewer make slow GEMMs)."""
    limit = CHUNK_BYTES.get(head_VH.device.type, CHUNK_BYTES["cuda"])
    return max(MIN_ROWS, limit // (4 * len(head_VH)) // MIN_ROWS * MIN_ROWS)


def project(hidden_CH: Tensor, head_VH: Tensor, buffer_CV: Tensor | None = None) -> Tensor:
    """Logits [rows, vocabulary], in `buffer_CV` (of as many rows or more) where one is given.

    They have the model's dtype; on a CPU without bf16 arithmetic bf16 models get float32 logits.
    """
    rows, wide = len(hidden_CH), _widened(head_VH)
    if buffer_CV is None:
        dtype = torch.float32 if wide else head_VH.dtype
        buffer_CV = torch.empty(rows, len(head_VH), dtype=dtype, device=head_VH.device)
    logits_CV = buffer_CV[:rows]
    if not wide:
        return torch.mm(hidden_CH, head_VH.T, out=logits_CV)
    hidden_CH = hidden_CH.float()
    for part in _slices(head_VH):
        torch.mm(hidden_CH, head_VH[part].float().T, out=logits_CV[:, part])
    return logits_CV


def pull_back(grad_CV: Tensor, head_VH: Tensor, out_CH: Tensor) -> None:
    """The gradient in the hidden states, grad · head, written to `out_CH`."""
    if not _widened(head_VH):
        torch.mm(grad_CV, head_VH, out=out_CH)
        return
    sum_CH = torch.zeros(out_CH.shape, dtype=torch.float32)
    for part in _slices(head_VH):
        sum_CH.addmm_(grad_CV[:, part], head_VH[part].float())
    out_CH.copy_(sum_CH)


def jsd_and_grad_(student_CV: Tensor, teacher_CV: Tensor, beta: float, temperature: float) -> Tensor:
    """The JsdKernel in torch; everything in float32.

    With D = log S - log P (reverse) or log S - log M (between), the gradient in the student's logits is
    S·(D - Σ S·D) / temperature, times 1 - β between; for forward KL it is (S - P) / temperature.
    """
    rows, vocabulary = student_CV.shape
    losses_C = torch.empty(rows, dtype=torch.float32, device=student_CV.device)
    on_cpu = student_CV.device.type == "cpu"
    size = max(1, BLOCK_ELEMENTS // vocabulary) if on_cpu else max(1, rows)
    scratch = torch.empty(5, min(size, rows), vocabulary, dtype=torch.float32, device=student_CV.device)
    for start in range(0, rows, size):
        block = slice(start, start + size)
        student_RV, teacher_RV = student_CV[block], teacher_CV[block]
        grad_RV, factor = _block(
            student_RV, teacher_RV, beta, temperature, scratch[:, : len(student_RV)], losses_C[block]
        )
        if student_RV.dtype == torch.float32:
            torch.mul(grad_RV, factor, out=student_RV)
        else:
            student_RV.copy_(grad_RV.mul_(factor))
    return losses_C


def _block(
    student_RV: Tensor, teacher_RV: Tensor, beta: float, temperature: float, scratch: Tensor, losses_R: Tensor
) -> tuple[Tensor, float]:
    """Writes the losses; returns (gradient without its factor, the factor)."""
    log_s, log_p, s, p, log_m = scratch
    _log_softmax(student_RV, temperature, s, out=log_s)
    _log_softmax(teacher_RV, temperature, s, out=log_p)
    torch.exp(log_s, out=s)
    if beta == 1:
        weighted = log_s.sub_(log_p).mul_(s)
        torch.sum(weighted, -1, out=losses_R)
        return weighted.addcmul_(s, losses_R[:, None], value=-1), 1 / temperature
    torch.exp(log_p, out=p)
    if beta == 0:
        torch.sum(log_p.sub_(log_s).mul_(p), -1, out=losses_R)
        return s.sub_(p), 1 / temperature
    # Of probabilities: an M that underflows belongs to an S and a P that do, and so counts for nothing.
    torch.lerp(s, p, beta, out=log_m).clamp_(min=TINY).log_()
    kl_p = log_p.sub_(log_m).mul_(p).sum(-1)
    weighted = log_s.sub_(log_m).mul_(s)
    kl_s = weighted.sum(-1)
    torch.add(beta * kl_p, kl_s, alpha=1 - beta, out=losses_R)
    return weighted.addcmul_(s, kl_s[:, None], value=-1), (1 - beta) / temperature


def _log_softmax(logits_RV: Tensor, temperature: float, scratch_RV: Tensor, out: Tensor) -> None:
    if logits_RV.dtype != torch.float32 or temperature != 1:
        logits_RV = scratch_RV.copy_(logits_RV).div_(temperature)
    torch.log_softmax(logits_RV, -1, out=out)


def _widened(head_VH: Tensor) -> bool:
    """Whether products are made in float32 of bf16 weights: without bf16 units a CPU is faster so."""
    return (
        head_VH.dtype == torch.bfloat16
        and head_VH.device.type == "cpu"
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _slices(head_VH: Tensor) -> Iterator[slice]:
    return (slice(start, start + SLICE_ENTRIES) for start in range(0, len(head_VH), SLICE_ENTRIES))
