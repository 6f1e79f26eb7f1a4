"""Is the policy that wrote the rollouts the student that is trained? Their gap, and what of it is noise.

The policy holds LoRA merged into its weights and computes token by token over a cache; the student computes
s·BA·x beside Q(W)x and reads whole sequences. In exact arithmetic both are one function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.data import Item
from trainer.perplexity import log_probs
from trainer.plain import left_padded
from trainer.rollout import evaluating

if TYPE_CHECKING:
    from trainer.distributed import World
    from trainer.student import Student

TOKENS = 64
"""Sampled tokens a process looks at in a step, spread evenly over its first micro-batch with rollouts."""
NOISE_TOKENS = 16
"""Tokens of each rollout of that micro-batch that the noise is taken on."""
GAP, NOISE = "logprob_mismatch", "logprob_noise"
"""Keys in the lines of metrics: means of |difference| of log-probabilities, in nats."""


class Mismatch:
    """Mean |log p(policy) - log p(student)| of sampled tokens in each step; at first also what is noise.

    noise: the same mean between two ways of the student itself, whole sequences and token by token, taken
    once in a run; None until then.
    """

    def __init__(self) -> None:
        self.noise: float | None = None
        self._gaps: list[float] = []
        self._noise: list[float] = []

    @torch.no_grad()
    def measure(self, student: Student, part: Sequence[Item], student_NH: Tensor) -> None:
        """Compare on a micro-batch, once a step; student_NH: hidden states at the completions' tokens."""
        places, tokens, policy = _sampled(part)
        if self._gaps or not places:
            return
        self._gaps = _apart(_nats(student, student_NH[places], tokens), policy)
        if self.noise is None:
            self._noise = _noise(student, part, student_NH)

    def line(self, world: World) -> dict[str, float]:
        """The part of a step's line of metrics, over all processes; {} without rollouts."""
        sums = world.sum([sum(self._gaps), len(self._gaps), sum(self._noise), len(self._noise)])
        self._gaps, self._noise = [], []
        found = {GAP: sums[0] / sums[1]} if sums[1] else {}
        if sums[3]:
            self.noise = found[NOISE] = sums[2] / sums[3]
        return found

    def resume(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take up the noise that an attempt before has measured."""
        self.noise = next((line[NOISE] for line in lines if NOISE in line), None)


def _sampled(part: Sequence[Item]) -> tuple[list[int], list[int], list[float]]:
    """Some of the sampled tokens: their places among all completion tokens, ids, and the policy's nats."""
    found: list[tuple[int, int, float]] = []
    start = 0
    for item in part:
        found += zip(range(start, start + len(item.log_probs)), item.completion, item.log_probs, strict=False)
        start += len(item.completion)
    some = found[:: max(1, -(-len(found) // TOKENS))]
    return [one[0] for one in some], [one[1] for one in some], [one[2] for one in some]


def _noise(student: Student, part: Sequence[Item], student_NH: Tensor) -> list[float]:
    """|Difference| for the first tokens of each rollout, when the student reads them one by one."""
    places: list[int] = []
    start, own = 0, [item for item in part if item.log_probs]
    heads = [item.completion[:NOISE_TOKENS] for item in own]
    for item in part:
        if item.log_probs:
            places += range(start, start + min(len(item.completion), NOISE_TOKENS))
        start += len(item.completion)
    tokens = [token for head in heads for token in head]
    one_by_one = _one_by_one(student, [item.example.prompt for item in own], heads)
    return _apart(_nats(student, student_NH[places], tokens), one_by_one)


def _one_by_one(
    student: Student, prompts: Sequence[Sequence[int]], heads: Sequence[Sequence[int]]
) -> list[float]:
    """Nats of the tokens of `heads` over transformers' own cache, so not by the decoder that is judged."""
    from transformers import DynamicCache

    ids, mask = left_padded(prompts, student.lora_parameters()[0].device)
    cache = DynamicCache(config=student.model.config)
    found: list[list[float]] = [[] for _ in heads]
    with evaluating(student.model):
        for position in range(max(map(len, heads))):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            hidden_BTH = student.hidden(ids, mask, positions, past_key_values=cache, use_cache=True)
            # One that has no more tokens repeats its last, which nobody looks at.
            tokens = [head[min(position, len(head) - 1)] for head in heads]
            nats = _nats(student, hidden_BTH[:, -1], tokens)
            for row, head in enumerate(heads):
                found[row] += nats[row : row + 1] if position < len(head) else []
            ids = torch.tensor(tokens, device=ids.device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(heads), 1)], dim=1)
    return [value for row in found for value in row]


def _nats(student: Student, hidden_NH: Tensor, tokens: Sequence[int]) -> list[float]:
    """The student's log-probability of each row's token."""
    ids_N1 = torch.tensor(tokens, device=hidden_NH.device)[:, None]
    nats: list[float] = log_probs(hidden_NH, student.head("student")).gather(1, ids_N1)[:, 0].tolist()
    return nats


def _apart(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(one, other, strict=True)]
