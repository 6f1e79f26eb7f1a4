"""Is the policy that wrote the rollouts the student that is trained? Their gap, and what of it is noise.

The policy holds LoRA merged into its weights and computes token by token over a cache; the student computes
s·BA·x beside Q(W)x and reads whole sequences. In exact arithmetic both are one function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.data import Item, collate
from trainer.perplexity import log_probs

if TYPE_CHECKING:
    from trainer.distributed import World
    from trainer.student import Student

TOKENS = 64
"""Sampled tokens a process looks at in a step, spread evenly over its first micro-batch with rollouts."""
GAP, NOISE = "logprob_mismatch", "logprob_noise"
"""Keys in the lines of metrics: means of |difference| of log-probabilities, in nats."""


class Mismatch:
    """Mean |log p(policy) - log p(student)| of sampled tokens in each step; at first also what is noise.

    noise: the same mean between two passes of the student over batches of different shapes, taken once in a
    run. It is None until then.
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
        ids = torch.tensor(tokens, device=student_NH.device)[:, None]

        def of_student(hidden_NH: Tensor) -> Tensor:
            return log_probs(hidden_NH[places], student.head("student")).gather(1, ids)[:, 0].double().cpu()

        now = of_student(student_NH)
        self._gaps = (now - torch.tensor(policy, dtype=torch.float64)).abs().tolist()
        if self.noise is None:
            self._noise = (now - of_student(_otherwise(student, part, student_NH.device))).abs().tolist()

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


def _otherwise(student: Student, part: Sequence[Item], device: torch.device) -> Tensor:
    """The student's hidden states again, each sequence alone, or a lone one twice over."""
    parts = [[item] for item in part] if len(part) > 1 else [[part[0], part[0]]]
    states = []
    for some in parts:
        batch = collate([(item.example.prompt, item.completion) for item in some], 0, device)
        states.append(student.hidden(batch.ids_BT, batch.mask_BT, mode="student")[batch.predicts_BT])
    return torch.cat(states)
