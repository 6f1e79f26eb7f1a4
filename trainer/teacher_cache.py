"""Completions the teacher writes for seq_kd: made once for each prompt, shared by runs, named by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config import TrainConfig
from trainer.counters import Stream
from trainer.data import Example
from trainer.durable import mark_used, read_object, write_json_once
from trainer.noise import Draw, Sampler

if TYPE_CHECKING:
    from trainer.rollout import Rollouts


class TeacherCompletions:
    """The teacher's completion of each example.

    The noise is keyed by the prompt's hash, so a completion can be kept for every run with the same
    teacher and settings. The first one written is everybody's: logits, and so tokens at ties, may depend
    on the batch they were computed in.
    """

    def __init__(
        self, rollouts: Rollouts, config: TrainConfig, stops: frozenset[int], root: Path, fingerprint: str
    ) -> None:
        self._rollouts = rollouts
        self._sampler = Sampler(
            seed=config.seed,
            stream=Stream.TEACHER,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            min_new_tokens=config.min_new_tokens,
            stops=stops,
        )
        settings = [
            fingerprint,
            config.mixed_precision,
            config.seed,
            config.temperature,
            config.max_new_tokens,
            config.min_new_tokens,
            sorted(stops),
        ]
        self._folder = root / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def complete(
        self, examples: Sequence[Example], check: Callable[[], None] = lambda: None
    ) -> list[tuple[int, ...]]:
        """The completions, from the cache where it has them; new ones are sampled in one batch and kept."""
        if any(self._read(example) is None for example in examples):
            # All of them, whatever is known: a resume must compute in the batch of the undisturbed run.
            draws = [Draw(0, int(example.content_hash[:15], 16)) for example in examples]
            prompts = [example.prompt for example in examples]
            written = self._rollouts.sample(prompts, draws, self._sampler, "teacher", check)
            for example, completion in zip(examples, written, strict=True):
                write_json_once(self._file(example), {"v": 1, "completion": completion})
        mark_used(self._folder)
        return [completion for example in examples if (completion := self._read(example)) is not None]

    def _file(self, example: Example) -> Path:
        name = example.content_hash
        return self._folder / name[:2] / f"{name[:32]}.json"

    def _read(self, example: Example) -> tuple[int, ...] | None:
        found = read_object(self._file(example)).get("completion")
        return tuple(found) if isinstance(found, list) else None
