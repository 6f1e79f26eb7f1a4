"""A status that is not taken whole: by an older definition of Sweeps, or because it is too long."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from orchestrator.cluster.base import Event
from orchestrator.cluster.kube.paths import EVENTS
from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.leftout import NEWER, NOTHING, WORDS, dropped, without
from orchestrator.controller.observed import Control, Observed
from orchestrator.controller.outcome import FailureClass
from orchestrator.controller.owed import OWED_TEXT, owing
from orchestrator.controller.status import (
    Condition,
    Failure,
    Owed,
    RunState,
    SweepStatus,
    stamped,
    status_of,
)
from orchestrator.controller.teller import REFUSED_AGAIN_S, Teller
from orchestrator.controller.world import World
from orchestrator.errors import StatusRefusedError
from orchestrator.profile import Notify
from orchestrator.sweep.expand import expand
from tests.orchestrator.controller.jobworld import JobWorld
from tests.orchestrator.controller.scene import a_sweep, filled_once
from tests.orchestrator.controller.test_crashes import FATES, SETTLED, Play, taking
from tests.orchestrator.fakes import FakeCluster

STATUS = {
    "counts": {"total": 2},
    "owed": [{"moment": "ended"}],
    "failures": [{"run": "r", "evidence": "e"}],
    "conditions": [{"type": "A", "message": "m"}, {"type": "B"}],
}


def test_what_is_left_out_of_a_status() -> None:
    assert without(STATUS, NOTHING) == STATUS
    assert without(STATUS, NEWER) == {key: one for key, one in STATUS.items() if key != "owed"}
    assert without(STATUS, WORDS) == {"counts": {"total": 2}, "conditions": [{"type": "A"}, {"type": "B"}]}


@pytest.mark.parametrize("paths", [NOTHING, NEWER, WORDS, frozenset({("counts", "total")})])
def test_what_was_dropped_is_found_out(paths: frozenset[tuple[str, ...]]) -> None:
    assert dropped(STATUS, without(STATUS, paths)) == paths


def test_a_value_that_differs_is_not_dropped() -> None:
    assert dropped(STATUS, {**STATUS, "counts": {"total": 3}}) == NOTHING


# A whole sweep in a cluster whose definition is older


@pytest.fixture(scope="module", autouse=True)
def templates_are_filled_once() -> Iterator[None]:
    with filled_once():
        yield


@pytest.fixture
def took(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return taking(monkeypatch)


def played(**changes: Any) -> Play:
    play = Play(world=JobWorld(FATES))
    for name, value in changes.items():
        setattr(play.world.store, name, value)
    return play.run()


def told(play: Play) -> int:
    """How often a status was sent."""
    return sum("status" in call for call in play.calls)


def settled(play: Play) -> None:
    """At its end nothing is sent any more; a new controller finds out once what the place does not keep."""
    for _ in range(SETTLED):
        play.turn()
    before = len(play.calls)
    for _ in range(5):
        play.turn()
        play.world.now += 2 * REFUSED_AGAIN_S
    assert not [call for call in play.calls[before:] if not call.startswith("GET")]
    play._process = None
    version, before = play.world.store.version, told(play)
    for _ in range(5):
        play.turn()
    assert play.world.store.version == version
    assert told(play) - before <= 3


@pytest.mark.parametrize("prunes", [True, False], ids=["it drops the field", "it refuses the field"])
@pytest.mark.parametrize("field", ["owed", "failures"])
def test_an_older_definition_is_said_and_never_written_to_again_and_again(
    took: list[str], field: str, prunes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    whole = played()
    took.clear()
    older = played(unknown=frozenset({field}), prunes=prunes)
    assert field not in older.status
    assert older.status["counts"] == whole.status["counts"]
    assert older.records.keys() == whole.records.keys()
    assert len(set(took)) == 1, "the notice is lost, or is another each time"
    assert told(older) <= told(whole) + 4
    settled(older)
    said = [one.getMessage() for one in caplog.records if "older than this" in one.getMessage()]
    assert 1 <= len(said) <= 2, "it is not said, or at each turn"
    assert all("run `orch install --crd-only`" in one and field in one for one in said)
    assert "StatusCut" in {one["reason"] for one in older.world.objects(EVENTS).values()}


def test_a_definition_that_is_renewed_gets_the_whole_status_at_the_next_change(took: list[str]) -> None:
    play = played(unknown=frozenset({"failures"}), prunes=True)
    play.world.store.unknown = frozenset()
    play._process = None
    play.turn()
    assert play.status["failures"]


def test_a_status_that_is_too_large_is_told_without_its_words(took: list[str]) -> None:
    whole = played()
    large = played(most_bytes=900)
    assert (large.status["counts"], large.status["finished"]) == (whole.status["counts"], True)
    assert "failures" not in large.status
    settled(large)


# One status at a time


class Refusing(FakeCluster):
    """Takes no status that `refuses` says; `asked` are those that were tried."""

    def __init__(self, refuses: Callable[[Mapping[str, Any]], bool]) -> None:
        super().__init__()
        self.stored["demo"] = {"metadata": {"name": "demo"}}
        self.refuses = refuses
        self.asked: list[Mapping[str, Any]] = []

    def put_status(self, sweep: str, status: Mapping[str, Any]) -> None:
        self.asked.append(status)
        if self.refuses(status):
            raise StatusRefusedError("demo: cannot patch, got 413")
        super().put_status(sweep, status)

    def turn(self, teller: Teller, hours: float) -> float | None:
        done = Condition(type="Complete", status="True", reason="SomeFailed", message="m")
        failed = Failure.model_validate(
            {"run": "r", "stage": "train", "attempt": 1, "class": "unknown", "evidence": "e"}
        )
        status = SweepStatus(conditions=[done], failures=[failed], gpuHours=hours, finished=True)
        return teller.tell("demo", self.stored["demo"], status, self.now)


def test_what_was_refused_is_not_tried_at_each_change_but_now_and_then() -> None:
    cluster = Refusing(lambda status: "failures" in status)
    teller = Teller(cluster)
    for hours in range(4):
        assert cluster.turn(teller, hours) is None
        assert cluster.stored["demo"]["status"]["gpuHours"] == hours
    assert ["failures" in one for one in cluster.asked] == [True, False, False, False, False]
    cluster.refuses = lambda status: False
    cluster.now += REFUSED_AGAIN_S
    cluster.turn(teller, 9.0)
    assert cluster.stored["demo"]["status"]["failures"]


def test_a_status_of_which_nothing_is_taken_fails_no_turn_and_is_tried_later() -> None:
    cluster = Refusing(lambda status: True)
    teller = Teller(cluster)
    assert cluster.turn(teller, 0.0) == REFUSED_AGAIN_S
    tries = len(cluster.asked)
    assert cluster.turn(teller, 1.0) == REFUSED_AGAIN_S
    assert len(cluster.asked) == tries
    cluster.refuses = lambda status: False
    cluster.now += REFUSED_AGAIN_S
    assert cluster.turn(teller, 2.0) is None
    assert json.loads(json.dumps(cluster.stored["demo"]["status"]))["gpuHours"] == 2.0


# How long a status may be


FAILED = 10_000
TEXTS = {
    "letters": ("x", 64 * 1024),
    "the widest": ("\U0001f642", 128 * 1024),
    "controls": ("\x01", 192 * 1024),
}


@pytest.mark.parametrize(("letter", "most_bytes"), TEXTS.values(), ids=TEXTS)
def test_ten_thousand_failures_of_the_longest_words_make_a_short_status(letter: str, most_bytes: int) -> None:
    """In the bytes that a server stores: UTF-8, with controls spelled out."""
    sweep, words = a_sweep(100), letter * 40_000
    told = [
        RunState(run, "failed", "train", 1, "job", FailureClass.USER_ERROR, words, words)
        for run in expand(sweep)
        for _ in range(FAILED // 100)
    ]
    world = World(sweep, Catalogue(expand(sweep)), Observed(jobs=(), records={}, control=Control()), 0.0)
    halted = Condition(type="Halted", status="True", reason="SameFailure", message=letter * 100_000)
    status = status_of(world, told, halted, finished=True)
    assert status.counts["failed"] == FAILED
    whole = stamped(status, None, 1, 0.0).to_json()
    whole["owed"] = [
        one.model_dump()
        for one in owing(
            [Owed(moment="halted", reason="R", message=letter * OWED_TEXT, since=str(n)) for n in range(99)],
            [Event("SomeFailed", letter * 100_000, moment="ended")],
            Notify(url="https://hooks.example/x"),
            (),
            0.0,
        )
    ]
    assert len(json.dumps(whole, ensure_ascii=False).encode()) < most_bytes
