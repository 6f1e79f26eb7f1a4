"""One replica leads: it says so, gives up in time whatever the server does, and another takes over."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.election import Terms
from orchestrator.cluster.kube.errors import Unavailable
from orchestrator.cluster.kube.leader import Leader, WhileLeading
from orchestrator.cluster.kube.limiter import Limiter
from orchestrator.cluster.kube.paths import JOBS, LEASES
from tests.orchestrator.cluster.kube.apiserver import FakeApiServer, cut, hang, refuse
from tests.orchestrator.cluster.kube.apistore import respond
from tests.orchestrator.cluster.kube.clock import Clock

PATH = LEASES.path("ml")
LIMIT_S = 60.0
SHORT = Terms(lease_s=1.0, renew_s=0.6, retry_s=0.05, request_s=0.3)
FROZEN = Terms(lease_s=15.0, renew_s=10.0, retry_s=0.01, request_s=5.0)
"""For a clock that only the test moves."""


class Replica:
    """A leader and what it said."""

    def __init__(self, api: Api, identity: str, terms: Terms, clock: Clock | None = None) -> None:
        self.started = threading.Event()
        self.lost = threading.Event()
        self.leader = Leader(
            api,
            "orch",
            identity=identity,
            on_started=self.started.set,
            on_lost=self.lost.set,
            terms=terms,
            rng=random.Random(0),
            **({"clock": clock} if clock else {}),
        )

    def stop(self) -> None:
        self.leader.stop()
        self.leader.join(LIMIT_S)


Start = Callable[..., Replica]


@pytest.fixture
def replica(api: Api) -> Iterator[Start]:
    made: list[Replica] = []

    def start(identity: str, terms: Terms = SHORT, clock: Clock | None = None) -> Replica:
        made.append(Replica(api, identity, terms, clock))
        made[-1].leader.start()
        return made[-1]

    yield start
    for one in made:
        one.stop()


def spec(server: FakeApiServer) -> dict[str, Any]:
    with server.world.changed:
        return dict(server.world.objects[PATH]["orch"]["spec"])


def held(identity: str, seconds: int = 15, transitions: int = 3) -> dict[str, Any]:
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": seconds,
        "leaseTransitions": transitions,
        "renewTime": "2001-01-01T00:00:00.000000Z",
        "strategy": "kept",
    }


def test_the_first_one_makes_the_lease_and_keeps_it(server: FakeApiServer, replica: Start) -> None:
    one = replica("one", Terms(retry_s=0.01))
    assert one.started.wait(LIMIT_S)
    assert one.leader.is_leader
    server.wait_asked("PATCH", 3)
    made = spec(server)
    assert (made["holderIdentity"], made["leaseDurationSeconds"], made["leaseTransitions"]) == ("one", 15, 0)
    assert made["renewTime"] > made["acquireTime"]
    assert len([asked for asked in server.asked if asked.method == "GET"]) == 1  # a renewal is one request


def test_a_held_lease_is_left_alone_whatever_its_times_say(server: FakeApiServer, replica: Start) -> None:
    """renewTime is another machine's clock: only how long it has not changed before our eyes counts."""
    clock = Clock()
    server.put(PATH, "orch", spec=held("other"))
    one = replica("one", FROZEN, clock)
    server.wait_asked("GET", 3)
    assert one.leader.holder == "other"
    clock.now += 14.9
    count = len(server.asked)
    server.wait_asked("GET", count + 2)
    assert not one.started.is_set()
    clock.now += 0.2
    assert one.started.wait(LIMIT_S)
    taken = spec(server)
    assert (taken["holderIdentity"], taken["leaseTransitions"], taken["strategy"]) == ("one", 4, "kept")


def test_each_renewal_of_another_begins_the_time_anew(server: FakeApiServer, replica: Start) -> None:
    clock = Clock()
    server.put(PATH, "orch", spec=held("other"))
    one = replica("one", FROZEN, clock)
    for second in range(5):
        server.wait_asked("GET", len(server.asked) + 2)
        clock.now += 10
        server.put(PATH, "orch", spec=held("other") | {"renewTime": f"2001-01-01T00:00:0{second}.000000Z"})
    assert not one.started.is_set()


def test_a_lease_given_up_is_taken_at_once(server: FakeApiServer, replica: Start) -> None:
    clock = Clock()
    one = replica("one", FROZEN, clock)
    assert one.started.wait(LIMIT_S)
    two = replica("two", FROZEN, clock)
    one.stop()
    assert two.started.wait(LIMIT_S)  # no time has passed
    assert not one.lost.is_set()
    assert not one.leader.is_leader
    assert spec(server)["leaseTransitions"] == 1
    assert spec(server)["leaseDurationSeconds"] == 15


def test_a_container_started_anew_with_its_name_goes_on(server: FakeApiServer, replica: Start) -> None:
    server.put(PATH, "orch", spec=held("one"))
    one = replica("one", FROZEN, Clock())
    assert one.started.wait(LIMIT_S)
    assert spec(server)["leaseTransitions"] == 3


