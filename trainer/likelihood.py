"""Log-likelihoods of continuations in fixed batches, from the logits of the continuations' rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.perplexity import log_probs, row_chunks

if TYPE_CHECKING:
    from trainer.distributed import World
    from trainer.linear import Mode
    from trainer.student import Student

Request = tuple[list[int], list[int]]
"""Tokens of a context and of its continuation; neither is empty."""
Batch = dict[tuple[int, ...], list[int]]
"""Input tokens → numbers of the requests they answer."""
Answer = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether greedy decoding gives it."""


@torch.no_grad()
def score_continuations(
    student: Student,
    mode: Mode,
    requests: Sequence[Request],
    batch_size: int,
    max_length: int,
    world: World,
) -> list[Answer]:
    """The answer to each request, in their order, on every process; whole batches are shared among them."""
    batches = input_batches(requests, batch_size, max_length)
    own = [_answers(student, mode, requests, batch) for batch in world.share(batches)]
    answers = {index: answer for answered in world.collect(own) for index, answer in answered.items()}
    return [answers[index] for index in range(len(requests))]


def _answers(student: Student, mode: Mode, requests: Sequence[Request], batch: Batch) -> dict[int, Answer]:
    """The answers of one batch by the number of the request."""
    head_VH = student.head(mode)
    hidden_BTH = student.hidden(_right_padded(list(batch), head_VH.device), mode=mode)
    rows: list[Tensor] = []
    targets: list[int] = []
    spans: dict[int, slice] = {}
    for row, (inputs, indices) in enumerate(batch.items()):
        for index in indices:
            continuation = requests[index][1]
            start = len(inputs) - len(continuation)
            rows.append(hidden_BTH[row, start : len(inputs)])
            spans[index] = slice(len(targets), len(targets) + len(continuation))
            targets += continuation
    scores_N, greedy_N = _score(torch.cat(rows), torch.tensor(targets, device=head_VH.device), head_VH)
    return {index: (float(scores_N[span].sum()), bool(greedy_N[span].all())) for index, span in spans.items()}


def _score(rows_NH: Tensor, targets_N: Tensor, head_VH: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, float64, and whether it is the most likely token."""
    scores, greedy = [], []
    for rows in row_chunks(len(rows_NH), len(head_VH)):
        log_NV = log_probs(rows_NH[rows], head_VH)
        scores.append(log_NV.gather(1, targets_N[rows, None]).squeeze(1))
        greedy.append(log_NV.argmax(dim=1) == targets_N[rows])
    return torch.cat(scores).double().cpu(), torch.cat(greedy).cpu()


def input_batches(requests: Sequence[Request], batch_size: int, max_length: int) -> list[Batch]:
    """Batches of at most `batch_size` inputs, longest first.

    Equal inputs (one-token continuations of one context) share a row. Too long ones lose their first tokens.
    The order is by length, then tokens, so it depends on nothing but the requests.
    """
    inputs: Batch = {}
    for index, (context, continuation) in enumerate(requests):
        key = tuple((context + continuation)[-(max_length + 1) :][:-1])
        inputs.setdefault(key, []).append(index)
    ordered = sorted(inputs, key=lambda tokens: (-len(tokens), tokens))
    return [
        {tokens: inputs[tokens] for tokens in ordered[start : start + batch_size]}
        for start in range(0, len(ordered), batch_size)
    ]


def _right_padded(inputs: list[tuple[int, ...]], device: torch.device) -> Tensor:
    """int64 [batch, longest]; causal attention never looks at the padding on the right."""
    longest = max(map(len, inputs))
    return torch.tensor([tokens + (0,) * (longest - len(tokens)) for tokens in inputs], device=device)
