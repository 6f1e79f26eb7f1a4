"""Two never lead: whatever becomes of a call, at whatever moment, on a clock that only these tests move.

`Play` is a world of replicas in which a call and its answer take the time, and meet the fate, that they are
given. After each event it is asked who believes to lead.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cluster.kube.election import Call, Create, Election, Lease, Read, Terms, Write
from orchestrator.cluster.kube.paths import LEASES
from tests.orchestrator.cluster.kube.apistore import ApiStore, Asked, respond

COLLECTION = LEASES.path("ml")
PATH = LEASES.path("ml", "orch")
TERMS = Terms()
SHORT_S = 0.01


@dataclass(frozen=True)
class Fate:
    """What becomes of a call: it arrives after `there_s` and is done or `refused`, its answer takes `back_s`
    (None: it never comes, and the caller gives up after `request_s`)."""

    there_s: float | None = SHORT_S
    back_s: float | None = SHORT_S
    refused: bool = False


OK = Fate()
FAULTS = {
    "refused": Fate(refused=True),  # 401, 403, 409, 429, 5xx
    "not arrived": Fate(there_s=None, back_s=None),
    "done, the answer lost": Fate(back_s=None),
    "done after it was given up": Fate(there_s=7.0, back_s=None),
    "done long after it was given up": Fate(there_s=26.0, back_s=None),
    "slow": Fate(there_s=2.0, back_s=2.5),
    "answered after the deadline": Fate(back_s=11.0),  # the process stood still
    "answered when another may lead": Fate(back_s=40.0),
}
fates = st.sampled_from([OK, OK, *FAULTS.values()])


@dataclass
class Replica:
    """One process of a pod, which has the pod's name."""

    name: str
    election: Election
    clock: Callable[[], float]
    retry_s: float
    lives: bool = True
    turn: int = 0

    @property
    def leads(self) -> bool:
        return self.lives and self.election.leads(self.clock())


@dataclass
class Play:
    """`fates` are those of the coming calls of each replica; what comes after them is well."""

    fates: dict[str, list[Fate]] = field(default_factory=dict)
    terms: Terms = TERMS
    restart_s: float = 1.0
    now: float = 0.0
    world: ApiStore = field(default_factory=ApiStore)
    replicas: dict[str, Replica] = field(default_factory=dict)
    led: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: Any = field(default_factory=itertools.count)
    _calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _renewals: Any = field(default_factory=itertools.count)

    def at(self, after_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + after_s, next(self._order), what))

    def start(self, name: str, offset: float = 0.0, retry_s: float = TERMS.retry_s) -> None:
        """A process; its clock shows what it likes, but runs as all do."""
        election = Election(name, self.terms, lambda: f"stamp-{next(self._renewals)}")
        replica = Replica(name, election, lambda: self.now + offset, retry_s)
        self.replicas[name] = replica
        self.at(0, lambda: self._try(replica))

    def kill(self, name: str) -> None:
        """SIGKILL, and the kubelet starts it anew with the same name; what it has sent still arrives."""
        replica = self.replicas.get(name)
        if replica is None or not replica.lives:
            return  # not yet, or just now
        replica.lives = False
        self.at(self.restart_s, lambda: self.start(name, replica.clock() - self.now + 17.0, replica.retry_s))

    def run(self, until: float) -> list[str]:
        """Play so long; who leads then. After every event at most one does."""
        while self._events and self._events[0][0] <= until:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
            leading = tuple(one.name for one in self.replicas.values() if one.leads)
            assert len(leading) <= 1, f"after {self.now:.2f} s both lead: {leading}"
            if not self.led or self.led[-1][1] != leading:
                self.led.append((self.now, leading))
        self.now = until
        return [one.name for one in self.replicas.values() if one.leads]

    def _try(self, replica: Replica) -> None:
        if replica.lives:
            self._send(replica, replica.election.begin(replica.clock()))

    def _send(self, replica: Replica, call: Call | None) -> None:
        if not replica.lives:
            return
        if call is None:
            if replica.election.over and not replica.election.why:
                return  # given up
            if replica.election.over:
                self.kill(replica.name)  # the service ends its process
            else:
                self.at(replica.retry_s, lambda: self._try(replica))
            return
        number = self._calls[replica.name]
        self._calls[replica.name] += 1
        coming = self.fates.get(replica.name, [])
        self._play(replica, call, coming[number] if number < len(coming) else OK)

    def _play(self, replica: Replica, call: Call, fate: Fate) -> None:
        replica.turn += 1
        turn, answer = replica.turn, [b""]

        def arrives() -> None:
            code, body = (403, b"") if fate.refused else self._server(call)
            answer[0] = body if code < 300 else b"404" if code == 404 else b""
            if fate.back_s is not None:
                self.at(fate.back_s, answered)

        def answered() -> None:
            if replica.turn == turn:
                self._send(replica, self._told(replica, call, answer[0]))

        def gives_up() -> None:
            if replica.turn == turn:
                answer[0] = b""
                self._send(replica, self._told(replica, call, b""))

        if fate.there_s is not None:
            self.at(fate.there_s, arrives)
        if fate.back_s is None:
            self.at(self.terms.request_s, gives_up)

    def _server(self, call: Call) -> tuple[int, bytes]:
        method, path, body = _asked(call)
        answer = respond(self.world, Asked(method, path, {}, {}, body))
        return answer.code, answer.body

    def _told(self, replica: Replica, call: Call, body: bytes) -> Call | None:
        election, now = replica.election, replica.clock()
        if isinstance(call, Read) and body == b"404":
            return election.read(None, now)
        if body in (b"", b"404"):
            election.failed()
            return None
        lease = msgspec.json.decode(body, type=Lease)
        if isinstance(call, Read):
            return election.read(lease, now)
        election.wrote(lease, now)
        return None


