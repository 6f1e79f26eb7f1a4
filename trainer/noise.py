"""What a token is: argmax(logits / T + Gumbel noise), noise a counter of seed, step, sample and position."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.counters import Stream, gumbel


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


class Noise:
    """Noise [rows, vocabulary] of one position after the other.

    A GPU computes while the CPU draws, so there the next position's is begun ahead, one thread a row.
    """

    def __init__(self, sampler: Sampler, device: torch.device) -> None:
        self._sampler, self._device = sampler, device
        self._ahead: dict[tuple[Draw, int], Future[Tensor]] = {}
        self._threads = ThreadPoolExecutor() if device.type == "cuda" else None

    def of(self, draws: Sequence[Draw], position: int, size: int) -> Tensor | None:
        """The noise of these rows at a position, on the device; None where nothing is random."""
        if self._sampler.temperature == 0:
            return None
        if self._threads is None:
            return torch.stack([self._row(draw, position, size) for draw in draws])
        now = [self._begun(draw, position, size) for draw in draws]
        ahead = {(draw, position + 1): self._begun(draw, position + 1, size) for draw in draws}
        rows = torch.stack([row.result() for row in now])
        self._ahead = ahead
        return rows.pin_memory().to(self._device, non_blocking=True)

    def _begun(self, draw: Draw, position: int, size: int) -> Future[Tensor]:
        assert self._threads is not None
        known = self._ahead.get((draw, position))
        return known or self._threads.submit(self._row, draw, position, size)

    def _row(self, draw: Draw, position: int, size: int) -> Tensor:
        sampler = self._sampler
        return torch.from_numpy(gumbel(sampler.seed, sampler.stream, draw.step, draw.sample, position, size))


class Trace:
    """Log-probability of each sampled token before temperature and rules: the policy's, not the sampler's."""

    def __init__(self) -> None:
        self._parts: list[tuple[list[int], Tensor]] = []

    def clear(self) -> None:
        """Forget all of it: the sequences are sampled anew."""
        self._parts.clear()

    def add(self, rows: Sequence[int], log_p_BV: Tensor, tokens_B: Tensor) -> None:
        """The next token of these sequences, with the log-probabilities it was drawn from."""
        self._parts.append((list(rows), log_p_BV.gather(1, tokens_B[:, None])[:, 0]))

    def take(self, row: int, values: Sequence[float]) -> None:
        """All log-probabilities of one sequence, where another engine has written it."""
        self._parts += [([row], torch.tensor([value], dtype=torch.float64)) for value in values]

    def log_probs(self, written: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Nats, one for each token of each sequence."""
        found: list[list[float]] = [[] for _ in written]
        for rows, values in self._parts:
            for row, value in zip(rows, values.tolist(), strict=True):
                found[row].append(value)
        # The plain decoder goes on with a sequence that ended until all have.
        return [tuple(values[: len(ids)]) for values, ids in zip(found, written, strict=True)]


def choose(
    logits_BV: Tensor,
    noise_BV: Tensor | None,
    position: int,
    sampler: Sampler,
    trace: Trace | None = None,
    rows: Sequence[int] = (),
) -> Tensor:
    """The tokens [rows] that win at a position; float32 logits, which are changed.

    trace: is given the tokens of `rows` with their log-probabilities.
    """
    log_p_BV = logits_BV.log_softmax(-1) if trace else None
    tokens_B = scores(logits_BV, noise_BV, position, sampler).argmax(-1)
    if trace and log_p_BV is not None:
        trace.add(rows, log_p_BV, tokens_B)
    return tokens_B


def scores(logits_BV: Tensor, noise_BV: Tensor | None, position: int, sampler: Sampler) -> Tensor:
    """logits / T + noise, in place of the logits; ends are ruled out before `min_new_tokens`."""
    if position < min(sampler.min_new_tokens, sampler.max_new_tokens) and sampler.stops:
        logits_BV[:, sorted(sampler.stops)] = -torch.inf
    if noise_BV is None:
        return logits_BV
    return logits_BV.div_(sampler.temperature).add_(noise_BV)
