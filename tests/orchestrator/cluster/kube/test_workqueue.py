"""The queue: each key once, never with two workers, never lost."""

from __future__ import annotations

import itertools
import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from orchestrator.cluster.kube.workqueue import Retries, WorkQueue
from tests.orchestrator.cluster.kube.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock=clock)


def drain(queue: WorkQueue[str]) -> list[str]:
    """All that is ready, worked on one after another."""
    taken = []
    while (key := queue.get(0)) is not None:
        taken.append(key)
        queue.done(key)
    return taken


def test_keys_come_in_order_and_once(queue: WorkQueue[str]) -> None:
    for key in "abab":
        queue.add(key)
    assert len(queue) == 2
    assert drain(queue) == ["a", "b"]


def test_a_key_added_while_worked_on_comes_again_after_that(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.get(0) == "a"
    queue.add("a")
    queue.add("a")
    assert queue.get(0) is None  # no second worker
    queue.done("a")
    assert drain(queue) == ["a"]


def test_a_key_that_ripens_while_the_clock_is_read_ends_no_wait() -> None:
    """Seen after 2,500 turns: `get` without a timeout gave None, and the controller ended."""
    readings = itertools.count(1)
    queue: WorkQueue[str] = WorkQueue(clock=lambda: next(readings) / 1000)
    queue.add_after("a", 0.0015)  # due between the second reading and the third
    assert queue.get() == "a"


def test_delayed_keys_come_at_the_earliest_time_asked_for(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_after("late", 10)
    queue.add_after("soon", 5)
    queue.add_after("late", 3)
    queue.add_after("late", 20)
    queue.add_after("now", 0)
    assert queue.waiting == 2
    times = {}
    for _ in range(30):
        times |= dict.fromkeys(drain(queue), clock.now - 1000)
        clock.now += 1
    assert times == {"now": 0, "late": 3, "soon": 5}
    assert queue.waiting == 0


def test_a_delayed_key_that_comes_due_while_worked_on_waits(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.get(0)
    queue.add_after("a", 1)
    clock.now += 1
    assert queue.get(0) is None
    queue.done("a")
    assert drain(queue) == ["a"]


def test_failures_wait_longer_each_time_until_forgotten(clock: Clock) -> None:
    retries: Retries[str] = Retries(clock=clock)
    waits = [retries.next_s("a") for _ in range(20)]
    assert waits[:4] == [0.005, 0.01, 0.02, 0.04]
    assert waits[17] == 655.36
    assert waits[18:] == [1000.0, 1000.0]
    assert retries.next_s("b") == 0.005
    retries.forget("a")
    assert (retries.failures("a"), retries.next_s("a")) == (0, 0.005)
    capped: Retries[str] = Retries(most_s=30.0, clock=clock)
    assert max(capped.next_s("a") for _ in range(90)) == 30.0


def test_all_failures_together_are_ten_a_second_after_a_hundred(clock: Clock) -> None:
    retries: Retries[int] = Retries(clock=clock)
    waits = [retries.next_s(key) for key in range(120)]
    assert waits[:100] == [0.005] * 100
    assert waits[100:] == pytest.approx([n / 10 for n in range(1, 21)])
    clock.now += 2
    assert retries.next_s(1000) == pytest.approx(0.1)


def test_the_queue_counts_failures(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_rate_limited("a")
    assert drain(queue) == []
    clock.now += 0.005
    assert drain(queue) == ["a"]
    assert queue.failures("a") == 1
    queue.forget("a")
    assert queue.failures("a") == 0


def test_shutdown_hands_out_what_is_ready_and_drops_the_rest(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.add_after("due", 1)
    queue.add_after("later", 9)
    clock.now += 1
    queue.shutdown()
    assert queue.closed
    queue.add("new")
    queue.add_after("new", 1)
    queue.add_rate_limited("new")
    clock.now += 100
    assert drain(queue) == ["a", "due"]
    assert queue.get() is None  # without a timeout: it does not wait for what cannot come


def test_draining_waits_for_the_workers() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in "ab":
        queue.add(key)
    assert queue.get() == "a"
    queue.add("a")  # again, after this
    assert not queue.shutdown_with_drain(0.01)
    drained = threading.Event()

    def wait() -> None:
        if queue.shutdown_with_drain(60):
            drained.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    queue.done("a")
    assert drain(queue) == ["b", "a"]
    assert drained.wait(30)
    waiter.join()


def test_each_waiting_worker_knows_of_a_delayed_key() -> None:
    """One alone may be taken by another key meanwhile."""
    queue: WorkQueue[str] = WorkQueue()
    taken: list[str] = []
    release = threading.Event()
    got_both = threading.Event()

    def work() -> None:
        while (key := queue.get()) is not None:
            taken.append(key)
            if set(taken) == {"slow", "delayed"}:
                got_both.set()
            if key == "slow":
                release.wait(60)
            queue.done(key)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    queue.add_after("delayed", 0.05)
    queue.add("slow")
    assert got_both.wait(30)
    release.set()
    queue.shutdown()
    for worker in workers:
        worker.join(30)


def test_many_threads_lose_nothing_and_share_nothing() -> None:
    queue: WorkQueue[int] = WorkQueue()
    working: Counter[int] = Counter()
    worked: Counter[int] = Counter()
    overlaps: list[int] = []
    lock = threading.Lock()
    wanted = [0] * 10  # per key: the number of the last addition, as its worker must have seen
    seen = [0] * 10

    def work() -> None:
        while (key := queue.get()) is not None:
            with lock:
                working[key] += 1
                if working[key] > 1:
                    overlaps.append(key)
                seen[key] = wanted[key]
            with lock:
                working[key] -= 1
                worked[key] += 1
            queue.done(key)

    def add() -> None:
        for index in range(500):
            key = index % 10
            with lock:
                wanted[key] += 1
            if index % 3:
                queue.add(key)
            else:
                queue.add_after(key, 0.0001)
                queue.add(key)

    workers = [threading.Thread(target=work) for _ in range(4)]
    adders = [threading.Thread(target=add) for _ in range(4)]
    for thread in workers + adders:
        thread.start()
    for thread in adders:
        thread.join(60)
    assert queue.shutdown_with_drain(60)
    for thread in workers:
        thread.join(60)
    assert overlaps == []
    assert seen == wanted == [200] * 10


KEYS = st.sampled_from("abc")


class Model(RuleBasedStateMachine):
    """Every addition is followed by a piece of work that begins after it; no key is with two workers."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue: WorkQueue[str] = WorkQueue(clock=self.clock)
        self.owed: set[str] = set()
        self.due: dict[str, float] = {}
        self.working: set[str] = set()

    def ripen(self) -> None:
        for key in [key for key, due in self.due.items() if due <= self.clock.now]:
            del self.due[key]
            self.owed.add(key)

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.owed.add(key)

    @rule(key=KEYS, delay_s=st.integers(0, 5))
    def add_after(self, key: str, delay_s: int) -> None:
        self.queue.add_after(key, delay_s)
        if delay_s:
            self.due[key] = min(self.due.get(key, 1e9), self.clock.now + delay_s)
        else:
            self.owed.add(key)

    @rule(seconds=st.integers(1, 3))
    def pass_time(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def take(self) -> None:
        self.ripen()
        key = self.queue.get(0)
        ready = self.owed - self.working
        if key is None:
            assert not ready
        else:
            assert key in ready
            self.owed.discard(key)
            self.working.add(key)

    @rule(key=KEYS)
    def give_back(self, key: str) -> None:
        if key in self.working:
            self.working.discard(key)
            self.queue.done(key)

    @invariant()
    def what_is_ready_is_owed(self) -> None:
        self.ripen()
        assert len(self.queue) == len(self.owed - self.working)
        assert self.queue.waiting == len(self.due)

    def teardown(self) -> None:
        """All that is owed is handed out in the end."""
        self.ripen()
        owed = self.owed | self.working & self.owed
        for key in list(self.working):
            self.queue.done(key)
        assert sorted(drain(self.queue)) == sorted(owed)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
