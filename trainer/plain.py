"""The plain twin of `trainer.decoder`: the whole batch to its end, over the cache of transformers itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.noise import Draw, Noise, Sampler, Trace, choose

if TYPE_CHECKING:
    from trainer.linear import Mode
    from trainer.student import Student


def decode(
    student: Student,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[Draw],
    sampler: Sampler,
    mode: Mode,
    check: Callable[[], None],
    trace: Trace | None = None,
) -> list[list[int]]:
    """One completion for each prompt; see `trainer.rollout.Rollouts.sample`."""
    from transformers import DynamicCache

    device = student.lora_parameters()[0].device
    ids, mask = left_padded(prompts, device)
    cache, noise = DynamicCache(config=student.model.config), Noise(sampler, device)
    completions: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    step_ids = ids
    for position in range(sampler.max_new_tokens):
        check()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -step_ids.shape[1] :]
        hidden_BTH = student.hidden(
            step_ids, mask, positions, mode=mode, past_key_values=cache, use_cache=True
        )
        logits_BV = torch.nn.functional.linear(hidden_BTH[:, -1], student.head(mode)).float()
        drawn = noise.of(draws, position, logits_BV.shape[1])
        tokens = choose(logits_BV, drawn, position, sampler, trace, range(len(prompts)))
        for row in sorted(open_rows):
            completions[row].append(int(tokens[row]))
            if int(tokens[row]) in sampler.stops:
                open_rows.discard(row)
        if not open_rows:
            break
        step_ids = tokens[:, None].to(device)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return completions


def left_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask [sequences, longest], both int64."""
    longest = max(map(len, sequences))
    ids = torch.zeros((len(sequences), longest), dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence)
        mask[row, longest - len(sequence) :] = 1
    return ids.to(device), mask.to(device)
