"""Events: what changed, told once, with the words that people search for."""

from __future__ import annotations

import pytest

from orchestrator.cluster.base import Event
from orchestrator.controller import advice
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
            Event("Refused", "x; correct the sweep's file and submit it again", True),
        ),
        (GOING, None),
        (
            Condition(type="Complete", status="True", reason="AllDone", message="3 done"),
            Event("AllDone", "3 done", moment="ended"),
        ),
        (
            Condition(type="Complete", status="True", reason="SomeFailed", message="1 failed"),
            Event(
                "SomeFailed",
                "1 failed; `orch why RUN` tells why; `orch retry night` tries those again",
                True,
                "ended",
            ),
        ),
        (
            Condition(type="JobsRefused", status="True", reason="QuotaExceeded", message="exceeded quota: q"),
            Event(
                "QuotaExceeded",
                "exceeded quota: q; it is tried again every 30 s; free or raise the quota, or ask for less",
                True,
            ),
        ),
        (
            Condition(type="Halted", status="True", reason="CanaryFailed", message="m"),
            Event(
                "CanaryFailed",
                "m; correct it and submit again, or `orch retry night` if it is mended already",
                True,
                "halted",
            ),
        ),
        (
            Condition(type="Suspended", status="True", reason="Requested"),
            Event("Requested", "`orch resume night` goes on"),
        ),
    ],
)
def test_a_new_condition_is_told_and_then_no_more(condition: Condition, event: Event | None) -> None:
    after = a_status(condition)
    assert news(None, after, "night") == ([event] if event else [])
    assert news(after.to_json(), after, "night") == []


def test_a_message_that_moves_is_no_news() -> None:
    before = a_status(ACCEPTED, GOING)
    after = a_status(ACCEPTED, GOING.model_copy(update={"message": "2 runs to go"}))
    assert news(before.to_json(), after, "night") == []


def test_each_failure_is_told_once_oldest_first() -> None:
    second = OOM.model_copy(update={"attempt": 2})
    told = news(a_status(ACCEPTED).to_json(), a_status(ACCEPTED, failures=(second, OOM)), "night")
    assert [event.message for event in told] == [
        "a-1: train 1 failed, oomHost: OOMKilled (137)",
        "a-1: train 2 failed, oomHost: OOMKilled (137)",
    ]
    assert [(event.reason, event.warning) for event in told] == [("OomHost", True)] * 2
    known = a_status(ACCEPTED, failures=(OOM,)).to_json()
    assert [event.message for event in news(known, a_status(ACCEPTED, failures=(second, OOM)), "night")] == [
        "a-1: train 2 failed, oomHost: OOMKilled (137)"
    ]


@pytest.mark.parametrize(
    ("failure", "remedy", "said"),
    [
        (FailureClass.OOM_HOST, "tried again (1 of 2): memory 8Gi → 12Gi",
         "tried again (1 of 2): memory 8Gi → 12Gi"),
        (FailureClass.OOM_HOST, "not tried again: memory is at the profile's maxMemory, 8Gi",
         "not tried again: memory is at the profile's maxMemory, 8Gi; raise resources.memory (and maxMemory "
         "of the profile) and submit again"),
        (FailureClass.CONFIG, "", "make what is missing, or correct the profile, then `orch retry`"),
        (None, None, ""),
    ],
    ids=["it goes on by itself", "someone has to do something", "no Job could be made", "nothing is known"],
)  # fmt: skip
def test_what_follows_from_a_failure(failure: FailureClass | None, remedy: str | None, said: str) -> None:
    assert advice.after(failure, remedy) == said


def test_every_class_of_failure_and_every_halt_says_what_to_do() -> None:
    assert set(advice.FAILURES) == set(FailureClass)
    halts = {"CanaryFailed", "SameFailure", "CannotRender"}  # GpuHoursUsed says it in its message
    assert halts <= set(advice.CONDITIONS)


def test_a_failure_is_told_with_what_followed() -> None:
    one = OOM.model_copy(update={"remedy": "tried again (1 of 2)"})
    [event] = news(None, a_status(failures=(one,)), "night")
    assert event.message == "a-1: train 1 failed, oomHost: OOMKilled (137); tried again (1 of 2)"
