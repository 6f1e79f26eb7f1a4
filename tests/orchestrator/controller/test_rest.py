"""Sums of what is left out: piece by piece as all at once."""

from __future__ import annotations

from typing import Any

from orchestrator.controller.outcome import AttemptRecord
from orchestrator.controller.rest import FAILURES_SHOWN, Best, Closed, Rest, best_of, newest_failures


def a_record(number: int, **changes: Any) -> AttemptRecord:
    values: dict[str, Any] = {
        "job": f"j{number:03}",
        "sweep": "s",
        "run_id": f"r{number}",
        "stage": "train",
        "attempt": 1,
        "state": "done",
        "finished_at": float(number),
        "gpu_seconds": 2.0,
    }
    return AttemptRecord.model_validate(values | changes)


def measured(number: int, kl: float) -> AttemptRecord:
    variants = [{"variant": "adapter", "run_id": f"r{number}", "text": [10, 1.0, 0.1, kl, 0.01]}]
    record = {"stage": "eval", "run_id": "e", "status": "done", "exit_code": 0, "variants": variants}
    return a_record(number, stage="eval", record=record)


def test_closing_one_by_one_sums_up_as_closing_all() -> None:
    failed = [
        a_record(number, state="failed", **{"class": "gpuFault", "node": f"n{number % 2}"})
        for number in range(30)
    ]
    records = (*failed, measured(40, 0.5), measured(41, 0.3), measured(42, 0.4))
    runs = {"r40", "r42"}
    at_once = Rest().plus(Closed(frozenset({"a", "b"}), records), runs)
    one_by_one = Rest()
    for record in records:
        one_by_one = one_by_one.plus(Closed(records=(record,)), runs)
    one_by_one = one_by_one.plus(Closed(frozenset({"a", "b"})), runs)
    assert one_by_one == at_once
    assert (at_once.done, at_once.gpu_seconds) == (2, 66.0)
    assert at_once.best == Best(run="r42", kl=0.4, klStderr=0.01), "r41 is not the sweep's"
    assert at_once.gpu_faults == {"n0": 15, "n1": 15}
    assert [record.job for record in at_once.failures] == [f"j{n:03}" for n in range(29, 9, -1)]
    assert len(at_once.failures) == FAILURES_SHOWN


def test_what_was_cancelled_is_no_failure_and_no_best_is_none() -> None:
    cancelled = a_record(1, state="failed", **{"class": "cancelled"})
    assert newest_failures([cancelled]) == ()
    assert best_of([cancelled, a_record(2)], {"r1", "r2"}) is None
