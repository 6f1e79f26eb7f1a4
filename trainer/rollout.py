"""Rollouts: who samples them (our decoder or its plain twin), and the check of the first batch.

All settings are ours: the model's own generation config (top_p, top_k, temperature …) is never read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer import plain
from trainer.flags import UsageError
from trainer.noise import Draw, Noise, Sampler, Trace, scores

if TYPE_CHECKING:
    from trainer.config import RolloutEngine
    from trainer.graphs import Graphs
    from trainer.linear import Mode
    from trainer.student import Student
    from trainer.vllm_rollouts import VllmRollouts

CHECKED_ROWS, CHECKED_TOKENS = 8, 8
"""How much of the first batch is computed a second time."""

__all__ = ["Draw", "Rollouts", "Sampler", "Trace", "sample", "stop_tokens"]


def stop_tokens(student: Student, eos: int | None) -> frozenset[int]:
    """The ids that end a turn: the tokenizer's and every one the model's configuration names."""
    named = getattr(student.model.generation_config, "eos_token_id", None) if student.model else None
    listed = named if isinstance(named, list) else [named]
    return frozenset(token for token in [eos, *listed] if token is not None)


def sample(
    student: Student,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[Draw],
    sampler: Sampler,
    mode: Mode,
    check: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """One completion for each prompt, as `Rollouts(student).sample` gives them."""
    return Rollouts(student).sample(prompts, draws, sampler, mode, check)


class Rollouts:
    """The sampling of one student. engine: `auto` is our decoder, or plain where it does not serve the model;
    vllm: who writes in mode `rollout` instead, if any.

    reason: why plain, or None. graphs: of the student's decode steps, where they are wanted.
    Raises UsageError for `native` where it does not.
    """

    def __init__(
        self,
        student: Student,
        engine: RolloutEngine = "auto",
        graphs: Graphs | None = None,
        vllm: VllmRollouts | None = None,
    ) -> None:
        self._student, self._engine, self._graphs, self._vllm = student, engine, graphs, vllm
        self.reason: str | None = "asked for" if engine == "plain" else None
        self._checked = False

    @property
    def how(self) -> str:
        """What the bits of a rollout depend on here, for the conditions of exact resume."""
        if self._vllm:
            return "vllm"
        if self.reason is not None:
            return "plain"
        return "native, CUDA graphs" if self._graphs and self._graphs.fault is None else "native"

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        draws: Sequence[Draw],
        sampler: Sampler,
        mode: Mode,
        check: Callable[[], None] = lambda: None,
        trace: Trace | None = None,
    ) -> list[list[int]]:
        """One completion for each prompt, its stop token included; computed in `mode`, all in one batch.

        Given equal logits the tokens depend on the draws alone: not on the batch's order or company. `check`
        is called between decode steps and may raise to end the sampling. trace: is given the tokens'
        log-probabilities.
        """
        # One change of mode for all tokens: with checkpointing each change walks every module.
        with self._student.mode(mode), evaluating(self._student.model):
            if self._vllm and mode == "rollout":
                return self._vllm.decode(prompts, draws, sampler, check, trace)
            if self.reason is None:
                written = self._native(prompts, draws, sampler, mode, check, trace)
                if written is not None:
                    return written
                if trace:
                    trace.clear()
            return plain.decode(self._student, prompts, draws, sampler, mode, check, trace)

    def _native(
        self,
        prompts: Sequence[Sequence[int]],
        draws: Sequence[Draw],
        sampler: Sampler,
        mode: Mode,
        check: Callable[[], None],
        trace: Trace | None,
    ) -> list[list[int]] | None:
        """As `sample`, or None where plain must do it: `reason` says why from then on."""
        from trainer import decoder

        length = max(map(len, prompts)) + sampler.max_new_tokens
        self.reason = decoder.unsupported(self._student, length)
        if self.reason is None:
            graphs = self._graphs if mode == "rollout" else None
            graphs = None if graphs and graphs.fault else graphs
            try:
                written = decoder.decode(self._student, prompts, draws, sampler, mode, check, trace, graphs)
            finally:
                if graphs and self._student.config.base_memory == "small":
                    graphs.forget()
            if not self._checked:
                self._checked = True
                self.reason = disagreement(self._student, prompts, draws, sampler, mode, written)
            if self.reason is None:
                return written
        if self._engine == "native":
            raise UsageError(f"rollout: the model cannot be decoded natively, got {self.reason}; give plain")
        print(f"rollouts by the plain decoder: {self.reason}", flush=True)  # noqa: T201 - a run's log
        return None


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """A block that may use a cache, which layers drop in training mode: the student's with checkpointing."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def disagreement(
    student: Student,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[Draw],
    sampler: Sampler,
    mode: Mode,
    completions: Sequence[Sequence[int]],
) -> str | None:
    """What is wrong with the first tokens of `completions` by one forward without a cache, or None.

    Each token's score (logit / T + noise) must be the best up to what the dtype can tell: another shape of
    the batch may decide a tie the other way.
    """
    rows = range(min(len(prompts), CHECKED_ROWS))
    heads = [list(completions[row][:CHECKED_TOKENS]) for row in rows]
    device = student.lora_parameters()[0].device
    ids, mask = plain.left_padded([[*prompts[row], *heads[row]] for row in rows], device)
    hidden_BTH = student.hidden(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), mode=mode)
    noise, head = Noise(sampler, device), student.head(mode)
    for row in rows:
        before = hidden_BTH.shape[1] - len(heads[row]) - 1
        for position, token in enumerate(heads[row]):
            logits = torch.nn.functional.linear(hidden_BTH[row, before + position], head).float()[None]
            allowed = slack(logits, sampler.temperature, hidden_BTH.dtype)
            drawn = noise.of([draws[row]], position, logits.shape[1])
            score = scores(logits, drawn, position, sampler)[0]
            short = float(score.max() - score[token])
            if not short <= allowed:
                return (
                    f"the first batch disagrees with a plain forward at token {position + 1} of sequence "
                    f"{row + 1}: score {short:.3g} below the best, {allowed:.3g} allowed"
                )
    return None


def slack(logits: Tensor, temperature: float, dtype: torch.dtype) -> float:
    """16 roundings of the largest logit, as a score: what two ways to the same logits may differ by."""
    return 16 * torch.finfo(dtype).eps * float(logits.abs().max()) / (temperature or 1.0)
