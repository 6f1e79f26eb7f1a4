"""Is what is evaluated what was trained? One fixed batch through both, compared bit by bit.

The tokens are drawn once for all, so a run needs no data to be checked: the last forward of training leaves
their hash and the likeliest tokens, and the first of an evaluation is compared with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import checkpoint
from trainer.adapter import load_adapter
from trainer.counters import Stream, generator

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.config import TrainConfig
    from trainer.student import Student

ROWS, TOKENS, TOP = 4, 32, 16
TOLERANCE = 0.02
"""Nats a token: ten times what computing in bf16 instead of float32 makes of one model (1e-3 to 2e-3)."""


class Comparison(NamedTuple):
    """equal: every bit of every logit. kl: nats a token, over the likeliest tokens and the rest as one.

    changed: conditions that differ, `name: before → now`; where there are some, bits may differ.
    """

    equal: bool
    kl: float
    max_difference: float
    changed: list[str]


def take(student: Student, config: TrainConfig) -> dict[str, Any]:
    """What the student computes on the probe: the logits' hash, the likeliest tokens' log-probabilities."""
    logits_NV = _logits(student)
    top = torch.log_softmax(logits_NV.float(), dim=-1).topk(min(TOP, logits_NV.shape[1]))
    return {
        "v": 1,
        "logits_sha256": _sha256(logits_NV),
        "codes_sha256": student.codes_sha256,
        "conditions": _conditions(logits_NV, config),
        "tokens": top.indices.tolist(),
        "log_probs": top.values.tolist(),
    }


def compare(before: Mapping[str, Any], student: Student, config: TrainConfig) -> Comparison:
    """What `take` left, against what the student computes now. Raises KeyError for a damaged probe."""
    logits_NV = _logits(student)
    log_q_NV = torch.log_softmax(logits_NV.float(), dim=-1).double()
    tokens_NK = torch.tensor(before["tokens"], device=log_q_NV.device)
    log_p_NK = torch.tensor(before["log_probs"], dtype=torch.float64, device=log_q_NV.device)
    log_q_NK = log_q_NV.gather(1, tokens_NK)
    rest_p, rest_q = ((1 - part.exp().sum(-1)).clamp(min=1e-12) for part in (log_p_NK, log_q_NK))
    kl_N = (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(-1) + rest_p * (rest_p / rest_q).log()
    return Comparison(
        equal=before["logits_sha256"] == _sha256(logits_NV),
        kl=float(kl_N.mean()),
        max_difference=float((log_p_NK - log_q_NK).abs().max()),
        changed=checkpoint.changed_conditions(before["conditions"], _conditions(logits_NV, config)),
    )


def prove(student: Student, folder: Path, config: TrainConfig) -> dict[str, Any]:
    """The probe of a run that ends, after the adapter was read back as an evaluation reads it.

    Raises RuntimeError unless what was written computes what was trained, bit for bit. The student wears the
    files' adapter afterwards.
    """
    taken = take(student, config)
    student.set_adapter(load_adapter(folder), config.lora_order)
    found = compare(taken, student, config)
    if not found.equal:
        raise RuntimeError(
            f"{folder}: the adapter's files do not compute what was trained, got KL {found.kl:.2g} nats a "
            "token on the probe; this is a fault of ours"
        )
    return taken


@torch.no_grad()
def _logits(student: Student) -> Tensor:
    """Logits [rows · tokens, vocabulary] of the student, in the dtype it computes in."""
    head_VH = student.head("student")
    drawn = generator(0, Stream.PROBE).integers(0, len(head_VH), (ROWS, TOKENS))
    ids_BT = torch.from_numpy(drawn).to(head_VH.device)
    hidden_BTH = student.hidden(ids_BT, mode="student")
    return F.linear(hidden_BTH.flatten(0, 1), head_VH)


def _sha256(logits_NV: Tensor) -> str:
    data = logits_NV.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()


def _conditions(logits_NV: Tensor, config: TrainConfig) -> dict[str, Any]:
    """What equal bits depend on. Each process computes the whole probe, whatever their number."""
    found = checkpoint.conditions(1, logits_NV.device)
    return {**found, "dtype": config.mixed_precision, "base_memory": config.base_memory}