def _asked(call: Call) -> tuple[str, str, Any]:
    if isinstance(call, Create):
        return "POST", COLLECTION, {"metadata": {"name": "orch"}, "spec": call.spec}
    if isinstance(call, Write):
        return "PATCH", PATH, {"metadata": {"resourceVersion": call.version}, "spec": call.spec}
    return "GET", PATH, None


# Each fault at each moment of the first's calls: it creates with the second, renews with those after it.
MOMENTS = range(6)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_call_that_fails_once_makes_no_second_leader(fault: Fate, moment: int) -> None:
    play = Play({"one": [OK] * moment + [fault]})
    play.start("one")
    play.at(0.5, lambda: play.start("two", offset=-900.0, retry_s=2.7))
    assert len(play.run(90.0)) == 1


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_holder_whose_calls_fail_for_good_is_over_before_another_leads(fault: Fate, moment: int) -> None:
    play = Play({"one": [OK] * moment + [fault] * 1000})
    play.start("one")
    play.at(0.5, lambda: play.start("two", offset=-900.0, retry_s=2.7))
    leading = play.run(90.0)
    # One that is slow keeps its Lease, or loses it and takes it again.
    assert leading == ["two"] or fault == FAULTS["slow"]


@pytest.mark.parametrize("fault", [fault for fault in FAULTS.values() if fault != FAULTS["slow"]])
def test_a_holder_leads_for_its_deadline_and_the_next_one_after_the_lease(fault: Fate) -> None:
    """It has renewed once, 2 s after it began: until 12 s it leads, and from 17 s on another may."""
    play = Play({"one": [OK, OK, OK] + [fault] * 1000})
    play.start("one")
    play.start("two", retry_s=0.1)
    play.run(60.0)
    ended = next(at for at, leading in play.led if at > 1 and "one" not in leading)
    began = next(at for at, leading in play.led if leading == ("two",))
    last = 2.0 + 2 * SHORT_S
    assert ended <= last + TERMS.renew_s + 0.2  # seen at an event, of which the other makes many
    assert last + TERMS.lease_s <= began
    done = 0.0 if fault.refused or fault.there_s is None else 30.0  # what was done unheard renewed it, too
    assert began <= last + TERMS.lease_s + 1.0 + done


def test_of_two_that_create_at_once_one_leads() -> None:
    play = Play({"one": [OK, Fate(there_s=1.0)], "two": [OK, Fate(there_s=1.0)]})
    play.start("one")
    play.start("two")
    assert play.run(1.5) == ["one"]
    assert play.run(60.0) == ["one"]


