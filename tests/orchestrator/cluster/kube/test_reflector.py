"""The reflector against a server with faults: it pauses after each, loses nothing, and ends at the truth.

What the client's own informer got wrong is marked with what it was measured to do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.cluster.kube.backoff import Backoff
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.paths import PODS
from orchestrator.cluster.kube.reflector import Item, Reflector, Rhythm
from tests.orchestrator.cluster.kube.apiserver import (
    FakeApiServer,
    Fault,
    answer,
    cut,
    error_event,
    event,
    refuse,
    status,
    stream,
)

PATH = PODS.path("ml")
LIMIT_S = 60.0


class Meta(msgspec.Struct, rename="camel"):
    name: str
    resource_version: str
    labels: dict[str, str] = {}


class Pod(msgspec.Struct):
    metadata: Meta
    phase: str = ""


DECODER = msgspec.json.Decoder(Pod)


def decode(raw: bytes) -> Item[str]:
    pod = DECODER.decode(raw)
    return Item(pod.metadata.name, pod.metadata.resource_version, pod.phase)


class CountedBackoff(Backoff):
    """Waits hardly at all, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(0.001, 0.002)
        self.asked: list[float | None] = []

    def next_s(self, retry_after_s: float | None = None) -> float:
        self.asked.append(retry_after_s)
        return super().next_s(None)


