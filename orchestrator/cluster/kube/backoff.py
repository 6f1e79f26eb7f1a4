"""How long to leave a server alone after a fault: client-go's numbers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

LONGEST_RETRY_AFTER_S = 300.0
"""No server's Retry-After keeps us away for longer."""


class Backoff:
    """Growing, jittered delays: `first_s` × 2ⁿ up to `most_s`, each up to twice as long, from the start again
    once nothing failed for `quiet_s`."""

    def __init__(
        self,
        first_s: float = 0.8,
        most_s: float = 30.0,
        quiet_s: float = 120.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._quiet_s = quiet_s
        self._clock = clock
        self._rng = rng or random.Random()
        self._delay_s = first_s
        self._until = -quiet_s

    def next_s(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait now; never less than the server asked for."""
        now = self._clock()
        if now - self._until > self._quiet_s:
            self._delay_s = self._first_s
        jittered = self._delay_s * (1 + self._rng.random())
        self._delay_s = min(self._most_s, self._delay_s * 2)
        asked = min(retry_after_s or 0.0, LONGEST_RETRY_AFTER_S)
        wait_s = max(jittered, asked)
        self._until = now + wait_s
        return wait_s
