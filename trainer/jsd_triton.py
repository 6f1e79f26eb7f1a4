"""The JsdKernel in Triton: one row a program, float32 inside, the gradient over the student's logits.

Triton comes with torch's CUDA build alone, so nothing else imports this module at its top.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

BLOCK, WARPS = 4096, 8
FORWARD, REVERSE, BETWEEN = 0, 1, 2


@triton.jit
def jsd_kernel(  # type: ignore[no-untyped-def]
    student_ptr,
    teacher_ptr,
    loss_ptr,
    vocabulary,
    student_stride,
    teacher_stride,
    beta,
    per_temperature,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Passes over the row: the two softmaxes' maxima and sums; KL(S‖P) or KL(S‖M); gradient and loss.

    The maxima are kept apart from the sums' logarithms: logits and maxima may be large, their difference is
    not, and so D is as exact as it can be. Forward KL needs no second pass.
    """
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * student_stride
    teacher_ptr += row * teacher_stride
    s_max = -float("inf")
    p_max = -float("inf")
    s_sum = 0.0
    p_sum = 0.0
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < vocabulary
        x = tl.load(student_ptr + at, mask=inside, other=-float("inf")).to(tl.float32) * per_temperature
        y = tl.load(teacher_ptr + at, mask=inside, other=-float("inf")).to(tl.float32) * per_temperature
        s_new = tl.maximum(s_max, tl.max(x, axis=0))
        p_new = tl.maximum(p_max, tl.max(y, axis=0))
        s_sum = s_sum * tl.exp(s_max - s_new) + tl.sum(tl.exp(x - s_new), axis=0)
        p_sum = p_sum * tl.exp(p_max - p_new) + tl.sum(tl.exp(y - p_new), axis=0)
        s_max = s_new
        p_max = p_new
    s_log = tl.log(s_sum)
    p_log = tl.log(p_sum)
    loss = 0.0
    kl_s = 0.0
    if MODE != 0:
        for start in range(0, vocabulary, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < vocabulary
            x = tl.load(student_ptr + at, mask=inside, other=0.0).to(tl.float32) * per_temperature
            y = tl.load(teacher_ptr + at, mask=inside, other=0.0).to(tl.float32) * per_temperature
            log_s = (x - s_max) - s_log
            log_p = (y - p_max) - p_log
            s = tl.where(inside, tl.exp(log_s), 0.0)
            if MODE == 1:
                kl_s += tl.sum(s * (log_s - log_p), axis=0)
            else:
                p = tl.where(inside, tl.exp(log_p), 0.0)
                log_m = tl.log(tl.maximum(beta * p + (1 - beta) * s, 1.1754944e-38))
                kl_s += tl.sum(s * (log_s - log_m), axis=0)
                loss += tl.sum(p * (log_p - log_m), axis=0)
        loss = kl_s if MODE == 1 else beta * loss + (1 - beta) * kl_s
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < vocabulary
        x = tl.load(student_ptr + at, mask=inside, other=0.0).to(tl.float32) * per_temperature
        y = tl.load(teacher_ptr + at, mask=inside, other=0.0).to(tl.float32) * per_temperature
        log_s = (x - s_max) - s_log
        log_p = (y - p_max) - p_log
        s = tl.where(inside, tl.exp(log_s), 0.0)
        p = tl.where(inside, tl.exp(log_p), 0.0)
        if MODE == 0:
            loss += tl.sum(p * (log_p - log_s), axis=0)
            grad = s - p
        elif MODE == 1:
            grad = s * (log_s - log_p - kl_s)
        else:
            log_m = tl.log(tl.maximum(beta * p + (1 - beta) * s, 1.1754944e-38))
            grad = (1 - beta) * s * (log_s - log_m - kl_s)
        grad = grad * per_temperature
        tl.store(student_ptr + at, grad.to(student_ptr.dtype.element_ty), mask=inside)
    tl.store(loss_ptr + row, loss)


def jsd_and_grad_(student_CV: Tensor, teacher_CV: Tensor, beta: float, temperature: float) -> Tensor:
    """The JsdKernel (trainer/jsd.py): losses [rows], float32, and the gradient in the student's place.

    Raises RuntimeError where Triton cannot build or start the kernel.
    """
    rows, vocabulary = student_CV.shape
    losses_C = torch.empty(rows, dtype=torch.float32, device=student_CV.device)
    if not rows:
        return losses_C
    launch: Any = jsd_kernel[(rows,)]
    try:
        launch(
            student_CV,
            teacher_CV,
            losses_C,
            vocabulary,
            student_CV.stride(0),
            teacher_CV.stride(0),
            beta,
            1 / temperature,
            MODE=mode_of(beta),
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    except TritonError as error:
        raise RuntimeError(f"loss kernel: cannot be built, got {error}") from error
    return losses_C


def mode_of(beta: float) -> int:
    return FORWARD if beta == 0 else REVERSE if beta == 1 else BETWEEN
