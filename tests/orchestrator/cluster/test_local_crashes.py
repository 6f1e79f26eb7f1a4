"""The controller of local Jobs killed at every change it makes to a file: the sweep ends as ever."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.local import LocalCluster
from orchestrator.cluster.slots import Slots
from orchestrator.controller.loop import Controller
from orchestrator.profile import Profile
from tests.orchestrator.cluster.stubs import CHANGES, Killed, StubMachine
from tests.orchestrator.controller.scene import a_sweep, filled_once, noted

SWEEP = a_sweep(4, scheduling={"parallelism": 2}, eval={"tasks": ["everyday"], "perplexity": "none"})
FATES: dict[tuple[str, int], int | str] = {
    ("r0", 1): "lost",
    ("r1", 1): 64,  # its user retries it
    ("r2", 1): "endless",  # until it is cancelled
    ("r3", 1): 79,
}
PROFILE = Profile(allowImageTags=True)
SETTLED = 2
MOST_TURNS = 60
TIMES = {"started_at", "finished_at", "gpu_seconds", "node"}


@pytest.fixture(scope="module", autouse=True)
def templates_are_filled_once() -> Iterator[None]:
    with filled_once():
        yield


@dataclass
class Play:
    """The sweep from its submission to its end in `dump`; `due` says in which change each process dies."""

    dump: Path
    due: list[int] = field(default_factory=list)
    machine: StubMachine = field(default_factory=lambda: StubMachine(FATES))
    changes: list[str] = field(default_factory=list)
    deaths: int = 0
    _life: tuple[contextlib.ExitStack, Controller] | None = None

    @property
    def user(self) -> LocalCluster:
        return LocalCluster(self.dump, PROFILE, Slots(("0", "1")))

    def run(self, patch: pytest.MonkeyPatch) -> Play:
        self.machine.install(patch)
        self.user.put_sweep(SWEEP.model_dump(exclude_none=True))
        quiet = 0
        for _ in range(MOST_TURNS):
            changed = [self.turn(), self.machine.step(), self._command()]
            quiet = 0 if any(changed) else quiet + 1
            if quiet == SETTLED:
                return self
        raise AssertionError(f"no end after {MOST_TURNS} turns: {self.status}")

    def turn(self) -> bool:
        """A turn of the controller, of a new one if there is none, maybe its last; whether it did a thing."""
        left = self.due[0] - len(self.changes) if self.due else None
        try:
            with CHANGES.watched(self.dump, left):
                if self._life is None:
                    self._life = self._born()
                self._life[1].step("demo")
                self._life[1].cluster.wait(0.0)
        except Killed:
            self.deaths += 1
            self.due.pop(0)
            self.end()
            return True
        finally:
            self.changes += CHANGES.seen
        return bool(CHANGES.seen)

    def _born(self) -> tuple[contextlib.ExitStack, Controller]:
        life, cluster = contextlib.ExitStack(), self.user
        with contextlib.ExitStack() as stack:
            stack.enter_context(cluster.lead())
            life = stack.pop_all()
        return life, Controller(cluster, PROFILE, check_schema=False)

    def end(self) -> None:
        """The kernel drops what a process held."""
        if self._life is not None:
            self._life[0].close()
        self._life = None

    def _command(self) -> bool:
        """Its user cancels r2 once it runs, and retries r1 once it has failed."""
        runs = [name for name in self.machine.started if name.startswith("demo--r2-")]
        failed = [
            name
            for name, record in self.user.records("demo").items()
            if name.startswith("demo--r1-") and record["state"] == "failed"
        ]
        wanted = {"cancel": ["r2"] if runs else [], "retry": failed}
        return self.user.put_control("demo", lambda old: old | {k: v for k, v in wanted.items() if v})

    # What came of it

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file and folder, and what changes when it does."""
        found = {}
        for path in sorted(self.dump.rglob("*")):
            stat = path.lstat()
            found[str(path.relative_to(self.dump))] = (stat.st_ino, stat.st_mtime_ns)
        return {name: stamp for name, stamp in found.items() if not name.endswith("lock")}

    @property
    def status(self) -> dict[str, Any]:
        stored = self.user.sweep("demo")
        assert stored is not None
        return dict(stored.get("status") or {})

    @property
    def outcome(self) -> dict[str, Any]:
        """All of it but times."""
        conditions = [
            {key: value for key, value in one.items() if key != "lastTransitionTime"}
            for one in self.status["conditions"]
        ]
        failures = sorted(map(str, self.status["failures"]))
        records = {
            name: {key: value for key, value in record.items() if key not in TIMES}
            for name, record in self.user.records("demo").items()
        }
        return {
            "status": {**self.status, "gpuHours": 0, "conditions": conditions, "failures": failures},
            "records": records,
            "started": dict(self.machine.started),
            "trained": dict(self.machine.trained),
            "files": sorted(self.files()),
        }


Played = Callable[..., Play]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    plays: list[Play] = []

    def start(*due: int) -> Play:
        plays.append(Play(tmp_path / str(len(plays)), list(due)))
        return plays[-1].run(monkeypatch)

    yield start
    for one in plays:
        one.end()


def check(one: Play, whole: Play) -> None:
    """It ended as the undisturbed one: nothing lost, nothing twice, nothing left over."""
    assert one.outcome == whole.outcome
    assert set(one.machine.trained.values()) == {1}
    assert set(one.machine.started.values()) == {1}
    before = one.files()
    one.turn()
    assert one.files() == before, "a quiet world is written to"
    one.end()
    one.turn()
    own = ".orch/leader.json"
    assert {**one.files(), own: ()} == {**before, own: (), ".orch": one.files()[".orch"]}


def test_the_undisturbed_sweep_is_what_it_should_be(play: Played) -> None:
    whole = play()
    counts = {state: count for state, count in whole.status["counts"].items() if count}
    assert counts == {"total": 4, "done": 3, "cancelled": 1}
    check(play(), whole)


def kind(change: str) -> str:
    """A change without the Job's name and what makes an aside's unique."""
    return re.sub(r"\.[0-9a-f]{8}\b", "", re.sub(r"demo--\S*?-(fetch|train|baseline|eval)-\d", "JOB", change))


def strike(play: Played, whole: Play, changes: Iterable[int]) -> None:
    for change in changes:
        with noted(f"killed before change {change}: {whole.changes[change]}"):
            one = play(change)
            assert one.deaths == 1
            check(one, whole)


def test_a_controller_killed_at_each_kind_of_change_changes_nothing(play: Played) -> None:
    whole = play()
    first = {kind(what): number for number, what in reversed(list(enumerate(whole.changes)))}
    assert len(first) > 20
    strike(play, whole, first.values())


@pytest.mark.exhaustive
def test_a_controller_killed_at_any_change_changes_nothing(play: Played) -> None:
    whole = play()
    strike(play, whole, range(len(whole.changes)))


def test_controllers_killed_again_and_again_change_nothing(play: Played) -> None:
    whole = play()
    for between in (5, 7, 11, 13):
        one = play(*(number * between for number in range(1, 10)))
        assert one.deaths == 9
        check(one, whole)
