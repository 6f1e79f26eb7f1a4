"""Decode steps as CUDA graphs: recorded once for a number of rows and a length, then replayed in one call.

A graph reads weights, cache and inputs where they lay when it was recorded. So the batch is kept from one
step of training to the next; whatever moves drops the graphs. The twin is `decoder.Batch.step`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.decoder import Batch
from trainer.linear import dense
from trainer.rollout import slack

if TYPE_CHECKING:
    from trainer.student import Student

SPAN = 256
"""Slots of the cache that a graph attends are a multiple of this."""
WARM_UPS = 2
"""Steps before a recording: libraries set up what must not happen inside of one."""

Recorded = tuple[Callable[[], object], Tensor]
"""How to replay, and the logits that a replay overwrites."""
Record = Callable[[Callable[[], Tensor]], Recorded]


def bucket(rows: int, end: int) -> tuple[int, int]:
    """Rows and slots of the graph that serves a step: of the step alone, so a resumed run repeats it."""
    return 1 << (rows - 1).bit_length(), -(-end // SPAN) * SPAN


class Graphs:
    """The recorded steps of one student's rollouts.

    recorder: gives what records a step, anew whenever all are dropped. fault: why steps are plain from then
    on, or None.
    """

    def __init__(self, recorder: Callable[[], Record] | None = None) -> None:
        self._recorder = recorder or CudaRecorder
        self._recorded: dict[tuple[int, int], Recorded] = {}
        self._batch: Batch | None = None
        self._weights: list[int] = []
        self.fault: str | None = None
        self.forget()

    def batch(self, student: Student, rows: int, length: int) -> Batch:
        """A batch in mode `rollout` for so many rows and slots: last time's, if all lies where it did."""
        rows, length = bucket(rows, length)
        # Where they are filled by copies into the same memory, an update of LoRA moves none.
        weights = [dense(linear.filled()).data_ptr() for linear in student.linears.values()]
        kept = self._batch
        if kept is None or weights != self._weights or kept.slots.size < rows or kept.slots.length < length:
            if kept:
                rows, length = max(rows, kept.slots.size), max(length, kept.slots.length)
            self.forget()
            kept = None  # gives its memory back before more is asked for
            self._batch, self._weights = Batch(student, "rollout", rows, length), weights
            return self._batch
        return kept

    def forget(self) -> None:
        """Give back graphs and cache."""
        self._recorded.clear()
        self._batch = None
        self._record = self._recorder()

    def step(self, batch: Batch, tokens: Tensor, end: int) -> Tensor:
        """As `batch.step`, by a graph; each is compared with that when it is new."""
        if self.fault is not None:
            return batch.step(tokens, end)
        key = bucket(len(tokens), end)
        batch.aim(tokens, end)
        if key not in self._recorded:
            return self._first(batch, tokens, end, key)
        replay, logits = self._recorded[key]
        replay()
        return logits[: len(tokens)]

    def _first(self, batch: Batch, tokens: Tensor, end: int, key: tuple[int, int]) -> Tensor:
        """Logits of a step that has no graph yet: the new one's, or its twin's where it fails."""
        expected = batch.step(tokens, end)
        allowed = slack(expected, 1.0, batch.dtype)
        try:
            replay, logits = self._record(lambda: batch.static_step(*key))
            replay()
            apart = float((logits[: len(tokens)] - expected).abs().max())
        except RuntimeError as error:
            return self._give_up(f"a step cannot be recorded, got {str(error).splitlines()[0]}", expected)
        if not apart <= allowed:
            fault = f"a replayed step is {apart:.3g} off the plain one's logits, {allowed:.3g} allowed"
            return self._give_up(fault, expected)
        self._recorded[key] = replay, logits
        # Not the twin's: whether a graph is new must not change a bit of the run.
        return logits[: len(tokens)]

    def _give_up(self, fault: str, logits: Tensor) -> Tensor:
        self.fault = fault
        self.forget()
        print(f"rollouts without CUDA graphs: {fault}", flush=True)  # noqa: T201 - a run's log
        return logits


class CudaRecorder:
    """Makes CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], Tensor]) -> Recorded:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Thread by thread: NCCL's watchdog asks CUDA for events meanwhile, which would end a global capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = step()
        return graph.replay, logits
