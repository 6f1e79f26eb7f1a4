"""What is compared with TRL: the cases, the rows of each, and the goals of ours against the fair row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.figures import Figure, median

OURS, FAIR, CHECKPOINTED = "ours", "gkd-folded", "ours-checkpointing"
OFF_POLICY_ROWS = ("gkd", FAIR, OURS)
LONG_ROWS = (*OFF_POLICY_ROWS, CHECKPOINTED)
ON_POLICY_ROWS = ("gkd", FAIR, "distillation", OURS)
PROMPT_LENGTH = 32

Step = Mapping[str, Any]
"""What a row says of one step: seconds, cpu_s, parts, tokens, loss, above_loaded_mib."""
Found = Mapping[str, Sequence[Step]]
"""The measured steps of each row of a case."""


@dataclass(frozen=True)
class Case:
    """One question: settings of all rows, the rows, and the goals of ours against the fair row.

    faster: so many times fewer seconds a step. memory: at most this share of the fair row's memory above
    the loaded models; checkpointed_memory: the same with gradient checkpointing.
    """

    what: str
    settings: dict[str, Any]
    rows: tuple[str, ...]
    faster: float
    memory: float | None = None
    checkpointed_memory: float | None = None
    model: str | None = None

    @property
    def tokens(self) -> int:
        """Completion tokens of a step, the same in every row."""
        sequences = (
            self.settings["per_device_train_batch_size"] * self.settings["gradient_accumulation_steps"]
        )
        return int(sequences * (self.settings["max_length"] - PROMPT_LENGTH))


def _off(batch: int, length: int) -> dict[str, Any]:
    """λ = 0: one micro-batch of dataset rows of equal length."""
    return {
        "lmbda": 0.0,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "prompt_length": PROMPT_LENGTH,
        "max_length": length,
    }


def _on(batch: int, accumulation: int, new: int) -> dict[str, Any]:
    """λ = 1: rollouts of equal length, for no row may end a turn before the last token."""
    return {
        "lmbda": 1.0,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "prompt_length": PROMPT_LENGTH,
        "max_length": PROMPT_LENGTH + new,
        "max_new_tokens": new,
        "min_new_tokens": new,
    }


CASES = {
    "off-short": Case("λ = 0, 2 × 165", _off(2, 165), OFF_POLICY_ROWS, 1.0),
    "off-512": Case("λ = 0, 4 × 512", _off(4, 512), LONG_ROWS, 1.8, 0.45, 0.3),
    "off-1024": Case("λ = 0, 4 × 1,024", _off(4, 1024), LONG_ROWS, 1.8, 0.45, 0.3),
    "on-8x64": Case("λ = 1, 4 × 2 × 64 new", _on(2, 4, 64), ON_POLICY_ROWS, 2.5),
    "on-8x128": Case("λ = 1, 4 × 2 × 128 new", _on(2, 4, 128), ON_POLICY_ROWS, 2.5),
    "on-32x64": Case("λ = 1, 16 × 2 × 64 new", _on(2, 16, 64), ON_POLICY_ROWS, 3.5),
    "vocabulary": Case(
        "λ = 0, 2 × 256, vocabulary 262,144",
        _off(2, 256),
        LONG_ROWS,
        1.8,
        0.45,
        0.3,
        model="random:gemma3-270m-sized",
    ),
}
QUICK = {
    "quick-off": Case("λ = 0, 2 × 48", _off(2, 48), OFF_POLICY_ROWS, 1.0),
    "quick-on": Case("λ = 1, 2 × 2 × 16 new", _on(2, 2, 16), ON_POLICY_ROWS, 1.0),
}


def figures(case: Case, found: Found) -> list[Figure]:
    """Ours against the fair row, medians over pairs of steps taken one after the other; goals beside them."""
    if not {OURS, FAIR} <= found.keys():
        return []
    made = [
        Figure(f"{case.what}: seconds, ours / fair", ratio(found, "seconds"), "", at_most=1 / case.faster),
        Figure(f"{case.what}: CPU seconds, ours / fair", ratio(found, "cpu_s"), ""),
        Figure(
            f"{case.what}: memory above loaded, ours / fair",
            ratio(found, "above_loaded_mib"),
            "",
            at_most=case.memory,
        ),
    ]
    if CHECKPOINTED in found:
        share = ratio(found, "above_loaded_mib", CHECKPOINTED)
        goal = case.checkpointed_memory
        made.append(Figure(f"{case.what}: memory, checkpointing / fair", share, "", at_most=goal))
    return made


def ratio(found: Found, what: str, row: str = OURS, other: str = FAIR) -> float:
    """Median of `row`'s value over `other`'s, step by step."""
    return median([one[what] / two[what] for one, two in zip(found[row], found[other], strict=True)])


def check_equal_work(case: Case, found: Found) -> None:
    """Raise RuntimeError unless every step of every row was trained on the same number of tokens."""
    wrong = {
        row: sorted({step["tokens"] for step in steps})
        for row, steps in found.items()
        if any(step["tokens"] != case.tokens for step in steps)
    }
    if wrong:
        raise RuntimeError(
            f"{case.what}: each step must have {case.tokens} completion tokens, got {wrong}; not comparable"
        )
