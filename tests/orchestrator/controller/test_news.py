"""Events: what changed, told once, with the words that people search for."""

from __future__ import annotations

import pytest

from orchestrator.cluster.base import Event
from orchestrator.controller.news import news
from orchestrator.controller.outcome import FailureClass
from orchestrator.controller.status import Condition, Failure, SweepStatus

ACCEPTED = Condition(type="Accepted", status="True", reason="Valid", message="3 runs")
GOING = Condition(type="Complete", status="False", reason="Progressing", message="3 runs to go")
OOM = Failure(run="a-1", stage="train", attempt=1, failure=FailureClass.OOM_HOST, evidence="OOMKilled (137)")


def a_status(*conditions: Condition, failures: tuple[Failure, ...] = ()) -> SweepStatus:
    return SweepStatus(conditions=list(conditions), failures=list(failures))


@pytest.mark.parametrize(
    ("condition", "event"),
    [
        (ACCEPTED, Event("Accepted", "3 runs")),
        (
            Condition(type="Accepted", status="False", reason="Invalid", message="x"),
            Event("Refused", "x", True),
        ),
        (GOING, None),
        (
            Condition(type="Complete", status="True", reason="AllDone", message="3 done"),
            Event("AllDone", "3 done"),
        ),
        (
            Condition(type="Complete", status="True", reason="SomeFailed", message="1 failed"),
            Event("SomeFailed", "1 failed", True),
        ),
        (
            Condition(type="JobsRefused", status="True", reason="QuotaExceeded", message="exceeded quota: q"),
            Event("QuotaExceeded", "exceeded quota: q", True),
        ),
        (
            Condition(type="Halted", status="True", reason="CanaryFailed", message="m"),
            Event("CanaryFailed", "m", True),
        ),
        (Condition(type="Suspended", status="True", reason="Requested"), Event("Requested", "")),
    ],
)
def test_a_new_condition_is_told_and_then_no_more(condition: Condition, event: Event | None) -> None:
    after = a_status(condition)
    assert news(None, after) == ([event] if event else [])
    assert news(after.to_json(), after) == []


def test_a_message_that_moves_is_no_news() -> None:
    before = a_status(ACCEPTED, GOING)
    after = a_status(ACCEPTED, GOING.model_copy(update={"message": "2 runs to go"}))
    assert news(before.to_json(), after) == []


def test_each_failure_is_told_once_oldest_first() -> None:
    second = OOM.model_copy(update={"attempt": 2})
    told = news(a_status(ACCEPTED).to_json(), a_status(ACCEPTED, failures=(second, OOM)))
    assert [event.message for event in told] == [
        "a-1: train 1 failed, oomHost: OOMKilled (137)",
        "a-1: train 2 failed, oomHost: OOMKilled (137)",
    ]
    assert [(event.reason, event.warning) for event in told] == [("OomHost", True)] * 2
    known = a_status(ACCEPTED, failures=(OOM,)).to_json()
    assert [event.message for event in news(known, a_status(ACCEPTED, failures=(second, OOM)))] == [
        "a-1: train 2 failed, oomHost: OOMKilled (137)"
    ]