class Watcher:
    """A reflector with a mirror that its changes keep, to wait on."""

    def __init__(self, api: Api, *, selector: str = "", rhythm: Rhythm | None = None) -> None:
        self.mirror: dict[str, str] = {}
        self.told: list[tuple[str, str | None, str | None]] = []
        self.changed = threading.Condition()
        self.backoff = CountedBackoff()
        self.reflector = Reflector(
            api,
            PATH,
            decode,
            selector=selector,
            on_change=self.on_change,
            name="pods",
            backoff=self.backoff,
            rhythm=rhythm or Rhythm(),
        )

    def on_change(self, key: str, before: str | None, now: str | None) -> None:
        with self.changed:
            assert self.mirror.get(key) == before
            self.mirror.pop(key, None)
            if now is not None:
                self.mirror[key] = now
            self.told.append((key, before, now))
            self.changed.notify_all()

    def until(self, **wanted: str) -> None:
        """Wait until it holds exactly these, by name."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.mirror == wanted, LIMIT_S), self.mirror
        assert self.reflector.items() == wanted


@pytest.fixture
def watch(api: Api) -> Iterator[Callable[..., Watcher]]:
    made: list[Watcher] = []

    def start(**options: Any) -> Watcher:
        made.append(Watcher(api, **options))
        made[-1].reflector.start()
        return made[-1]

    yield start
    for watcher in made:
        watcher.reflector.stop()
        watcher.reflector.join(LIMIT_S)
        assert not watcher.reflector.alive


Start = Callable[..., Watcher]


def test_a_streamed_list_goes_on_as_its_watch(server: FakeApiServer, watch: Start) -> None:
    server.put(PATH, "a", phase="Running")
    watcher = watch(selector="app=x")
    watcher.until()
    server.put(PATH, "b", phase="Pending", metadata={"name": "b", "labels": {"app": "x"}})
    watcher.until(b="Pending")
    assert watcher.reflector.get("b") == "Pending"
    [asked] = server.asked
    # The client's informer asks for no bookmarks, no timeout and no limit.
    assert asked.query.pop("timeoutSeconds").isdecimal()
    assert asked.query == {
        "watch": "1",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
        "labelSelector": "app=x",
    }


def test_changes_come_in_order_with_what_was_before(server: FakeApiServer, watch: Start) -> None:
    watcher = watch()
    assert watcher.reflector.synced.wait(LIMIT_S)
    for phase in ("Pending", "Running"):
        server.put(PATH, "a", phase=phase)
    server.remove(PATH, "a")
    server.put(PATH, "b", phase="Pending")
    watcher.until(b="Pending")
    assert watcher.told == [
        ("a", None, "Pending"),
        ("a", "Pending", "Running"),
        ("a", "Running", "Running"),
        ("a", "Running", None),
        ("b", None, "Pending"),
    ]


@pytest.mark.parametrize(
    "fault",
    [
        None,
        stream(
            error_event(500, "InternalError", "required storage feature RequestWatchProgress is disabled")
        ),
    ],
    ids=["422 at once", "ERROR 500 of an old etcd"],
)
def test_where_lists_are_not_streamed_they_come_in_pages(
    server: FakeApiServer, watch: Start, fault: Fault | None
) -> None:
    server.world.streams_lists = False
    if fault is not None:
        server.next("watch", fault)
    for index in range(501):
        server.put(PATH, f"pod-{index:03}", phase="Running")
    watcher = watch()
    watcher.until(**{f"pod-{index:03}": "Running" for index in range(501)})
    server.put(PATH, "pod-000", phase="Failed")
    asked = server.wait_asked("watch", 2)
    assert [one.query.get("limit") for one in server.asked if one.method == "GET"] == ["500", "500"]
    assert asked[1].query["resourceVersion"] == "601"
    assert asked[1].query["allowWatchBookmarks"] == "true"
    assert watcher.backoff.asked == []


def test_a_streamed_list_without_an_end_is_given_up(server: FakeApiServer, watch: Start) -> None:
    server.put(PATH, "a", phase="Running")
    server.next("watch", stream(event("ADDED", "a", 101, phase="Running"), end="hang"))
    watcher = watch(rhythm=Rhythm(initial_s=0.2))
    watcher.until(a="Running")
    assert watcher.reflector.stats.lists == 1


# Pauses: the informer asked 22 times a second after each of these, and thousands of times after a 429

LIST_THEN_WATCH = ["watch", "GET", "watch"]


@pytest.mark.parametrize(
    "fault",
    [
        stream(),
        refuse(500, "InternalError"),
        refuse(503, "ServiceUnavailable"),
        refuse(403, "Forbidden"),
        refuse(429, "TooManyRequests", Retry_After="3"),
        stream(error_event(410, "Expired", "too old resource version: 1 (11073)")),
        refuse(410, "Expired"),
        stream(b'{"type": "ADDED", "object": {"metad'),
        stream(b"<html>proxy</html>\n"),
        stream(end="reset"),
        cut(b'{"type', 1000),
        answer(200, b""),
    ],
    ids=["empty", "500", "503", "403", "429", "ERROR 410", "410",
         "cut", "no JSON", "reset", "cut body", "no body"],
)  # fmt: skip
def test_after_every_fault_of_a_watch_it_pauses(server: FakeApiServer, watch: Start, fault: Fault) -> None:
    server.put(PATH, "a", phase="Running")
    server.next("watch", *[fault] * 5)
    server.world.streams_lists = False
    watcher = watch()
    watcher.until(a="Running")
    server.wait_asked("watch", 6)
    server.put(PATH, "z", phase="Pending")
    with watcher.changed:
        assert watcher.changed.wait_for(lambda: watcher.mirror.get("z") == "Pending", LIMIT_S)
    stats = watcher.reflector.stats
    assert len(watcher.backoff.asked) == stats.errors
    # Every request is one of: what a fault was waited out before, the first, a list and the watch after it.
    assert stats.watches + stats.lists <= stats.errors + 1 + 2 * (1 + stats.relists)


@pytest.mark.parametrize(
    "fault",
    [refuse(403, "Forbidden"), refuse(429, "Many"), refuse(500, "E"), cut(b"{", 9), answer(200, b"{")],
    ids=["403", "429", "500", "reset mid-body", "truncated"],
)  # fmt: skip
def test_after_every_fault_of_a_list_it_pauses(server: FakeApiServer, watch: Start, fault: Fault) -> None:
    server.put(PATH, "a", phase="Running")
    server.world.streams_lists = False
    server.next("GET", *[fault] * 4)
    watcher = watch()
    watcher.until(a="Running")
    assert len(watcher.backoff.asked) == 4
    assert [one.method for one in server.asked][:6] == ["watch", "GET", "GET", "GET", "GET", "GET"]


def test_the_server_is_left_alone_for_as_long_as_it_asks(server: FakeApiServer, watch: Start) -> None:
    server.next("watch", refuse(429, "TooManyRequests", Retry_After="9"))
    watcher = watch()
    assert watcher.reflector.synced.wait(LIMIT_S)
    assert watcher.backoff.asked == [9.0]


def test_a_lack_of_rights_can_be_seen(
    server: FakeApiServer, watch: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for method in ("watch", "GET"):
        server.next(method, *[refuse(403, "Forbidden", "cannot list pods")] * 1000)
    watcher = watch()
    server.wait_asked("GET", 3)
    assert not watcher.reflector.synced.is_set()
    assert watcher.reflector.fault is not None
    assert "pods: ml/pods: cannot watch, got 403 Forbidden: cannot list pods; trying again" in caplog.text


# 410


def test_too_old_when_the_watch_begins(server: FakeApiServer, watch: Start) -> None:
    """The informer relisted and watched anew without a pause: 62 lists and 124 watches in 3 s."""
    server.put(PATH, "a", phase="Running")
    server.put(PATH, "b", phase="Running")
    watcher = watch()
    watcher.until(a="Running", b="Running")

    def while_away(handler: Any, asked: Any) -> None:
        server.remove(PATH, "a")
        server.put(PATH, "c", phase="Pending")
        server.compact()
        stream(error_event(410, "Expired", "too old resource version: 102 (104)"))(handler, asked)

    server.next("watch", while_away)
    server.end_watches()
    watcher.until(b="Running", c="Pending")
    assert ("a", "Running", None) in watcher.told
    assert watcher.reflector.stats.relists == 1


def test_too_old_in_the_midst_of_a_watch(server: FakeApiServer, watch: Start) -> None:
    server.world.streams_lists = False
    server.put(PATH, "a", phase="Running")
    server.next(
        "watch",
        refuse(422, "Invalid"),
        stream(
            event("MODIFIED", "a", 102, phase="Failed"),
            error_event(410, "Expired", "too old"),
        ),
    )
    watcher = watch()
    server.wait_asked("GET", 2)
    watcher.until(a="Running")  # as the server has it
    assert ("a", "Running", "Failed") in watcher.told


def test_too_old_between_two_pages(server: FakeApiServer, watch: Start) -> None:
    server.world.streams_lists = False
    for index in range(3):
        server.put(PATH, f"pod-{index}", phase="Running")

    def first_page(handler: Any, asked: Any) -> None:
        asked.query["limit"] = "2"
        handler.respond(asked)
        with server.world.changed:
            server.world.version += 1
            server.world.compacted = server.world.version

    server.next("GET", first_page)
    watcher = watch()
    watcher.until(**{f"pod-{index}": "Running" for index in range(3)})
    queries = [one.query for one in server.asked if one.method == "GET"]
    assert [("continue" in query, query.get("limit")) for query in queries] == [
        (False, "2"),
        (True, "500"),
        (False, None),  # all in one, as client-go's pager does
    ]
    assert watcher.backoff.asked == []


# A watch goes on where it was


def test_it_goes_on_from_the_last_event_or_bookmark(server: FakeApiServer, watch: Start) -> None:
    watcher = watch()
    server.put(PATH, "a", phase="Running")
    watcher.until(a="Running")
    server.end_watches()
    assert server.wait_asked("watch", 2)[1].query["resourceVersion"] == "101"
    server.bookmark()
    server.end_watches()
    assert server.wait_asked("watch", 3)[2].query["resourceVersion"] == "102"
    assert watcher.reflector.stats.lists == watcher.reflector.stats.relists == 0


def test_duplicates_and_late_events_change_nothing(server: FakeApiServer, watch: Start) -> None:
    server.world.streams_lists = False
    server.next(
        "watch",
        refuse(422, "Invalid"),
        stream(
            event("ADDED", "a", 111, phase="Pending"),
            event("MODIFIED", "a", 113, phase="Running"),
            event("MODIFIED", "a", 113, phase="Running"),
            event("MODIFIED", "a", 112, phase="Pending"),
            event("ADDED", "a", 111, phase="Pending"),
            event("SURPRISE", "a", 114, phase="?"),
            event("ADDED", "b", 115, phase="Running"),
            end="hang",
        ),
    )
    watcher = watch()
    watcher.until(a="Running", b="Running")
    assert [now for key, _, now in watcher.told if key == "a"] == ["Pending", "Running"]
    assert watcher.reflector.stats.dropped == 3


def test_a_half_open_connection_is_noticed(server: FakeApiServer, watch: Start) -> None:
    """The client's watch has no read timeout: it hung for ever (kubernetes-client/python#1148)."""
    server.next("watch", stream(event("ADDED", "a", 101, phase="Running"), end="hang"))
    watcher = watch(rhythm=Rhythm(watch_s=(0.1, 0.1)))
    server.put(PATH, "b", phase="Running")
    watcher.until(b="Running")
    assert watcher.reflector.stats.errors == 1


