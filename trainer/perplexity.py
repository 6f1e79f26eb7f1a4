"""Perplexity and KL to the teacher on held-out text: sliding windows, each token scored once.

The window protocol is Hugging Face's ("Perplexity of fixed-length models"), counted per token exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.attempt import Diverged
from trainer.distributed import World
from trainer.flags import UsageError
from trainer.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainer.linear import Mode
    from trainer.student import Student

LOGITS_BYTES = 200_000_000
"""What all float32 rows of logits alive at once may take."""
LIVE_COPIES = 5
"""Rows of vocabulary size alive at once while scoring: two logits, their log-softmaxes, one product."""

Floats = NDArray[np.float64]


class Window(NamedTuple):
    """Tokens [start, end) go through the model; those from `first` on are scored."""

    start: int
    end: int
    first: int


class TokenScores(NamedTuple):
    """Negative log-likelihood and KL(teacher ‖ variant) of each scored token, nats, float64 [tokens]."""

    nll: Floats
    kl: Floats


def text_tokens(text: Text, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> Tensor:
    """The first `limit` tokens of a text, int64 [tokens]. Raises UsageError when it has fewer than 64."""
    # Cutting a long text takes minutes; 32 characters a token are plenty, save in odd texts.
    part = text.text if limit is None else text.text[: 32 * limit]
    ids: list[int] = tokenizer(part, verbose=False)["input_ids"]
    if limit is not None and len(ids) < limit and len(part) < len(text.text):
        ids = tokenizer(text.text, verbose=False)["input_ids"]
    if len(ids) < 64:
        raise UsageError(
            f"perplexity_dataset: {text.name} must have 64 tokens or more, got {len(ids)}; give a longer text"
        )
    return torch.tensor(ids[:limit], dtype=torch.long)


def windows(tokens: int, window: int, stride: int) -> list[Window]:
    """Windows of `window` tokens, `stride` apart, which score every token but the first exactly once.

    Raises ValueError unless stride is below window: a token at a window's start has nothing before it.
    """
    if stride >= window:
        raise ValueError(f"stride: must be below the window {window}, got {stride}; half of it is usual")
    found: list[Window] = []
    scored = 1  # the first token has nothing before it
    for start in range(0, tokens, stride):
        end = min(start + window, tokens)
        found.append(Window(start, end, scored))
        scored = end
        if end == tokens:
            break
    return found


@dataclass
class TextScorer:
    """Scores one text under any mode of a student; the teacher's hidden states are computed once and kept.

    tokens: int64 [tokens]. world: who shares the windows. Raises Diverged from `score` when a score is not
    finite.
    """

    student: Student
    tokens: Tensor
    world: World
    window: int = 1024
    stride: int = 512
    _teacher_hidden: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def score(self, mode: Mode) -> TokenScores:
        """Per-token scores of one mode, float64 [tokens - 1], on every process."""
        plan = self.world.share(windows(len(self.tokens), self.window, self.stride))
        own = [self._window(number, window, mode) for number, window in enumerate(plan)]
        nll, kl = map(np.concatenate, zip(*self.world.collect(own), strict=True))
        if not (np.isfinite(nll).all() and np.isfinite(kl).all()):
            raise Diverged(
                f"perplexity: scores of {mode} must be finite, got nan or infinity; the weights are broken"
            )
        return TokenScores(nll, kl)

    def _window(self, number: int, window: Window, mode: Mode) -> TokenScores:
        """Scores of a window's scored tokens; number: which of this process's windows it is."""
        teacher_NH = self._teacher(number, window)
        hidden_NH = teacher_NH if mode == "teacher" else self._hidden(window, mode)
        targets_N = self.tokens[window.first : window.end].to(hidden_NH.device)
        return self._rows(hidden_NH, teacher_NH, targets_N, mode)

    def _hidden(self, window: Window, mode: Mode) -> Tensor:
        """Hidden states [scored rows, width] that predict the window's scored tokens."""
        ids = self.tokens[window.start : window.end].unsqueeze(0).to(self.student.model.device)
        hidden_TH = self.student.hidden(ids, mode=mode)[0]
        return hidden_TH[window.first - 1 - window.start : window.end - 1 - window.start]

    def _teacher(self, number: int, window: Window) -> Tensor:
        if number == len(self._teacher_hidden):
            # In host memory: a long text's states are gigabytes and are read once a variant.
            self._teacher_hidden.append(self._hidden(window, "teacher").to("cpu", copy=True))
        return self._teacher_hidden[number].to(self.student.model.device)

    def _rows(self, hidden_NH: Tensor, teacher_NH: Tensor, targets_N: Tensor, mode: Mode) -> TokenScores:
        head_VH, teacher_head_VH = self.student.head(mode), self.student.head("teacher")
        nll, kl = [], []
        for rows in row_chunks(len(hidden_NH), len(head_VH)):
            log_s_NV = log_probs(hidden_NH[rows], head_VH)
            nll.append(-log_s_NV.gather(1, targets_N[rows, None]).squeeze(1))
            if mode == "teacher":
                kl.append(torch.zeros_like(nll[-1]))
            else:
                kl.append(_kl(log_probs(teacher_NH[rows], teacher_head_VH), log_s_NV))
        return TokenScores(torch.cat(nll).double().cpu().numpy(), torch.cat(kl).double().cpu().numpy())


def _kl(log_p_NV: Tensor, log_s_NV: Tensor) -> Tensor:
    """KL(P ‖ S) of each row; consumes both."""
    difference_NV = torch.sub(log_p_NV, log_s_NV, out=log_s_NV)
    result: Tensor = torch.linalg.vecdot(log_p_NV.exp_(), difference_NV)
    return result


def log_probs(hidden_NH: Tensor, head_VH: Tensor) -> Tensor:
    """Log-probabilities [rows, vocabulary], float32; projected in the model's dtype, as deployed."""
    result: Tensor = torch.log_softmax(F.linear(hidden_NH, head_VH).float(), dim=-1)
    return result


def row_chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Slices of rows whose float32 logits, all live copies together, stay below LOGITS_BYTES."""
    step = max(1, LOGITS_BYTES // (4 * LIVE_COPIES * vocabulary))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
