"""Sweep → runs. Pure and deterministic: the same sweep gives the same runs in the same order."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.sweep.spec import Sweep
from trainer.config import TrainConfig


@dataclass(frozen=True)
class Run:
    """One resolved training config of a sweep. Its digest is its identity; names and tags are labels.

    `id` is the name and 8 hex of `digest` (64 hex); `also` holds other names the sweep gives this config.
    """

    name: str
    id: str
    digest: str
    group: str
    tags: tuple[str, ...]
    config: TrainConfig
    also: tuple[str, ...] = ()


def expand(sweep: Sweep, place: str = "") -> tuple[Run, ...]:
    """The runs of a sweep in order: groups, then `zip` rows, then `grid`, then seeds.

    `place` heads every message. Raises SweepError with every fault.
    """
    raise NotImplementedError