def test_an_object_that_cannot_be_read_does_not_stop_the_others(server: FakeApiServer, watch: Start) -> None:
    server.put(PATH, "odd", phase=7)
    server.put(PATH, "a", phase="Running")
    watcher = watch()
    watcher.until(a="Running")
    server.put(PATH, "odd", phase=8)
    server.put(PATH, "b", phase="Running")
    watcher.until(a="Running", b="Running")
    assert watcher.reflector.stats.undecodable == 2


def test_a_server_restored_from_a_backup_is_followed(server: FakeApiServer, watch: Start) -> None:
    for phase in ("Pending", "Running"):
        server.put(PATH, "a", phase=phase)
    watcher = watch()
    watcher.until(a="Running")
    too_large = status(504, "Timeout", "Too large resource version: 102, current: 50",
                       causes=[{"reason": "ResourceVersionTooLarge", "message": "Too large"}])  # fmt: skip
    server.next("watch", answer(504, too_large))
    server.restore(50)
    server.put(PATH, "b", phase="Pending")
    watcher.until(a="Running", b="Pending")


def test_our_writes_are_read_at_once(server: FakeApiServer, watch: Start) -> None:
    watcher = watch()
    assert watcher.reflector.synced.wait(LIMIT_S)
    assert watcher.reflector.put(Item("a", "150", "made"))
    watcher.until(a="made")
    assert watcher.reflector.forget("a", "151")
    watcher.until()


