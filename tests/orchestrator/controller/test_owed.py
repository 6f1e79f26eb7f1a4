"""A notice is stored as owed with the status that brings it, and told at least once whoever dies when."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from orchestrator.cluster.base import Event
from orchestrator.controller.owed import OWED_FOR_S, OWED_MOST, Owed, owing, too_old
from orchestrator.controller.postbox import POST_AGAIN_S, Postbox
from orchestrator.controller.status import Condition, SweepStatus
from orchestrator.controller.teller import Teller
from orchestrator.controller.webhook import Posted
from orchestrator.errors import NotFoundError
from orchestrator.profile import Notify
from tests.orchestrator.fakes import FakeCluster

SINCE = "1970-01-01T00:16:40Z"
NOTIFY = Notify(url="https://hooks.example/x")
ENDED = Owed(moment="ended", reason="AllDone", message="2 done", since=SINCE)
HALTED = Owed(moment="halted", reason="SameFailure", message="m", since=SINCE)
END = Event("AllDone", "2 done", moment="ended")


def ended(**more: Any) -> SweepStatus:
    done = Condition(
        type="Complete", status="True", reason="AllDone", message="2 done", lastTransitionTime=SINCE
    )
    return SweepStatus(conditions=[done], finished=True, **more)


OWING: dict[str, tuple[list[Owed], list[Event], Notify | None, set[Owed], list[Owed]]] = {
    "what is new": ([], [END], NOTIFY, set(), [ENDED]),
    "no news for the webhook": ([], [Event("Preempted", "m")], NOTIFY, set(), []),
    "what was owed stays": ([HALTED], [], NOTIFY, set(), [HALTED]),
    "both, the newest last": ([HALTED], [END], NOTIFY, set(), [HALTED, ENDED]),
    "once, though it is new again": ([ENDED], [END], NOTIFY, set(), [ENDED]),
    "what was taken goes": ([HALTED, ENDED], [], NOTIFY, {HALTED}, [ENDED]),
    "no webhook": ([HALTED], [END], None, set(), []),
    "a moment that is not wanted": (
        [HALTED],
        [END],
        NOTIFY.model_copy(update={"on": ["halted"]}),
        set(),
        [HALTED],
    ),
    "no more than can be kept": (
        [HALTED.model_copy(update={"since": str(n)}) for n in range(OWED_MOST)],
        [END],
        NOTIFY,
        set(),
        [*(HALTED.model_copy(update={"since": str(n)}) for n in range(1, OWED_MOST)), ENDED],
    ),
}


@pytest.mark.parametrize(("before", "events", "notify", "gone", "expected"), OWING.values(), ids=OWING)
def test_what_is_owed(
    before: list[Owed], events: list[Event], notify: Notify | None, gone: set[Owed], expected: list[Owed]
) -> None:
    assert owing(before, events, notify, gone, 1000.0) == expected


@pytest.mark.parametrize(
    ("since", "now", "old"),
    [(SINCE, 1000.0 + OWED_FOR_S, False), (SINCE, 1001.0 + OWED_FOR_S, True), ("", 0.0, True)],
)
def test_what_is_too_old(since: str, now: float, old: bool) -> None:
    assert too_old(ENDED.model_copy(update={"since": since}), now) is old


class Hook:
    """A webhook whose answers a test gives; `took` are the keys that arrived."""

    def __init__(self, took: list[str]) -> None:
        self.took = took
        self.waiting: list[Posted] = []
        self.full = False
        self.dies = ""

    def post(self, notify: Notify, notice: Mapping[str, Any], posted: Posted) -> bool:
        if self.dies == "before the post":
            raise Killed
        if not self.full:
            self.took.append(notice["key"])
            self.waiting.append(posted)
        if self.dies == "after the post":
            raise Killed
        return not self.full

    def close(self, within_s: float) -> None:
        self.answer(True)

    def answer(self, settled: bool) -> None:
        for posted in self.waiting:
            posted(settled)
        self.waiting.clear()


class Killed(BaseException):
    """SIGKILL."""


class World(FakeCluster):
    """A sweep that has just ended, and tellers of it; `dies` kills a teller before or after it stores."""

    def __init__(self, notify: Notify | None = NOTIFY) -> None:
        super().__init__()
        self.stored["demo"] = {"metadata": {"name": "demo", "uid": "u"}}
        self.took: list[str] = []
        self.dies = ""
        self.notify = notify

    def put_status(self, sweep: str, status: Mapping[str, Any]) -> None:
        if self.dies == "before":
            raise Killed
        super().put_status(sweep, status)
        if self.dies == "after":
            raise Killed

    def teller(self) -> tuple[Teller, Hook]:
        hook, box = Hook(self.took), Postbox()
        box.webhook = hook  # type: ignore[assignment]
        return Teller(self, postbox=box, notify=lambda: self.notify), hook

    def turn(self, teller: Teller) -> float | None:
        return teller.tell("demo", self.stored["demo"], ended(), self.now)

    @property
    def owed(self) -> list[Any]:
        return self.stored["demo"].get("status", {}).get("owed", [])

    @property
    def writes(self) -> int:
        return self.calls.count(("put_status", "demo"))


KEY = f"u:ended:AllDone:{SINCE}"


def test_it_is_owed_from_the_write_that_brings_it_to_the_one_after_it_was_taken() -> None:
    world = World()
    teller, hook = world.teller()
    woken: list[str] = []
    teller.postbox.wake = woken.append
    world.turn(teller)
    assert (world.writes, world.took, len(world.owed)) == (1, [KEY], 1)
    world.turn(teller)  # under way: nothing is posted twice
    assert (world.writes, world.took, woken) == (1, [KEY], [])
    hook.answer(True)
    assert woken == ["demo"]
    world.turn(teller)
    assert (world.writes, world.owed) == (2, [])
    for one in (teller, world.teller()[0]):
        world.turn(one)
    assert (world.writes, world.took) == (2, [KEY])


def test_without_a_webhook_nothing_is_owed_nor_spelled_out() -> None:
    world = World(notify=None)
    world.turn(world.teller()[0])
    assert "owed" not in world.stored["demo"]["status"]


def test_what_nobody_takes_is_posted_again_later_and_given_up_after_a_day() -> None:
    world = World()
    teller, hook = world.teller()
    world.turn(teller)
    hook.answer(False)
    assert world.turn(teller) == POST_AGAIN_S
    assert world.took == [KEY]
    world.now += POST_AGAIN_S
    world.turn(teller)
    assert (world.took, world.writes) == ([KEY, KEY], 1)
    hook.answer(False)
    world.now += OWED_FOR_S
    world.turn(teller)
    assert (world.took, world.owed) == ([KEY, KEY], [])


def test_one_that_is_old_is_tried_before_it_is_given_up() -> None:
    world = World()
    world.turn(world.teller()[0])
    world.took.clear()
    world.now += 2 * OWED_FOR_S
    world.turn(world.teller()[0])
    assert (world.took, len(world.owed)) == ([KEY], 1)


def test_a_webhook_that_is_behind_gets_it_later() -> None:
    world = World()
    teller, hook = world.teller()
    hook.full = True
    assert world.turn(teller) == POST_AGAIN_S
    hook.full = False
    world.turn(teller)
    assert world.took == [KEY]


def test_a_controller_that_ends_waits_for_the_answer_and_stores_it() -> None:
    world = World()
    teller, _ = world.teller()
    world.turn(teller)
    teller.close(1.0, world.now)
    assert (world.took, world.owed) == ([KEY], [])
    world.turn(world.teller()[0])
    assert world.took == [KEY]


def test_a_sweep_that_goes_on_still_owes_its_halt() -> None:
    world = World()
    world.stored["demo"]["status"] = {"owed": [HALTED.model_dump()], "conditions": []}
    teller, _ = world.teller()
    teller.tell("demo", world.stored["demo"], SweepStatus(), world.now)
    assert world.took == [f"u:halted:SameFailure:{SINCE}"]


def test_a_halt_that_comes_back_is_another_notice() -> None:
    world = World()
    teller, hook = world.teller()
    for reason in ("SameFailure", "GpuHoursUsed", "SameFailure"):
        halt = Condition(type="Halted", status="True", reason=reason, message="m", lastTransitionTime=SINCE)
        teller.tell("demo", world.stored["demo"], SweepStatus(conditions=[halt], active=1), world.now)
        hook.answer(True)
        world.now += 60.0
    assert len(set(world.took)) == 3
    hook.answer(False)


def test_a_notice_that_came_back_is_posted_again_if_nobody_took_it() -> None:
    world = World()
    teller, hook = world.teller()
    for settled in (True, False):
        world.turn(teller)
        hook.answer(settled)
        world.turn(teller)
        world.stored["demo"]["status"]["conditions"] = []  # it went on in between
    assert len(world.owed) == 1


@pytest.mark.parametrize("odd", [{"what": 1}, {"moment": None, "reason": "R"}, "text", 7, None])
def test_what_is_no_notice_is_passed_over(odd: Any) -> None:
    world = World()
    world.stored["demo"]["status"] = {"owed": [odd, HALTED.model_dump()], "conditions": []}
    teller, _ = world.teller()
    world.turn(teller)
    teller.close(1.0, world.now)
    assert world.took == [f"u:halted:SameFailure:{SINCE}", KEY]


def test_a_sweep_that_is_deleted_meanwhile_ends_no_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    teller, _ = world.teller()
    world.turn(teller)

    def gone(sweep: str, status: Mapping[str, Any]) -> None:
        raise NotFoundError(f"sweep {sweep}: is not submitted here")

    monkeypatch.setattr(world, "put_status", gone)
    teller.close(1.0, world.now)
    assert world.took == [KEY]


DEATHS = (
    "before it stores",
    "after it stores",
    "before the post",
    "after the post",
    "before the drop",
    "after the drop",
)


def lives(world: World, death: str) -> None:
    """A controller from its start to that death, or, with none, until nothing is left to do."""
    teller, hook = world.teller()
    try:
        hook.dies = death
        world.dies = {"before it stores": "before", "after it stores": "after"}.get(death, "")
        world.turn(teller)
        hook.answer(True)
        world.dies = {"before the drop": "before", "after the drop": "after"}.get(death, "")
        world.turn(teller)
    except Killed:
        pass
    world.dies = ""


@pytest.mark.parametrize("deaths", list(itertools.product(DEATHS, repeat=2)))
def test_whenever_controllers_die_it_is_told_at_least_once_with_one_key(deaths: tuple[str, ...]) -> None:
    check(deaths)


@settings(deadline=None, max_examples=50)
@given(strategies.lists(strategies.sampled_from(DEATHS), max_size=8))
def test_however_often_controllers_die_it_is_told(deaths: list[str]) -> None:
    check(deaths)


def check(deaths: list[str] | tuple[str, ...]) -> None:
    world = World()
    for death in deaths:
        lives(world, death)
    lives(world, "")
    assert set(world.took) == {KEY}
    assert world.owed == []
    writes, took = world.writes, len(world.took)
    lives(world, "")
    assert (world.writes, len(world.took)) == (writes, took), "a quiet world is told again"


def test_what_is_told_only_later_is_not_posted_before_it_is_stored() -> None:
    world = World()
    teller, _ = world.teller()
    teller.every_s = 2.0
    teller.tell("demo", world.stored["demo"], SweepStatus(), world.now)
    halt = Condition(
        type="Halted", status="True", reason="SameFailure", message="m", lastTransitionTime=SINCE
    )
    halted = SweepStatus(conditions=[halt], active=1)
    assert teller.tell("demo", world.stored["demo"], halted, world.now) == 2.0
    assert world.took == []
    world.now += 2.0
    assert teller.tell("demo", world.stored["demo"], halted, world.now) is None
    assert (len(world.took), len(world.owed)) == (1, 1)
