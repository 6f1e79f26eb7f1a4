"""How fast we write: a token bucket that gives way when the server sheds load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

WRITES_PER_S = 75.0
"""1,000 Jobs in (1,000 - 100) / 75 = 12 s. An API server on 2 cores takes 71 POSTs/s, Kueue asks for 300/s;
client-go's default of 5/s would need 200 s."""
BURST = 100
LEAST_PER_S = 1.0
HALVED_AGAIN_S = 1.0
"""All requests in flight are refused together: that is one refusal, not sixteen."""
LONGEST_HOLD_S = 60.0
ROUNDING_S = 1e-6
"""A rest of a wait that floats left over."""
RECOVERY_S = 60.0
"""From nothing back to the full rate."""


class Limiter:
    """At most `burst` writes at once and `rate` a second after that; safe to use from several threads.

    A 429 halves the rate and holds all writes for as long as the server asks (else a second); with every
    second of writes taken it grows back by a sixtieth of the full rate.
    """

    def __init__(
        self,
        rate: float = WRITES_PER_S,
        burst: int = BURST,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.rate = rate
        self.throttles = 0
        self.waited_s = 0.0
        self._full_rate = rate
        self._burst = burst
        self._clock = clock
        self._changed = threading.Condition()
        self._wait = wait or self._changed.wait
        self._tokens = float(burst)
        self._counted = clock()
        self._held_until = clock()
        self._halved = -HALVED_AGAIN_S
        self._taken = clock()
        self._closed = False

    def acquire(self) -> bool:
        """Wait for one's turn; False once closed."""
        with self._changed:
            began = self._clock()
            while not self._closed:
                wait_s = self._due_in_s()
                if wait_s < ROUNDING_S:
                    self._tokens -= 1
                    self.waited_s += self._clock() - began
                    return True
                self._wait(wait_s)
            return False

    def throttled(self, retry_after_s: float | None) -> None:
        """The server answered 429."""
        with self._changed:
            now = self._clock()
            self._due_in_s()
            self.throttles += 1
            if now - self._halved >= HALVED_AGAIN_S:
                self._halved = now
                self.rate = max(LEAST_PER_S, self.rate / 2)
            self._tokens = min(self._tokens, 1.0)  # what was saved up is not let loose after the pause
            asked_s = 1.0 if retry_after_s is None else min(retry_after_s, LONGEST_HOLD_S)
            self._held_until = max(self._held_until, now + asked_s)

    def succeeded(self) -> None:
        """The server took a write."""
        with self._changed:
            now = self._clock()
            since_s = min(now - self._taken, 1.0)
            self._taken = now
            self.rate = min(self._full_rate, self.rate + self._full_rate * since_s / RECOVERY_S)

    def close(self) -> None:
        """Let nothing through any more, and wake who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _due_in_s(self) -> float:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._counted) * self.rate)
        self._counted = now
        return max(self._held_until - now, (1 - self._tokens) / self.rate)
