"""How fast writes go, and how long a fault is waited out."""

from __future__ import annotations

import random
import threading

import pytest

from orchestrator.cluster.kube.backoff import Backoff
from orchestrator.cluster.kube.limiter import BURST, WRITES_PER_S, Limiter
from tests.orchestrator.cluster.kube.clock import Clock


def limiter(clock: Clock, rate: float = 10.0, burst: int = 5) -> Limiter:
    return Limiter(rate, burst, clock=clock, wait=clock.wait)


def took(clock: Clock, limiter: Limiter, writes: int) -> float:
    begin = clock.now
    for _ in range(writes):
        assert limiter.acquire()
    return clock.now - begin


def test_a_thousand_jobs_by_default_take_twelve_seconds() -> None:
    clock = Clock()
    ours = Limiter(clock=clock, wait=clock.wait)
    assert took(clock, ours, 1000) == pytest.approx((1000 - BURST) / WRITES_PER_S)
    assert took(clock, ours, 50 * 10) < 10  # at least 50 a second go on for ever
    assert ours.waited_s == pytest.approx(sum(clock.waits))


@pytest.mark.parametrize(
    ("idle_s", "writes", "seconds"), [(0, 5, 0.0), (0, 6, 0.1), (0, 15, 1.0), (9999, 5, 0.0), (9999, 15, 1.0)]
)
def test_a_burst_and_then_the_rate(idle_s: float, writes: int, seconds: float) -> None:
    clock = Clock()
    ours = limiter(clock)
    clock.now += idle_s
    assert took(clock, ours, writes) == pytest.approx(seconds)


@pytest.mark.parametrize(("retry_after_s", "held_s"), [(None, 1.0), (0.0, 0.0), (7.0, 7.0), (9999.0, 60.0)])
def test_a_429_holds_all_writes_as_long_as_asked(retry_after_s: float | None, held_s: float) -> None:
    clock = Clock()
    ours = limiter(clock)
    ours.throttled(retry_after_s)
    assert took(clock, ours, 1) == pytest.approx(held_s)


def test_a_429_halves_the_rate_once_for_all_in_flight_and_successes_bring_it_back() -> None:
    clock = Clock()
    ours = limiter(clock, rate=60.0)
    for _ in range(16):
        ours.throttled(1.0)
    assert (ours.rate, ours.throttles) == (30.0, 16)
    clock.now += 1
    ours.throttled(1.0)
    assert ours.rate == 15.0
    for _ in range(10):
        clock.now += 1
        ours.succeeded()
    assert ours.rate == pytest.approx(25.0)
    for _ in range(100):
        clock.now += 5  # idle time is no proof of anything: it counts as one second
        ours.succeeded()
    assert ours.rate == 60.0
    for _ in range(20):
        clock.now += 2
        ours.throttled(0)
    assert ours.rate == 1.0


def test_nothing_saved_up_is_let_loose_after_a_429() -> None:
    clock = Clock()
    ours = limiter(clock, rate=2.0, burst=100)
    ours.throttled(1.0)
    clock.now += 1.0
    assert took(clock, ours, 3) == pytest.approx(1.0)  # two saved, the third a second later at 1/s


def test_who_waits_is_woken_by_the_end() -> None:
    ours = Limiter(rate=0.001, burst=1)
    assert ours.acquire()
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(ours.acquire()))
    thread.start()
    ours.close()
    thread.join(30)
    assert answers == [False]
    assert not ours.acquire()


class Middle(random.Random):
    """Half of every range."""

    def random(self) -> float:
        return 0.5


def test_the_backoff_doubles_is_jittered_and_forgets_after_quiet() -> None:
    clock = Clock()
    backoff = Backoff(clock=clock, rng=Middle())
    waits = []
    for _ in range(8):
        waits.append(backoff.next_s())
        clock.now += waits[-1]
    assert waits == pytest.approx([1.2, 2.4, 4.8, 9.6, 19.2, 38.4, 45.0, 45.0])
    clock.now += 119
    assert backoff.next_s() == 45.0
    clock.now += 45 + 121
    assert backoff.next_s() == pytest.approx(1.2)


@pytest.mark.parametrize(("asked_s", "wait_s"), [(None, 1.2), (0.0, 1.2), (7.0, 7.0), (1e9, 300.0)])
def test_the_backoff_waits_at_least_as_long_as_asked(asked_s: float | None, wait_s: float) -> None:
    assert Backoff(clock=Clock(), rng=Middle()).next_s(asked_s) == pytest.approx(wait_s)


def test_the_jitter_spreads_up_to_twice() -> None:
    waits = [Backoff(clock=Clock(), rng=random.Random(seed)).next_s() for seed in range(200)]
    assert 0.8 <= min(waits) < 0.85
    assert 1.55 < max(waits) < 1.6
