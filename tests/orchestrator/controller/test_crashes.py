"""A controller killed, or cut off, at every call to the API server: the sweep ends as if nothing had been.

Death: the process's memory is gone and a new one goes on. A cut: the server may have acted, and the
controller, which does not know, goes on.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.cluster.kube import decode
from orchestrator.cluster.kube.cluster import KubeCluster
from orchestrator.cluster.kube.paths import CONFIG_MAPS, EVENTS, JOBS, PODS, SWEEPS
from orchestrator.cluster.kube.store import Item
from orchestrator.cluster.kube.watched import WatchedCluster
from orchestrator.controller import postbox
from orchestrator.controller.loop import Controller
from orchestrator.controller.serve import HOURS_EVERY_S, TELL_EVERY_S
from orchestrator.errors import ClusterError
from orchestrator.profile import Notify, Profile
from orchestrator.sweep.naming import LABEL_RUN, LABEL_STAGE
from tests.orchestrator.cluster.kube.apistore import Asked, Json, store
from tests.orchestrator.controller.jobworld import (
    NAMESPACE,
    Blow,
    Fate,
    Fault,
    JobWorld,
    Killed,
    Process,
    ProcessApi,
)
from tests.orchestrator.controller.scene import a_sweep, filled_once, noted

SWEEP = a_sweep(
    4,
    scheduling={"parallelism": 2},
    eval={"tasks": ["everyday"], "perplexity": "none"},
)
FATES: dict[tuple[str, int], Fate] = {
    ("r0", 1): "preempted",
    ("r1", 1): 64,  # its user retries it
    ("r2", 1): "endless",  # until it is cancelled
    ("r3", 1): 79,
}
PROFILE = Profile(allowImageTags=True, keepJobs="1h")
DECODERS: dict[Any, Callable[[bytes], Any]] = {
    SWEEPS: decode.sweep,
    JOBS: decode.job,
    PODS: decode.pod,
    CONFIG_MAPS: decode.record,
}
SETTLED = 2
MOST_STEPS = 120


class Watcher:
    """The controller's own cluster; what its reflectors' threads would do happens at `look`.

    `late` says of each watch, each time, whether it has nothing to tell yet.
    """

    def __init__(self, api: ProcessApi, world: JobWorld, late: Callable[[], bool]) -> None:
        self.cluster = WatchedCluster(api, lambda sweep: None)
        self._world = world
        self._late = late
        self._seen: dict[Any, int] = {}
        for resource, reflector in self.cluster.reflectors.items():
            [page] = api.pages(resource.path(NAMESPACE))
            listed = json.loads(page)
            items = [self._item(resource, one) for one in listed["items"] or []]
            reflector.store.swap({one.key: one for one in items}, listed["metadata"]["resourceVersion"])
            self._seen[resource] = len(world.store.history)

    def look(self) -> None:
        for resource, reflector in self.cluster.reflectors.items():
            if self._late():
                continue
            for change in self._world.store.history[self._seen[resource] :]:
                if change.collection == resource.path(NAMESPACE):
                    item = self._item(resource, change.object)
                    deleted = change.kind == "DELETED"
                    (reflector.store.delete if deleted else reflector.store.upsert)(item)
            self._seen[resource] = len(self._world.store.history)

    def _item(self, resource: Any, body: Json) -> Item[Any]:
        kept = DECODERS[resource](json.dumps(body).encode())
        return Item(kept.name, kept.resource_version, kept)


class Reader:
    """A cluster that is read afresh."""

    def __init__(self, api: ProcessApi, world: JobWorld, late: Callable[[], bool]) -> None:
        self.cluster = KubeCluster(api)

    def look(self) -> None:
        pass


@dataclass
class Play:
    """The sweep from its submission to its end, with blows on the way. `writers` requests at once."""

    blows: Callable[[int], Blow | None] = lambda call: None
    eyes: type[Watcher] | type[Reader] = Watcher
    writers: int = 1
    late: Callable[[], bool] = lambda: False
    world: JobWorld = field(default_factory=lambda: JobWorld(FATES))
    calls: list[str] = field(default_factory=list)
    deaths: int = 0
    struck: int = 0

    def run(self) -> Play:
        self.world.submit(SWEEP.model_dump(exclude_none=True))
        self._process: tuple[Any, Controller] | None = None
        quiet = 0
        for _ in range(MOST_STEPS):
            version, struck = self.world.store.version, self.struck
            self.turn()
            self.world.step()
            self._user()
            quiet = quiet + 1 if (version, struck) == (self.world.store.version, self.struck) else 0
            if quiet >= SETTLED and self.status.get("finished"):
                return self
        raise AssertionError(f"no end after {MOST_STEPS} steps: {self.status}")

    def turn(self) -> None:
        try:
            if self._process is None:
                self._process = self._born()
            eyes, controller = self._process
            eyes.look()
            controller.step("demo")
        except Killed:
            self._process = None
            self.deaths += 1
        except ClusterError:
            pass  # tried again, as controller.serve does

    def _born(self) -> tuple[Any, Controller]:
        api = ProcessApi(Process(self.world, self._due))
        eyes = self.eyes(api, self.world, lambda: self.late())
        controller = Controller(
            eyes.cluster,
            PROFILE,
            lambda: self.world.now,
            check_schema=False,
            writers=self.writers,
            tell_every_s=TELL_EVERY_S,
            hours_every_s=HOURS_EVERY_S,
        )
        return eyes, controller

    def _due(self, asked: Asked) -> Blow | None:
        self.calls.append(f"{asked.method} {asked.path.removeprefix('/apis/').split('/')[-2:]}")
        blow = self.blows(len(self.calls) - 1)
        self.struck += blow is not None
        return blow

    def _user(self) -> None:
        """Cancels r2 once it runs, and retries r1 once it has failed."""
        [sweep] = self.world.objects(SWEEPS).values()
        control: dict[str, list[str]] = {}
        for job in self.world.objects(JOBS).values():
            if job["metadata"]["labels"][LABEL_RUN].startswith("r2-"):
                control["cancel"] = ["r2"]
        control["retry"] = [
            name
            for name, record in self.records.items()
            if record["run_id"].startswith("r1-") and record["state"] == "failed"
        ]
        before = sweep["spec"].get("control", {})
        merged = {key: control.get(key) or before.get(key, []) for key in ("cancel", "retry")}
        if merged != before and any(merged.values()):
            with self.world.store.changed:
                changed = {**sweep, "spec": {**sweep["spec"], "control": merged}}
                store(self.world.store, SWEEPS.path(NAMESPACE), "demo", changed)

    # What came of it

    @property
    def status(self) -> Json:
        return dict(self.world.objects(SWEEPS)["demo"].get("status") or {})

    @property
    def records(self) -> dict[str, Json]:
        return {
            name: json.loads(one["data"][decode.RECORD_KEY])
            for name, one in self.world.objects(CONFIG_MAPS).items()
        }

    @property
    def outcome(self) -> Json:
        """All of it but times, and the words on a preempted pod, of which only a watcher saw the end."""
        status = {key: value for key, value in self.status.items() if key not in ("gpuHours", "conditions")}
        conditions = [
            {key: value for key, value in one.items() if key != "lastTransitionTime"}
            for one in self.status["conditions"]
        ]
        return {
            "records": {name: _timeless(record) for name, record in self.records.items()},
            "status": status | {"failures": sorted(map(str, map(_timeless, status["failures"])))},
            "conditions": conditions,
            "jobs": dict(self.world.created(JOBS)),
        }

    @property
    def told(self) -> set[tuple[str, str]]:
        """Events, by reason and text."""
        return {
            (one["reason"], "" if one["reason"] == "Preempted" else one["note"])
            for one in self.world.objects(EVENTS).values()
        }


def _timeless(value: Json) -> Json:
    hidden = {"started_at", "finished_at", "gpu_seconds", "node"}
    hidden |= {"evidence"} if value.get("class") == "preempted" else set()
    return {key: one for key, one in value.items() if key not in hidden}


@pytest.fixture(scope="module", autouse=True)
def templates_are_filled_once() -> Iterator[None]:
    with filled_once():
        yield


@pytest.fixture(scope="module")
def whole() -> Play:
    """The sweep that nothing happens to."""
    return Play().run()


def check(play: Play, whole: Play) -> None:
    """It ended as the undisturbed one: nothing lost, nothing twice, nothing left over."""
    assert play.outcome == whole.outcome
    assert play.told <= whole.told
    assert set(play.world.created(JOBS).values()) == {1}, "an attempt was made twice"
    assert set(play.world.done_pods().values()) == {1}, "what was done was run again"
    for name, job in play.world.objects(JOBS).items():
        assert name in play.records, "a Job is over, and nothing is recorded of it"
        assert "ttlSecondsAfterFinished" in job["spec"], "nobody will remove the Job"
    silent(play)
    play.world.now += 3600
    play.world.step()
    assert play.world.objects(JOBS) == play.world.objects(PODS) == {}
    silent(play)
    play.world.delete_sweep("demo")
    play.world.step()
    left = {kind.plural: play.world.objects(kind) for kind in (JOBS, PODS, CONFIG_MAPS)}
    assert not any(left.values()), left


def silent(play: Play) -> None:
    """Neither the controller that is there nor a new one finds anything to write."""
    version, before = play.world.store.version, len(play.calls)
    play.turn()
    play._process = None
    play.turn()
    assert play.world.store.version == version
    assert not [call for call in play.calls[before:] if not call.startswith("GET")]


def at(call: int, fault: Fault, after: bool) -> Callable[[int], Blow | None]:
    return lambda now: Blow(call, fault, after) if now == call else None


FAULTS = pytest.mark.parametrize("fault", ["die", "reset"])


def kind(call: str) -> str:
    """A call without the Job's name: POST, PATCH … of what, and of which stage."""
    return re.sub(r"demo--\S*?-(fetch|train|baseline|eval)-\d", r"\1", call)


