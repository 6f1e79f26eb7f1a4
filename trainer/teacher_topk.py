"""The teacher's likeliest tokens on the data's completions: computed once, kept, and shared by runs at λ = 0.

A file holds one row of the data, named by what it depends on: teacher, dtype, K, loss temperature and tokens.
The teacher reads each row alone, so it does not depend on the batch of the run that writes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.data import Example, collate
from trainer.durable import mark_used, write_bytes_once
from trainer.flags import UsageError
from trainer.perplexity import row_chunks
from trainer.topk import TopK, fused_topk_jsd, take_topk

if TYPE_CHECKING:
    from trainer.distributed import World
    from trainer.student import Student

log = logging.getLogger(__name__)

ERROR = "teacher_topk_error"
"""Key in the first line of metrics: the share of the full loss that the K + 1 symbols do not see."""


class TeacherTopK:
    """The loss of `--teacher-topk` and the files it reads.

    error: 1 - loss / full loss on the run's first micro-batch of each process; None until then.
    """

    def __init__(self, student: Student, config: TrainConfig, root: Path, fingerprint: str) -> None:
        vocabulary = len(student.head("teacher"))
        if config.teacher_topk > vocabulary:
            raise UsageError(
                f"teacher_topk: the vocabulary has {vocabulary} tokens, got {config.teacher_topk}; give fewer"
            )
        self._student, self._config, self._k = student, config, config.teacher_topk
        settings = ["topk", fingerprint, config.mixed_precision, self._k, config.loss_temperature]
        self._folder = root / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        self.error: float | None = None
        self._first: tuple[float, float] | None = None

    def loss(self, examples: Sequence[Example], student_NH: Tensor, full: Callable[[], Tensor]) -> Tensor:
        """As `fused_jsd`, summed over the completions of these examples.

        full: the loss against the whole teacher, asked for once in a run.
        """
        config, student = self._config, self._student
        kept = [self.of(example) for example in examples]
        mark_used(self._folder)
        top = TopK(*(torch.cat(parts).to(student_NH.device) for parts in zip(*kept, strict=True)))
        loss = fused_topk_jsd(student_NH, student.head("student"), top, config.beta, config.loss_temperature)
        if self.error is None and self._first is None:
            with torch.no_grad():
                self._first = loss.item(), full().item()
        return loss

    def of(self, example: Example) -> TopK:
        """What is kept of an example's completion, on the CPU; computed first where nothing whole is."""
        name = hashlib.sha256(json.dumps([example.prompt, example.completion]).encode()).hexdigest()
        path = self._folder / name[:2] / f"{name[:32]}.safetensors"
        rows = len(example.completion)
        found = self._read(path, rows)
        if found is None:
            from safetensors.torch import save

            top = self._compute(example)
            data = save({"ids": top.ids_NK.int(), "log_p": top.log_p_NE})
            write_bytes_once(path, data, lambda path: self._read(path, rows) is not None)
            # Another run's may stand there; whoever reads later gets that one too.
            found = self._read(path, rows) or top
        return found

    @torch.no_grad()
    def _compute(self, example: Example) -> TopK:
        student, head_VH = self._student, self._student.head("teacher")
        batch = collate([(example.prompt, example.completion)], 0, head_VH.device)
        hidden_NH = student.hidden(batch.ids_BT, mode="teacher")[batch.predicts_BT]
        parts = [
            take_topk(
                torch.nn.functional.linear(hidden_NH[rows], head_VH), self._k, self._config.loss_temperature
            )
            for rows in row_chunks(len(hidden_NH), len(head_VH))
        ]
        return TopK(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))

    def _read(self, path: Path, rows: int) -> TopK | None:
        """What a file says; None when there is none, or one that is cut or of something else."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            stored = load(path.read_bytes())
        except (FileNotFoundError, SafetensorError):
            return None
        ids, log_p = stored.get("ids"), stored.get("log_p")
        if ids is None or log_p is None or ids.shape != (rows, self._k) or log_p.shape != (rows, self._k + 1):
            return None
        return TopK(ids.long(), log_p)

    def line(self, world: World) -> dict[str, float]:
        """The part of a step's line of metrics, over all processes: once in a run, else {}."""
        if self._first is None:
            return {}
        (loss, full), self._first = world.sum(self._first), None
        self.error = 1 - loss / full if full else 0.0
        if world.is_main:
            log.info("teacher_topk: %d tokens see %.2f %% of the loss", self._k, 100 * (1 - self.error))
        return {ERROR: self.error}

    def resume(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take up the error that an attempt before has measured."""
        self.error = next((line[ERROR] for line in lines if ERROR in line), None)
