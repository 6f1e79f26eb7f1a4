"""What comes after a failed attempt: another with a remedy, or giving up. Budgets are `spec.retry`'s.

Pure. Remedies follow from the records alone, so that every controller decides alike after a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.controller.advice import NOT_AGAIN
from orchestrator.controller.outcome import AttemptRecord, FailureClass
from orchestrator.sweep.quantity import memory_quantity
from orchestrator.sweep.spec import Resources, Retry

FAULTS_PER_NODE = 2
"""After this many GPU faults on a node, attempts avoid it."""


@dataclass(frozen=True)
class Overrides:
    """What an attempt runs with beyond its config; never part of a run's identity."""

    memory: str | None = None
    micro_batch_split: int = 1
    avoid_nodes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Only what is overridden."""
        values = {
            "memory": self.memory,
            "micro_batch_split": self.micro_batch_split if self.micro_batch_split > 1 else None,
            "avoid_nodes": list(self.avoid_nodes) or None,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Limits:
    """How far remedies may go: `max_memory` in bytes (None: no bound), `micro_batch` in sequences."""

    resources: Resources
    retry: Retry
    max_memory: int | None = None
    micro_batch: int = 1
    bad_nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether the unit gets another attempt, with which overrides, and why (or why not)."""

    again: bool
    overrides: Overrides
    why: str


def bad_nodes(faults: Mapping[str, int]) -> tuple[str, ...]:
    """Of GPU faults by node: the nodes with at least FAULTS_PER_NODE, by name."""
    return tuple(sorted(node for node, count in faults.items() if count >= FAULTS_PER_NODE))


def overrides_after(records: Sequence[AttemptRecord], limits: Limits) -> Overrides:
    """What the attempt after `records` runs with: every out-of-memory before it made it more careful."""
    memory, split = limits.resources.memory_bytes, 1
    for record in records:
        if record.failure is FailureClass.OOM_HOST:
            memory = _more_memory(memory, limits)
        if record.failure is FailureClass.OOM_CUDA and split * 2 <= limits.micro_batch:
            split *= 2
    changed = memory != limits.resources.memory_bytes
    return Overrides(memory_quantity(memory) if changed else None, split, limits.bad_nodes)


def after_failure(
    records: Sequence[AttemptRecord], limits: Limits, forgiven: Collection[str] = ()
) -> Verdict:
    """What follows the last of `records`, a failed one.

    `forgiven` are Job names: failures up to the newest of them are not counted.
    """
    last = records[-1]
    failure = last.failure or FailureClass.UNKNOWN
    before, after = overrides_after(records[:-1], limits), overrides_after(records, limits)
    start = max((n + 1 for n, record in enumerate(records) if record.job in forgiven), default=0)
    if start == len(records):
        return Verdict(True, after, "tried again on request")
    if failure is FailureClass.CANCELLED:
        return Verdict(True, after, "started again only on request")
    used = sum((record.failure or FailureClass.UNKNOWN) is failure for record in records[start:])
    budget = int(getattr(limits.retry, failure.value))
    if used > budget:
        spent = f"{failure} {_times(used)}, retry.{failure} is {budget}"
        return Verdict(False, after, f"{NOT_AGAIN}: {spent}")
    exhausted = _exhausted(failure, before, after, limits)
    if exhausted:
        return Verdict(False, after, f"{NOT_AGAIN}: {exhausted}")
    return Verdict(True, after, f"tried again ({used} of {budget}){_change(before, after, limits)}")


def _more_memory(memory: int, limits: Limits) -> int:
    more = int(memory * limits.retry.oomHostMemory)
    return more if limits.max_memory is None else max(memory, min(more, limits.max_memory))


def _exhausted(failure: FailureClass, before: Overrides, after: Overrides, limits: Limits) -> str:
    """Why a remedy can do no more; the empty string when it can, or when the class needs none."""
    if failure is FailureClass.OOM_CUDA and before.micro_batch_split == after.micro_batch_split:
        return f"a micro-batch of {limits.micro_batch} cannot be cut further"
    grows = limits.retry.oomHostMemory > 1
    if failure is FailureClass.OOM_HOST and grows and before.memory == after.memory:
        return f"memory is at the profile's maxMemory, {before.memory or limits.resources.memory}"
    return ""


def _change(before: Overrides, after: Overrides, limits: Limits) -> str:
    changes = []
    if after.memory != before.memory:
        changes.append(f"memory {before.memory or limits.resources.memory} → {after.memory}")
    if after.micro_batch_split != before.micro_batch_split:
        changes.append(f"micro-batch cut in {after.micro_batch_split}")
    if after.avoid_nodes:
        changes.append(f"away from {', '.join(after.avoid_nodes)}")
    return f": {'; '.join(changes)}" if changes else ""


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
