"""What a turn need not look at, summed up: runs that are done, and runs that wait like others.

Pure. With it, plan() of what is left decides and tells the same as plan() of the whole sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from pydantic import BaseModel

from orchestrator.controller.evidence import FailureClass
from orchestrator.controller.outcome import AttemptRecord
from orchestrator.sweep.expand import Run

FAILURES_SHOWN = 20


class Best(BaseModel):
    """The run with the lowest KL(teacher ‖ adapter), nats per token."""

    run: str
    kl: float
    klStderr: float | None = None


@dataclass(frozen=True)
class Closed:
    """What is over for good: runs, records, names of Jobs, and (protocol, base) of measured baselines."""

    runs: frozenset[str] = frozenset()
    records: tuple[AttemptRecord, ...] = ()
    jobs: frozenset[str] = frozenset()
    measured: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class Rest:
    """The sum of all that was closed, and `present`, the runs to be looked at (None: all).

    `behind` says how many more runs there are like one of those: they wait for the same, and come after it.
    """

    done: int = 0
    gpu_seconds: float = 0.0
    best: Best | None = None
    failures: tuple[AttemptRecord, ...] = ()
    gpu_faults: Mapping[str, int] = field(default_factory=dict)
    measured: frozenset[tuple[str, str]] = frozenset()
    present: tuple[Run, ...] | None = None
    behind: Mapping[str, int] = field(default_factory=dict)

    def plus(self, closed: Closed, runs: Collection[str]) -> Rest:
        """With what was closed since; `runs` are the ids of the sweep's runs."""
        faults = Counter(self.gpu_faults)
        faults.update(gpu_faults(closed.records))
        return replace(
            self,
            done=self.done + len(closed.runs),
            gpu_seconds=self.gpu_seconds + sum(record.gpu_seconds for record in closed.records),
            best=better(self.best, best_of(closed.records, runs)),
            failures=newest_failures((*self.failures, *closed.records)),
            gpu_faults=faults,
            measured=self.measured | closed.measured,
        )


def gpu_faults(records: Iterable[AttemptRecord]) -> Counter[str]:
    """GPU faults by node."""
    return Counter(
        record.node for record in records if record.failure is FailureClass.GPU_FAULT and record.node
    )


def newest_failures(records: Iterable[AttemptRecord]) -> tuple[AttemptRecord, ...]:
    """The last failures that are told, newest first; what someone cancelled is none."""
    failed = [
        record
        for record in records
        if record.state == "failed" and record.failure is not FailureClass.CANCELLED
    ]
    failed.sort(key=lambda record: (record.finished_at or 0.0, record.job), reverse=True)
    return tuple(failed[:FAILURES_SHOWN])


def best_of(records: Iterable[AttemptRecord], runs: Collection[str]) -> Best | None:
    """The best of the adapters that these records measured, of the runs with these ids."""
    found = (
        Best(run=result.run_id, kl=result.text.kl, klStderr=result.text.kl_se)
        for record in records
        if record.state == "done" and record.stage == "eval" and record.record
        for result in record.record.variants
        if result.variant == "adapter" and result.text and result.text.kl is not None
        if result.run_id and result.run_id in runs
    )
    return min(found, key=_rank, default=None)


def better(one: Best | None, other: Best | None) -> Best | None:
    """The better of two; None only for two that are None."""
    return min((best for best in (one, other) if best), key=_rank, default=None)


def _rank(best: Best) -> tuple[float, str]:
    return best.kl, best.run
