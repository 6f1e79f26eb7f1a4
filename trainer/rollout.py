"""Sampling: tokens are argmax(logits / T + Gumbel noise), so a token is a pure function of its logits.

All settings are ours: the model's own generation config (top_p, top_k, temperature …) is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trainer.counters import Stream, gumbel

if TYPE_CHECKING:
    from trainer.linear import Mode
    from trainer.student import Student


@dataclass(frozen=True)
class Sampler:
    """How sequences are sampled; temperature 0 is greedy. stops: ids that end a sequence."""

    seed: int
    stream: Stream
    temperature: float
    max_new_tokens: int
    min_new_tokens: int
    stops: frozenset[int]


@dataclass(frozen=True)
class Draw:
    """The counter of one sequence's noise."""

    step: int
    sample: int


def stop_tokens(student: Student, eos: int | None) -> frozenset[int]:
    """The ids that end a turn: the tokenizer's and every one the model's configuration names."""
    named = getattr(student.model.generation_config, "eos_token_id", None) if student.model else None
    listed = named if isinstance(named, list) else [named]
    return frozenset(token for token in [eos, *listed] if token is not None)


@torch.no_grad()
def sample(
    student: Student,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[Draw],
    sampler: Sampler,
    mode: Mode,
    check: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """One completion for each prompt, its stop token included; computed in `mode`, all in one batch.

    Given equal logits the tokens depend on the draws alone: not on the batch's order or company. `check`
    is called between decode steps and may raise to end the sampling.
    """
    # One change of mode for all tokens: with checkpointing each change walks every module.
    with student.mode(mode):
        return _decode(student, prompts, draws, sampler, mode, check)


def _decode(
    student: Student,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[Draw],
    sampler: Sampler,
    mode: Mode,
    check: Callable[[], None],
) -> list[list[int]]:
    from transformers import DynamicCache

    device = next(student.model.parameters()).device
    ids, mask = _left_padded(prompts, device)
    head = student.head(mode)
    cache = DynamicCache(config=student.model.config)
    completions: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    step_ids = ids
    for position in range(sampler.max_new_tokens):
        check()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -step_ids.shape[1] :]
        hidden_BTH = student.hidden(
            step_ids, mask, positions, mode=mode, past_key_values=cache, use_cache=True
        )
        logits_BV = torch.nn.functional.linear(hidden_BTH[:, -1], head).float()
        tokens = _choose(logits_BV, draws, position, sampler)
        for row in sorted(open_rows):
            completions[row].append(int(tokens[row]))
            if int(tokens[row]) in sampler.stops:
                open_rows.discard(row)
        if not open_rows:
            break
        step_ids = tokens[:, None].to(device)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return completions


def _choose(logits_BV: Tensor, draws: Sequence[Draw], position: int, sampler: Sampler) -> Tensor:
    if position < min(sampler.min_new_tokens, sampler.max_new_tokens):
        logits_BV[:, sorted(sampler.stops)] = -torch.inf
    if sampler.temperature == 0:
        return logits_BV.argmax(-1)
    noise = np.stack(
        [
            gumbel(sampler.seed, sampler.stream, draw.step, draw.sample, position, logits_BV.shape[1])
            for draw in draws
        ]
    )
    return (logits_BV / sampler.temperature + torch.from_numpy(noise).to(logits_BV.device)).argmax(-1)


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