def test_a_creation_whose_answer_is_lost_is_found_and_renewed() -> None:
    play = Play({"one": [OK, Fate(back_s=None)]})
    play.start("one")
    play.start("two", retry_s=3.0)
    assert play.run(6.0) == []
    assert play.run(9.0) == ["one"]
    assert json.loads(respond(play.world, Asked("GET", PATH, {}, {})).body)["spec"]["leaseTransitions"] == 0


def test_a_holder_started_anew_goes_on_and_its_last_words_come_too_late() -> None:
    """The old process's renewal arrives after the new one's: it is of a version that is no more."""
    play = Play({"one": [OK, OK, OK, Fate(there_s=9.0, back_s=None)]})
    play.start("one")
    play.start("two")
    play.at(5.0, lambda: play.kill("one"))
    assert play.run(6.5) == ["one"]
    assert play.run(60.0) == ["one"]


def test_a_lease_given_up_is_left_at_once_and_not_by_one_that_lost_it() -> None:
    election = Election("one", TERMS)
    assert election.give_up() is None
    for lost in (False, True):
        election = Election("one", TERMS)
        election.begin(0.0)
        election.wrote(lease("one"), 0.1)
        assert election.leads(9.9)
        if lost:
            election.expire()
        call = election.give_up()
        assert not election.leads(1.0)
        assert (call is None) is lost
        assert election.begin(2.0) is None
    assert election.why == "no renewal for 10 s"


def lease(holder: str, version: str = "7") -> Lease:
    return msgspec.convert(
        {"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": holder}}, Lease
    )


def test_one_that_gives_up_without_knowing_the_version_reads_it_first() -> None:
    election = Election("one", TERMS)
    election.begin(0.0)
    election.wrote(lease("one"), 0.1)
    election.failed()
    assert election.give_up() == Read()
    written = election.read(lease("one", "8"), 0.2)
    assert isinstance(written, Write)
    assert (written.version, written.spec["holderIdentity"]) == ("8", "")
    election.wrote(lease("", "9"), 0.3)
    assert not election.leads(0.3)
    assert election.read(lease("two"), 0.4) is None
    assert election.read(None, 0.4) is None


def test_a_first_answer_past_its_own_deadline_makes_no_leader_and_the_next_one_does() -> None:
    election = Election("one", TERMS)
    election.begin(0.0)
    election.wrote(lease("one"), 10.0)
    assert not election.leads(10.0)
    assert election.begin(12.0) == Read()
    assert isinstance(election.read(lease("one"), 12.1), Write)
    election.wrote(lease("one", "8"), 12.2)
    assert election.leads(12.2)


@pytest.mark.parametrize(
    "terms",
    [{"renew_s": 15.0}, {"lease_s": 10.9}, {"retry_s": 10.0}, {"retry_s": 0.0}],
    ids=["no time between", "stored as whole seconds", "one try", "no rest"],
)
def test_terms_under_which_two_could_lead_are_refused(terms: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must grow from retry_s over renew_s to lease_s"):
        Terms(**terms)


deaths = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 60.0)), max_size=3)
start = st.tuples(st.floats(0, 20), st.floats(-1e6, 1e6), st.floats(1.0, 4.0))


@settings(max_examples=60)
@given(
    st.fixed_dictionaries({name: st.lists(fates, max_size=8) for name in "abc"}),
    st.tuples(start, start, start),
    deaths,
    st.floats(0.0, 30.0),
)
def test_three_that_meet_anything_never_lead_together_and_in_the_end_one_does(
    fates: dict[str, list[Fate]],
    starts: Iterable[tuple[float, float, float]],
    deaths: Iterable[tuple[str, float]],
    restart_s: float,
) -> None:
    play = Play(fates, restart_s=restart_s)
    for name, (begins, offset, retry_s) in zip("abc", starts, strict=True):
        play.at(begins, partial(play.start, name, offset, retry_s))
    for name, dies in deaths:
        play.at(dies, partial(play.kill, name))
    play.run(500.0)
    leading = [play.run(play.now + 5.0) for _ in range(5)]
    assert leading == [leading[0]] * 5
    assert len(leading[0]) == 1