@pytest.mark.parametrize(
    "fault", [refuse(500, "E"), refuse(401, "Unauthorized"), refuse(403, "Forbidden"), hang, cut(b"{", 99)]
)
def test_a_leader_whose_renewals_fail_gives_up_and_says_so(
    server: FakeApiServer, replica: Start, fault: Any
) -> None:
    """The client's elector let the exception escape, told nobody and worked on: 80 ticks on a 4 s lease."""
    one = replica("one")
    assert one.started.wait(LIMIT_S)
    for method in ("GET", "PATCH"):
        server.next(method, *[fault] * 1000)
    assert one.lost.wait(LIMIT_S)
    assert not one.leader.is_leader
    assert one.leader.join(LIMIT_S)


FAULTS = {
    "too many": refuse(429, "TooManyRequests", Retry_After="1"),
    "internal error": refuse(500, "InternalError"),
    "unavailable": refuse(503, "ServiceUnavailable"),
    "credentials turned": refuse(401, "Unauthorized"),
    "forbidden": refuse(403, "Forbidden"),
    "conflict": refuse(409, "Conflict"),
    "reset": cut(b"{", 99),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_short_outage_costs_no_leadership(server: FakeApiServer, replica: Start, fault: Any) -> None:
    """It lasts three tries of each call, and no time passes: the holder renews again, nobody takes over."""
    clock = Clock()
    one = replica("one", FROZEN, clock)
    assert one.started.wait(LIMIT_S)
    two = replica("two", FROZEN, clock)
    for method in ("GET", "PATCH"):
        server.next(method, *[fault] * 3)
    clock.now += 9.9
    asked = len([one for one in server.asked if one.method == "PATCH"])
    server.wait_asked("PATCH", asked + 6)
    assert one.leader.is_leader
    clock.now += 9.9  # past the deadline of the renewal before the outage
    assert one.leader.is_leader
    assert not one.lost.is_set()
    assert not two.started.is_set()


def test_a_missing_right_is_said_once_with_the_verbs_it_takes(
    server: FakeApiServer, replica: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server.next("GET", *[refuse(403, "Forbidden", "leases is forbidden")] * 4)
    one = replica("one", FROZEN, Clock())
    assert one.started.wait(LIMIT_S)
    [said] = [record.getMessage() for record in caplog.records if "forbidden" in record.getMessage()]
    assert said.endswith("leases is forbidden; it takes the verbs get, create and patch on leases")


def test_a_server_that_is_gone_ends_leadership_and_another_takes_over(
    server: FakeApiServer, replica: Start
) -> None:
    one = replica("one")
    assert one.started.wait(LIMIT_S)
    server.next("PATCH", *[hang] * 2)
    server.next("GET", *[hang] * 2)
    assert one.lost.wait(LIMIT_S)
    two = replica("two")
    assert two.started.wait(LIMIT_S)
    assert spec(server)["holderIdentity"] == "two"


def to(identity: str, fault: Any) -> Any:
    """A fault for what this replica writes; the writes of others are answered truly."""

    def answered(handler: Any, asked: Any) -> None:
        if asked.body["spec"]["holderIdentity"] == identity:
            fault(handler, asked)
        else:
            handler.respond(asked)

    return answered


def lost(handler: Any, asked: Any) -> None:
    """Done, and the connection reset in the midst of the answer."""
    said = respond(handler.world, asked).body
    cut(said[: len(said) // 2], len(said))(handler, asked)


@pytest.mark.parametrize(
    "fault",
    [*(refuse(code, "E") for code in (401, 403, 409, 500)), hang, cut(b"{", 99)],
    ids=["401", "403", "409", "500", "timeout", "reset"],
)
def test_a_holder_whose_writes_fail_for_good_leads_no_more_once_another_does(
    server: FakeApiServer, api: Api, replica: Start, fault: Any
) -> None:
    """Its reads go on, and the other's writes: no more is wrong than with one's right to patch."""
    one = replica("one")
    assert one.started.wait(LIMIT_S)
    server.next("PATCH", *[to("one", fault)] * 10_000)
    both: list[bool] = []
    taken = threading.Event()

    def on_started() -> None:
        both.append(one.leader.is_leader)
        taken.set()

    two = Leader(api, "orch", identity="two", on_started=on_started, on_lost=lambda: None, terms=SHORT)
    two.start()
    try:
        assert taken.wait(LIMIT_S)
        assert both == [False]
        assert one.lost.wait(LIMIT_S)
    finally:
        two.stop()
        assert two.join(LIMIT_S)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_an_answer_that_is_lost_costs_no_leadership(
    server: FakeApiServer, replica: Start, method: str
) -> None:
    server.next(method, lost)
    one = replica("one", FROZEN, Clock())
    assert one.started.wait(LIMIT_S)
    server.wait_asked("PATCH", 3)
    assert one.leader.is_leader
    assert not one.lost.is_set()
    assert spec(server)["leaseTransitions"] == 0


def test_of_two_that_create_at_once_one_leads(server: FakeApiServer, replica: Start) -> None:
    both = threading.Barrier(2)

    def together(handler: Any, asked: Any) -> None:
        both.wait(LIMIT_S)
        handler.respond(asked)

    server.next("POST", together, together)
    clock = Clock()
    replicas = [replica(name, FROZEN, clock) for name in ("one", "two")]
    first = spec_when_held(server)
    server.wait_asked("PATCH", 2)
    assert [one.leader.identity for one in replicas if one.started.is_set()] == [first]


def test_a_token_that_was_rotated_is_read_anew_and_costs_no_leadership(
    server: FakeApiServer, replica: Start, tmp_path: Path
) -> None:
    one = replica("one", FROZEN, Clock())
    assert one.started.wait(LIMIT_S)
    server.kubeconfig(tmp_path, {"token": "the-next"})
    with server.world.changed:
        server.world.token = "the-next"
    asked = len(server.wait_asked("PATCH", 1))
    server.wait_asked("PATCH", asked + 4)
    assert one.leader.is_leader
    assert not one.lost.is_set()
    assert len([one for one in server.asked if one.method == "GET"]) == 1  # no renewal failed


def test_no_write_begins_once_one_leads_no_more(server: FakeApiServer, api: Api, replica: Start) -> None:
    """The worker's thread may live on for a moment: the clock alone decides."""
    clock = Clock()
    one = replica("one", FROZEN, clock)
    writes = api.paced(WhileLeading(Limiter(), one.leader))
    assert one.started.wait(LIMIT_S)
    writes.post(JOBS.path("ml"), {"metadata": {"name": "a"}})
    server.next("PATCH", *[refuse(503, "Unavailable")] * 10_000)
    server.wait_asked("PATCH", len([asked for asked in server.asked if asked.method == "PATCH"]) + 2)
    clock.now += 10.1
    with pytest.raises(Unavailable, match="leads no more"):
        writes.post(JOBS.path("ml"), {"metadata": {"name": "b"}})
    assert list(server.world.objects[JOBS.path("ml")]) == ["a"]


def test_a_slow_answer_does_not_outlive_the_deadline(server: FakeApiServer, replica: Start) -> None:
    clock = Clock()
    answered = threading.Event()

    def slow(handler: Any, asked: Any) -> None:
        assert answered.wait(LIMIT_S)
        handler._patch(asked)

    one = replica("one", FROZEN, clock)
    assert one.started.wait(LIMIT_S)
    server.next("PATCH", slow)
    server.wait_asked("PATCH", len([asked for asked in server.asked if asked.method == "PATCH"]) + 1)
    clock.now += 10.1
    assert not one.leader.is_leader  # at once, before anybody was told
    answered.set()
    one.stop()


def test_a_conflict_is_read_again_and_no_loss(server: FakeApiServer, replica: Start) -> None:
    one = replica("one", FROZEN, Clock())
    assert one.started.wait(LIMIT_S)
    server.put(PATH, "orch", spec=spec(server) | {"strategy": "edited"})
    server.wait_asked("GET", 2)
    server.wait_asked("PATCH", 5)
    assert not one.lost.is_set()
    assert spec(server)["strategy"] == "edited"


def test_a_lease_taken_by_another_is_lost_at_once(server: FakeApiServer, replica: Start) -> None:
    one = replica("one", FROZEN, Clock())
    assert one.started.wait(LIMIT_S)
    server.put(PATH, "orch", spec=held("other"))
    assert one.lost.wait(LIMIT_S)  # no time has passed
    assert one.leader.holder == "other"
    one.stop()
    assert spec(server)["holderIdentity"] == "other"


def test_a_lease_deleted_is_made_anew(server: FakeApiServer, replica: Start) -> None:
    one = replica("one", FROZEN, Clock())
    assert one.started.wait(LIMIT_S)
    server.remove(PATH, "orch")
    server.wait_asked("POST", 2)
    assert not one.lost.is_set()


def test_of_several_that_start_together_one_leads(server: FakeApiServer, replica: Start) -> None:
    clock = Clock()
    replicas = [replica(f"r{index}", FROZEN, clock) for index in range(4)]
    first = spec_when_held(server)
    assert [one.leader.identity for one in replicas if one.leader.is_leader] in ([first], [])
    for _ in range(3):
        server.wait_asked("GET", len(server.asked) + 8)
        assert sum(one.leader.is_leader for one in replicas) <= 1
    assert sum(one.started.is_set() for one in replicas) == 1


def spec_when_held(server: FakeApiServer) -> str:
    with server.world.changed:
        assert server.world.changed.wait_for(lambda: "orch" in server.world.objects[PATH], LIMIT_S)
        return str(server.world.objects[PATH]["orch"]["spec"]["holderIdentity"])


def test_a_start_that_fails_ends_it_and_says_so(
    server: FakeApiServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the elector's thread, nobody leads on without it."""
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    lost = threading.Event()

    def on_started() -> None:
        raise ZeroDivisionError

    leader = Leader(api, "orch", on_started=on_started, on_lost=lost.set, terms=SHORT)
    leader.start()
    assert lost.wait(LIMIT_S)
    leader.join(LIMIT_S)
    assert not leader.is_leader
    assert [one.exc_type for one in seen] == [ZeroDivisionError]