def strike(
    whole: Play, calls: Iterable[int], fault: Fault, after: bool, eyes: type[Watcher] | type[Reader] = Watcher
) -> None:
    for call in calls:
        with noted(f"struck at call {call}"):
            play = Play(at(call, fault, after), eyes).run()
            assert play.deaths == (fault == "die")
            check(play, whole)
            # What a living controller could not tell is not told again: it must not hold up the status.
            telling = "events" in play.calls[call] or eyes is Reader  # which asks for the Sweep's uid first
            assert play.told == whole.told or (fault == "reset" and telling)


def test_the_undisturbed_sweep_is_what_it_should_be(whole: Play) -> None:
    attempts = Counter(record["run_id"].split("-")[0] for record in whole.records.values())
    counts = {state: count for state, count in whole.status["counts"].items() if count}
    assert counts == {"total": 4, "done": 3, "cancelled": 1}
    assert (attempts["r0"], attempts["r1"], attempts["r3"]) == (2, 2, 2)
    stages = {job["metadata"]["labels"][LABEL_STAGE] for job in whole.world.objects(JOBS).values()}
    assert stages == {"fetch", "baseline", "train", "eval"}
    assert {call.split()[0] for call in whole.calls} == {"GET", "POST", "PATCH", "DELETE"}
    check(Play().run(), whole)
    check(Play(eyes=Reader).run(), whole)


