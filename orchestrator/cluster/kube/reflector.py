"""A copy of the objects of one kind that follows the API server: a list once, then its watch, for ever.

client-go's algorithm and numbers (tools/cache/reflector.go). The informer that the client ships asks again
without a pause after an empty stream, a 403, a 410 or a 429, and hangs for ever on a half-open connection.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.cluster.kube import wire
from orchestrator.cluster.kube.backoff import Backoff
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import ApiError, Gone, Invalid, Request, broken
from orchestrator.cluster.kube.listing import Listed, Lister, Stats
from orchestrator.cluster.kube.store import Item, OnChange, Store, later
from orchestrator.cluster.kube.stream import Stream
from orchestrator.errors import ClusterError

LOG = logging.getLogger(__name__)
__all__ = ["Item", "Reflector", "Rhythm", "Stats"]
T = TypeVar("T")

SHORTEST_WATCH_S = 1.0
"""A watch that ends sooner is a fault: to open the next at once would be a hot loop."""


@dataclass(frozen=True)
class Rhythm:
    """Seconds: how long a watch is asked for (drawn anew each time), how long a streamed list may take to end
    (one from an etcd before 3.5 never does), and between two drift checks, ± 20 %."""

    watch_s: tuple[float, float] = (300.0, 600.0)
    initial_s: float = 60.0
    drift_s: float = 3600.0


class Reflector(Generic[T]):
    """The objects at `path` that match `selector`, kept by a thread of its own once started.

    `decode` makes a trimmed Item of one object's JSON; what it cannot read (msgspec.MsgspecError) is skipped
    and counted. `on_change(key, before, now)` is called under the store's lock: it must be quick; a fault of
    it ends the thread, which `alive` tells. `fault` is the last trouble in words until the server is heard
    again. Absence means nothing before `synced` is set.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        decode: Callable[[bytes], Item[T]],
        *,
        selector: str = "",
        on_change: OnChange[T],
        name: str,
        rhythm: Rhythm | None = None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.synced = threading.Event()
        self.stats = Stats()
        self.fault: str | None = None
        self.store: Store[T] = Store(on_change)
        self.get = self.store.get
        self.items = self.store.items
        self.put = self.store.put
        self.forget = self.store.forget
        self._api = api
        self._path = path
        self._query = {"labelSelector": selector} if selector else {}
        self._request = Request("watch", path, api.host)
        self._lister = Lister(api, self._request, decode, self._query, self.stats, self._heard)
        self._rhythm = rhythm or Rhythm()
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._rng = rng or random.Random()
        self._version: str | None = None
        self._streams_lists = True
        self._page_once = False
        self._said = ""
        self._contact = clock()
        self._drift_due = 0.0
        self._stopping = threading.Event()
        self._opening = threading.Lock()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name=f"reflector-{name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._contact = self._clock()
        self._thread.start()

    def stop(self) -> None:
        """End soon, also from the midst of a quiet watch."""
        self._stopping.set()
        with self._opening:
            if self._stream is not None:
                self._stream.close()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def contact_age_s(self) -> float:
        """Seconds since the server said anything."""
        return self._clock() - self._contact

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except ClusterError as error:
                if _version_is_useless(error):
                    self._version = None
                if not self._stopping.is_set():
                    self._wait_out(error)

    def _turn(self) -> None:
        """One list, or one watch to its end, or both."""
        if self._version is None and self._streams_lists and not self._page_once:
            self._watch_list()
            return
        if self._version is None:
            self._page_once = False
            self._take(self._lister.paged())
            return
        if self._clock() >= self._drift_due:
            self._check_drift(self._version)
        if self._version is not None:
            began = self._clock()
            with self._open(resourceVersion=self._version) as stream:
                self._follow(wire.events(self._request, stream), began)

    # Lists

    def _watch_list(self) -> None:
        """A list that comes as events and goes on as the watch; pages where the server does not stream it."""
        began = self._clock()
        self._page_once = True  # unless it works
        try:
            stream = self._open(sendInitialEvents="true", resourceVersionMatch="NotOlderThan")
        except Invalid as error:
            self._page_from_now_on(str(error))
            return
        with stream:
            too_long = threading.Timer(self._rhythm.initial_s, stream.close)
            too_long.daemon = True
            too_long.start()
            events = wire.events(self._request, stream)
            try:
                listed = self._lister.streamed(events)
            except ApiError as error:
                if error.status != 500 and not isinstance(error, Invalid):
                    raise
                self._page_from_now_on(str(error))
                return
            finally:
                too_long.cancel()
            if listed is None:
                self._page_from_now_on("a streamed list had no end")
                return
            self._page_once = False
            self._take(listed)
            self._follow(events, began)

    def _take(self, listed: Listed[T]) -> None:
        self.stats.relists += self.synced.is_set()
        self.store.swap(listed.items, listed.version)
        self._version = listed.version
        self._plan_drift_check()
        self.synced.set()

    def _check_drift(self, version: str) -> None:
        """Compare with a list of exactly the version that the watch has reached."""
        self._plan_drift_check()
        try:
            listed = self._lister.paged(resourceVersion=version, resourceVersionMatch="Exact")
        except (Gone, Invalid):
            self._version = None  # compacted since: a new list does as well, but tells nothing
            return
        found = self.store.differences(listed.items, listed.version)
        if found:
            self.stats.drift += found
            self._version = None
            LOG.error(
                "%s: %d objects differ from the server's at %s; listing anew", self.name, found, version
            )

    def _plan_drift_check(self) -> None:
        self._drift_due = self._clock() + self._rhythm.drift_s * self._rng.uniform(0.8, 1.2)

    def _page_from_now_on(self, why: str) -> None:
        if not self._stopping.is_set():
            LOG.info("%s: lists come in pages, for the server streams none: %s", self.name, why)
        self._streams_lists = False

    # Watch

    def _follow(self, events: Iterator[wire.Event], began: float) -> None:
        """Take events until the watch ends."""
        for event in events:
            self._heard()
            self.stats.events += 1
            if event.type == "BOOKMARK":
                version = wire.meta(self._request, event.object).resource_version
                self.store.reached(version)
            elif event.type in ("ADDED", "MODIFIED", "DELETED"):
                version = self._apply(event)
            else:
                LOG.warning("%s: skipped an event of unknown type %r", self.name, event.type)
                continue
            self._version = later(self._version, version)
        lived_s = self._clock() - began
        if lived_s < SHORTEST_WATCH_S and not self._stopping.is_set():
            raise broken(self._request, f"the watch ended after {lived_s:.1f} s")
        self._said = ""

    def _apply(self, event: wire.Event) -> str:
        item = self._lister.item(event.object)
        if item is None:
            return wire.meta(self._request, event.object).resource_version
        taken = self.store.delete(item) if event.type == "DELETED" else self.store.upsert(item)
        self.stats.dropped += not taken
        return item.resource_version

    def _open(self, **query: str) -> Stream:
        self.stats.watches += 1
        stream = self._api.watch(
            self._path,
            timeout_s=self._rng.uniform(*self._rhythm.watch_s),
            allowWatchBookmarks="true",
            **self._query,
            **query,
        )
        self._heard()
        with self._opening:
            self._stream = stream
            if self._stopping.is_set():
                stream.close()
        return stream

    # Small steps

    def _wait_out(self, error: ClusterError) -> None:
        wait_s = self._backoff.next_s(error.retry_after_s if isinstance(error, ApiError) else None)
        self.stats.errors += 1
        self.fault = str(error)
        level = logging.DEBUG if self._said == self.fault else logging.WARNING
        LOG.log(level, "%s: %s; trying again in %.1f s", self.name, error, wait_s)
        self._said = self.fault
        self._stopping.wait(wait_s)

    def _heard(self) -> None:
        self._contact = self._clock()
        self.fault = None


def _version_is_useless(error: ClusterError) -> bool:
    """Whether to list anew: too old, not understood, or ahead of a server restored from a backup."""
    return isinstance(error, (Gone, Invalid)) or (
        isinstance(error, ApiError) and any(c.reason == "ResourceVersionTooLarge" for c in error.causes)
    )
