"""Everything a run works with, made once by `trainer.setup.prepare`, and its two kinds of safe point."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from trainer.attempt import Preempted, StopSignal, Watchdog
from trainer.config import TrainConfig, TrainPlace
from trainer.data import Example, TrainData
from trainer.distributed import World
from trainer.endings import Endings
from trainer.fence import Fence
from trainer.jsd import JsdKernel, jsd_and_grad_
from trainer.layout import RunFolder
from trainer.metrics import Metrics
from trainer.mismatch import Mismatch
from trainer.rollout import Rollouts
from trainer.student import Student
from trainer.teacher_cache import TeacherCompletions
from trainer.teacher_topk import TeacherTopK


@dataclass
class Session:
    """One run in one process.

    heldout: examples of `--eval-steps`. evaluations: the lines of metrics that hold a held-out KL. best: LoRA
    at the least of them, where the run stops early. endings: of the run's rollouts so far.
    """

    config: TrainConfig
    place: TrainPlace
    folder: RunFolder
    world: World
    student: Student
    tokenizer: Any
    data: TrainData
    heldout: list[Example]
    stops: frozenset[int]
    teacher: TeacherCompletions
    rollouts: Rollouts
    fence: Fence
    metrics: Metrics
    stop: StopSignal
    watchdog: Watchdog
    kernel: JsdKernel = jsd_and_grad_
    topk: TeacherTopK | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    endings: Endings = field(default_factory=Endings)
    mismatch: Mismatch = field(default_factory=Mismatch)

    def check(self) -> None:
        """A safe point of this process: something moved, and a signal ends the work here."""
        self.watchdog.beat()
        self.stop.check()

    def agree(self) -> None:
        """A safe point of all processes: they end together, or none of them does."""
        self.watchdog.beat()
        if self.world.sum([float(self.stop.is_set)])[0] > 0:
            raise Preempted("stopped by a signal")
