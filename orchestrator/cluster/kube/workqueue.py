"""Keys to be worked on: each once however often it is added, never by two workers, never lost.

client-go's semantics (util/workqueue): a key added while it is worked on comes again once that is done.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Retries(Generic[K]):
    """How long a key that failed waits: `first_s` × 2ⁿ up to `most_s`, and all keys share `per_s` a second.

    The numbers are those of client-go's DefaultControllerRateLimiter.
    """

    def __init__(
        self,
        first_s: float = 0.005,
        most_s: float = 1000.0,
        per_s: float = 10.0,
        burst: int = 100,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._failures: dict[K, int] = {}
        self._tokens = float(burst)
        self._counted = clock()

    def next_s(self, key: K) -> float:
        """Seconds until the key's next try; counts a failure."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._counted) * self._per_s) - 1
        self._counted = now
        # 2⁶⁰ is beyond any limit, and still a float.
        return max(min(self._most_s, self._first_s * 2.0 ** min(failures, 60)), -self._tokens / self._per_s)

    def forget(self, key: K) -> None:
        """It went well: the next failure is the first."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """How often in a row it failed."""
        return self._failures.get(key, 0)


class WorkQueue(Generic[K]):
    """Add keys from any thread; a worker takes one with `get` and gives it back with `done`."""

    def __init__(
        self, retries: Retries[K] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._retries = retries or Retries(clock=clock)
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[K] = deque()
        self._dirty: set[K] = set()
        self._processing: set[K] = set()
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._order = 0
        self._closed = False

    def __len__(self) -> int:
        """Keys ready to be taken."""
        with self._changed:
            self._ripen(self._clock())
            return len(self._queue)

    @property
    def waiting(self) -> int:
        """Keys whose time has not come."""
        with self._changed:
            return len(self._due)

    @property
    def closed(self) -> bool:
        """Whether it takes no more keys."""
        return self._closed

    def add(self, key: K) -> None:
        """To be worked on as soon as a worker is free; nothing new if it waits for one already."""
        with self._changed:
            if not self._closed:
                self._add(key)

    def add_after(self, key: K, delay_s: float) -> None:
        """As `add`, in so many seconds; the earliest time asked for holds."""
        with self._changed:
            if self._closed:
                return
            if delay_s <= 0:
                self._add(key)
                return
            due = self._clock() + delay_s
            if due < self._due.get(key, float("inf")):
                self._due[key] = due
                self._order += 1
                heapq.heappush(self._later, (due, self._order, key))
                # All, for each who waits must know the new time: one alone may be taken by another key.
                self._changed.notify_all()

    def add_rate_limited(self, key: K) -> None:
        """As `add`, after a delay that grows with the key's failures."""
        with self._changed:
            delay_s = self._retries.next_s(key)
        self.add_after(key, delay_s)

    def forget(self, key: K) -> None:
        """The key's failures are past."""
        with self._changed:
            self._retries.forget(key)

    def failures(self, key: K) -> int:
        """How often `add_rate_limited` was called since `forget`."""
        with self._changed:
            return self._retries.failures(key)

    def get(self, timeout_s: float | None = None) -> K | None:
        """The next key, to be given back with `done`; None after `timeout_s`, or when closed and empty."""
        give_up = None if timeout_s is None else self._clock() + timeout_s
        with self._changed:
            while True:
                # One reading for both: what ripens between two would look like the end of the wait.
                now = self._clock()
                self._ripen(now)
                if self._queue:
                    key = self._queue.popleft()
                    self._dirty.discard(key)
                    self._processing.add(key)
                    return key
                if self._closed:
                    return None
                wait_s = self._next_s(now, give_up)
                if wait_s is not None and wait_s <= 0:
                    return None
                self._changed.wait(wait_s)

    def done(self, key: K) -> None:
        """Give a key back; it comes again if it was added meanwhile."""
        with self._changed:
            self._processing.discard(key)
            if key in self._dirty:
                self._queue.append(key)
            self._changed.notify_all()

    def shutdown(self) -> None:
        """Take no more keys; what is ready is still handed out, what waits for its time is dropped."""
        with self._changed:
            self._ripen(self._clock())
            self._closed = True
            self._later.clear()
            self._due.clear()
            self._changed.notify_all()

    def shutdown_with_drain(self, timeout_s: float) -> bool:
        """As `shutdown`, and wait until all that was ready is done; False when that took too long."""
        self.shutdown()
        with self._changed:
            give_up = self._clock() + timeout_s
            while self._queue or self._processing:
                wait_s = give_up - self._clock()
                if wait_s <= 0:
                    return False
                self._changed.wait(wait_s)
            return True

    def _add(self, key: K) -> None:
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._processing:
            self._queue.append(key)
            self._changed.notify()

    def _ripen(self, now: float) -> None:
        """Move keys whose time has come to the queue."""
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            if self._due.get(key) == due:  # else an earlier time was asked for since
                del self._due[key]
                self._add(key)

    def _next_s(self, now: float, give_up: float | None) -> float | None:
        times = [at for at in (give_up, self._later[0][0] if self._later else None) if at is not None]
        return min(times) - now if times else None
