"""The loss against a teacher of whom only the K likeliest tokens are known, and the mass of all others.

Both models are read as distributions over K + 1 symbols: K tokens and the rest. Their divergence is never
above that of the whole distributions (merging outcomes loses information), grows with K, and is all of it at
K = vocabulary. Without the rest as a symbol a student would gain by taking mass away from the K tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.jsd import BLOCK_ELEMENTS, TINY, jsd_and_grad_
from trainer.losses import fused


class TopK(NamedTuple):
    """What is known of a teacher's rows.

    ids_NK: the likeliest tokens, int64. log_p_NE: their log-probabilities and last that of the rest, float32.
    """

    ids_NK: Tensor
    log_p_NE: Tensor


def take_topk(logits_NV: Tensor, k: int, temperature: float) -> TopK:
    """The `k` likeliest tokens of each row of softmax(logits / temperature), and the rest."""
    log_p_NV = torch.log_softmax(logits_NV.float() / temperature, -1)
    top = log_p_NV.topk(k)
    # Of what is left, not 1 - sum: that has no digits where the rest is small.
    rest_N = log_p_NV.scatter_(1, top.indices, -torch.inf).logsumexp(-1)
    return TopK(top.indices, torch.cat([top.values, rest_N.clamp(min=math.log(TINY))[:, None]], 1))


def fused_topk_jsd(
    student_hidden_NH: Tensor, student_head_VH: Tensor, top: TopK, beta: float, temperature: float = 1.0
) -> Tensor:
    """Sum over rows of the divergence on K + 1 symbols, as `fused_jsd`; `top` is of the same temperature."""

    def of_chunk(rows: slice, student_CV: Tensor) -> Tensor:
        return topk_jsd_and_grad_(student_CV, TopK(*(part[rows] for part in top)), beta, temperature)

    return fused(student_hidden_NH, student_head_VH, of_chunk)


def topk_jsd_and_grad_(student_CV: Tensor, top: TopK, beta: float, temperature: float) -> Tensor:
    """Losses [rows] in nats, float32; their gradient in the student's logits is left in place of these."""
    rows, vocabulary = student_CV.shape
    size = max(1, BLOCK_ELEMENTS // vocabulary) if student_CV.device.type == "cpu" else max(1, rows)
    losses = [student_CV.new_empty(0, dtype=torch.float32)]
    for start in range(0, rows, size):
        block = slice(start, start + size)
        student_RV, ids_RK = student_CV[block], top.ids_NK[block]
        log_s_RV = torch.log_softmax(student_RV.float() / temperature, -1)
        log_top_RK = log_s_RV.gather(1, ids_RK)
        rest_RV = log_s_RV.scatter_(1, ids_RK, -torch.inf).exp_()
        rest_R1 = rest_RV.sum(-1, keepdim=True).clamp_(min=TINY)
        # Log-probabilities are logits of themselves, so the symbols are a small vocabulary to the kernel.
        symbols_RE = torch.cat([log_top_RK, rest_R1.log()], 1)
        losses.append(jsd_and_grad_(symbols_RE, top.log_p_NE[block], beta, 1.0))
        # The gradient in the rest's logit falls to its tokens by their share of it.
        rest_RV.mul_(symbols_RE[:, -1:] / rest_R1).scatter_(1, ids_RK, symbols_RE[:, :-1])
        student_RV.copy_(rest_RV.div_(temperature))
    return torch.cat(losses)
