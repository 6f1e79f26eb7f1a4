"""One attempt at a stage: its stop signal, its watchdog and its record. Torch-free."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from trainer.layout import READY_FILE_ENV, TERMINATION_LOG_ENV
from trainer.results import ExitCode, Progress, Record, dump_record

STALL_STEPS = 20
"""A run is stalled after this many median steps without progress (or stall_minutes, if that is longer)."""


class Preempted(Exception):
    """SIGTERM arrived; raised at the next safe point."""


class Diverged(Exception):
    """Loss or gradient is no finite number."""


class StopSignal:
    """Whether SIGTERM (or Ctrl-C) arrived; `check()` is the safe point.

    Until `defer()` any moment is one: nothing is lost while libraries and models load, or where results
    are published one by one.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._deferred = False

    def defer(self) -> None:
        """From now on end at safe points alone."""
        self._deferred = True
        self.check()

    def install(self) -> StopSignal:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        return self

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._event.set()
        if not self._deferred:
            raise Preempted("stopped by a signal before anything was to be kept")

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        if self._event.is_set():
            raise Preempted("stopped by a signal")


class Watchdog:
    """Ends the process with exit 77 when nothing moved for too long: a hang never ends by itself."""

    def __init__(
        self, stall_s: float, on_stall: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stall_s, self._on_stall, self._clock = stall_s, on_stall, clock
        self._steps: list[float] = []
        self._last = clock()
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def stop(self) -> None:
        self._stopped.set()

    def beat(self, step_s: float | None = None) -> None:
        """Something moved; `step_s` is the duration of a finished step."""
        self._last = self._clock()
        if step_s is not None:
            self._steps.append(step_s)

    @property
    def limit_s(self) -> float:
        """Seconds without progress that count as a stall."""
        return max(self._stall_s, STALL_STEPS * statistics.median(self._steps) if self._steps else 0.0)

    def stalled(self) -> bool:
        return self._clock() - self._last > self.limit_s

    def _watch(self) -> None:
        while not self._stopped.wait(min(5.0, self._stall_s / 4)):
            if self.stalled():
                self._on_stall(f"no progress for {self.limit_s:.0f} s")
                os._exit(ExitCode.STALLED)


def mark_ready() -> None:
    """Tell the readiness probe that the first step is done."""
    path = os.environ.get(READY_FILE_ENV)
    if path:
        Path(path).touch()


def write_record(record: Record) -> None:
    """The record as termination message: one write in place, for the file is a mount that no rename replaces.

    A message that cannot be written must not turn a finished run into a failed one: it is said and left.
    Results that do not fit are left out; they lie on the volume.
    """
    try:
        data = dump_record(record)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        data = dump_record(record.model_copy(update={"variants": [], "error": str(error)}))
    write_message(data)


def write_message(data: bytes) -> None:
    """The termination message as it is, where one is asked for."""
    path = os.environ.get(TERMINATION_LOG_ENV)
    if not path:
        return
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        sys.stderr.write(f"{path}: the record cannot be written, got {error}\n")


def report(progress: Progress) -> None:
    """Print a progress line at once."""
    sys.stdout.write(progress.line() + "\n")
    sys.stdout.flush()