@pytest.mark.slow
def test_a_controller_killed_after_any_call_changes_nothing(whole: Play) -> None:
    strike(whole, range(len(whole.calls)), "die", True)


def test_a_controller_cut_off_after_each_kind_of_call_changes_nothing(whole: Play) -> None:
    first = {kind(call): number for number, call in reversed(list(enumerate(whole.calls)))}
    assert len(first) > 10
    strike(whole, first.values(), "reset", True)


def taking(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the notices that a webhook of every Play gets, which takes each at once."""
    keys: list[str] = []

    class Taker:
        def post(self, notify: Notify, notice: Json, posted: Callable[[bool], None]) -> bool:
            keys.append(notice["key"])
            posted(True)
            return True

    notify = Notify(url="https://hooks.example/x")
    monkeypatch.setitem(globals(), "PROFILE", PROFILE.model_copy(update={"notify": notify}))
    monkeypatch.setattr(postbox, "Webhook", Taker)
    return keys


@pytest.fixture
def took(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return taking(monkeypatch)


@FAULTS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_controller_struck_at_its_last_writes_has_told_the_end(
    took: list[str], fault: Fault, after: bool
) -> None:
    calls = Play().run().calls
    writes = [number for number, call in enumerate(calls) if "status" in call][-3:]
    for call in writes:
        with noted(f"struck at call {call}"):
            took.clear()
            play = Play(at(call, fault, after)).run()
            assert play.struck == 1
            assert len(set(took)) == 1, "the end was not told, or as two"
            assert "owed" not in play.status
            silent(play)


@pytest.mark.exhaustive
@FAULTS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("eyes", [Watcher, Reader])
def test_a_controller_struck_at_any_call_changes_nothing(
    whole: Play, fault: Fault, after: bool, eyes: type[Watcher] | type[Reader]
) -> None:
    calls = range(len(Play(eyes=eyes).run().calls))
    strike(whole, calls, fault, after, eyes)


@pytest.mark.parametrize("seed", range(8))
def test_a_controller_struck_again_and_again_changes_nothing(whole: Play, seed: int) -> None:
    chance = random.Random(seed)

    def often(call: int) -> Blow | None:
        if chance.random() > 0.2:
            return None
        return Blow(call, chance.choice(["die", "reset"]), chance.random() < 0.5)

    play = Play(often, writers=1 + 3 * (seed % 2), late=lambda: chance.random() < 0.3).run()
    assert play.deaths
    play.blows, play.late = (lambda call: None), (lambda: False)
    play.turn()
    check(play, whole)


@pytest.mark.parametrize("seed", range(8))
def test_watches_that_run_apart_change_nothing(whole: Play, seed: int) -> None:
    chance = random.Random(seed)
    play = Play(late=lambda: chance.random() < 0.5).run()
    play.late = lambda: False
    play.turn()
    check(play, whole)
