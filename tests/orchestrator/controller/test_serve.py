"""When a sweep is looked at again, and how long changes gather before that."""

from __future__ import annotations

import pytest

from orchestrator.controller.loop import Turn
from orchestrator.controller.metrics import Metrics
from orchestrator.controller.serve import (
    FINISHED_AGAIN_S,
    SETTLE_S,
    UNFINISHED_AGAIN_S,
    ProfileFile,
    Service,
    next_turn_s,
    settle_s,
)
from orchestrator.controller.status import SweepStatus
from tests.orchestrator.controller.jobworld import JobWorld, Process, ProcessApi

CASES = {
    "it goes on": (False, None, UNFINISHED_AGAIN_S),
    "something is due soon": (False, 2.0, 2.0),
    "its GPU-hours are to be told in ten minutes": (False, 590.0, UNFINISHED_AGAIN_S),
    "nothing is left to do": (True, None, FINISHED_AGAIN_S),
    "its last status is not told yet": (True, 1.5, 1.5),
}


@pytest.mark.parametrize(("finished", "again_s", "expected"), CASES.values(), ids=CASES)
def test_a_sweep_is_looked_at_as_usual_or_sooner(
    finished: bool, again_s: float | None, expected: float
) -> None:
    assert next_turn_s(Turn(SweepStatus(finished=finished), again_s)) == expected


@pytest.mark.parametrize(
    ("thought_s", "gather_s"), [(0.0, SETTLE_S), (0.001, SETTLE_S), (0.05, 0.5), (1.0, 10.0)]
)
def test_a_sweep_thinks_for_a_tenth_of_the_time_at_most(thought_s: float, gather_s: float) -> None:
    assert settle_s(thought_s) == pytest.approx(gather_s)


def test_a_notice_that_is_settled_wakes_its_sweep() -> None:
    """Else a sweep at rest would owe it for another ten minutes."""
    service = Service(ProcessApi(Process(JobWorld(), lambda asked: None)), ProfileFile(None), Metrics())
    service.controller.teller.postbox.wake("demo")
    assert service.queue.waiting == 1