# Drift


def test_a_quiet_check_finds_no_drift(server: FakeApiServer, watch: Start) -> None:
    server.put(PATH, "a", phase="Running")
    watcher = watch(rhythm=Rhythm(drift_s=0.0))
    watcher.until(a="Running")
    server.next("watch", stream())
    server.end_watches()
    [checked] = server.wait_asked("GET", 1)
    assert (checked.query["resourceVersion"], checked.query["resourceVersionMatch"]) == ("101", "Exact")
    server.put(PATH, "b", phase="Running")
    watcher.until(a="Running", b="Running")
    assert (watcher.reflector.stats.drift, watcher.reflector.stats.relists) == (0, 0)


def test_drift_is_counted_and_mended(
    server: FakeApiServer, watch: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server.put(PATH, "a", phase="Running")
    watcher = watch(rhythm=Rhythm(drift_s=0.0))
    watcher.until(a="Running")
    with server.world.changed:  # a change that no event tells
        server.world.objects[PATH]["a"]["metadata"]["resourceVersion"] = "100"
        server.world.objects[PATH]["a"]["phase"] = "Failed"
    server.end_watches()
    watcher.until(a="Failed")
    assert watcher.reflector.stats.drift == 1
    assert "1 objects differ from the server's" in caplog.text


def test_a_version_compacted_meanwhile_makes_a_list_but_no_drift(server: FakeApiServer, watch: Start) -> None:
    server.put(PATH, "a", phase="Running")
    watcher = watch(rhythm=Rhythm(drift_s=0.0))
    watcher.until(a="Running")
    server.next("GET", refuse(410, "Expired"))
    server.end_watches()
    server.wait_asked("watch", 2)
    server.put(PATH, "b", phase="Running")
    watcher.until(a="Running", b="Running")
    assert (watcher.reflector.stats.drift, watcher.reflector.stats.relists) == (0, 1)


# Life


def test_it_stops_from_the_midst_of_a_quiet_watch(server: FakeApiServer, watch: Start) -> None:
    watcher = watch()
    assert watcher.reflector.synced.wait(LIMIT_S)
    watcher.reflector.stop()
    watcher.reflector.join(LIMIT_S)
    assert not watcher.reflector.alive
    assert watcher.backoff.asked == []


def test_the_age_of_the_last_contact(server: FakeApiServer, api: Api) -> None:
    now = [100.0]
    reflector: Reflector[str] = Reflector(
        api, PATH, decode, on_change=lambda *_: None, name="pods", clock=lambda: now[0]
    )
    now[0] = 130.0
    assert reflector.contact_age_s == 30.0
    reflector.start()
    assert reflector.synced.wait(LIMIT_S)
    assert reflector.contact_age_s == 0.0
    reflector.stop()
    reflector.join(LIMIT_S)


def test_a_listener_that_fails_ends_the_thread_where_it_can_be_seen(
    server: FakeApiServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    server.put(PATH, "a", phase="Running")

    def on_change(key: str, before: str | None, now: str | None) -> None:
        raise ZeroDivisionError

    reflector = Reflector(api, PATH, decode, on_change=on_change, name="pods")
    reflector.start()
    reflector.join(LIMIT_S)
    assert not reflector.alive
    assert [one.exc_type for one in seen] == [ZeroDivisionError]


# Any sequence of faults

FAULTS: dict[str, Fault] = {
    "empty": stream(),
    "500": refuse(500, "InternalError"),
    "429": refuse(429, "TooManyRequests", Retry_After="1"),
    "410": refuse(410, "Expired"),
    "ERROR 410": stream(error_event(410, "Expired", "too old")),
    "ERROR 500": stream(error_event(500, "InternalError", "no")),
    "cut": stream(b'{"type": "ADDED", "obj'),
    "reset": stream(end="reset"),
    "truncated": answer(200, b'{"metadata": {"resourceVersion": "1'),
}
STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcd"), st.sampled_from(["Pending", "Running", "Failed"])),
    st.tuples(st.just("remove"), st.sampled_from("abcd")),
    st.tuples(st.just("fault"), st.sampled_from(["watch", "GET"]), st.sampled_from(sorted(FAULTS))),
    st.tuples(st.sampled_from(["end", "compact", "bookmark"])),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=25), streams_lists=st.booleans())
def test_it_ends_where_the_server_is(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, ...]], streams_lists: bool
) -> None:
    with FakeApiServer() as server:
        server.world.streams_lists = streams_lists
        watcher = Watcher(Api.connect(kubeconfig=server.kubeconfig(tmp_path_factory.mktemp("kube"))))
        watcher.reflector.start()
        for step in steps:
            _do(server, *step)
        server.put(PATH, "last", phase="Running")
        server.end_watches()
        watcher.until(**{name: one["phase"] for name, one in server.world.objects[PATH].items()})
        assert watcher.reflector.stats.errors == len(watcher.backoff.asked)
        watcher.reflector.stop()
        watcher.reflector.join(LIMIT_S)


def _do(server: FakeApiServer, act: str, *args: str) -> None:
    if act == "put":
        server.put(PATH, args[0], phase=args[1])
    elif act == "remove":
        if args[0] in server.world.objects[PATH]:
            server.remove(PATH, args[0])
    elif act == "fault":
        server.next(args[0], FAULTS[args[1]])
    elif act == "end":
        server.end_watches()
    elif act == "compact":
        server.compact()
    else:
        server.bookmark()
