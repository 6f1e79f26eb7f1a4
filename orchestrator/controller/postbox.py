"""Hands to the webhook what is owed, and knows what came of it; it is forgotten when the controller ends."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from orchestrator.controller.notice import notice
from orchestrator.controller.owed import Owed, too_old
from orchestrator.controller.webhook import Webhook
from orchestrator.profile import Notify

LOG = logging.getLogger(__name__)
POST_AGAIN_S = 300.0
"""What nobody took is posted again this much later."""


class Postbox:
    """`wake` is called, from the webhook's thread, with the name of a sweep whose notice is settled."""

    def __init__(self) -> None:
        self.webhook = Webhook()
        self.wake: Callable[[str], None] = lambda name: None
        self._came: queue.SimpleQueue[tuple[str, Owed, bool]] = queue.SimpleQueue()
        self._flying: dict[str, set[Owed]] = {}
        self._failed_at: dict[str, dict[Owed, float]] = {}
        self._settled: dict[str, set[Owed]] = {}

    @property
    def names(self) -> list[str]:
        """The sweeps of which something was settled, or was under way when last heard of."""
        return sorted({*self._settled, *(name for name, flying in self._flying.items() if flying)})

    def gone(self, name: str, owed: Sequence[Owed], now: float) -> set[Owed]:
        """Which of these need not be posted any more: taken, refused for good, or tried for too long."""
        while not self._came.empty():
            sweep, one, settled = self._came.get()
            self._flying.get(sweep, set()).discard(one)
            if settled:
                self._settled.setdefault(sweep, set()).add(one)
            else:
                self._failed_at.setdefault(sweep, {})[one] = now
        tried = self._failed_at.get(name, {})
        old = {one for one in owed if one in tried and too_old(one, now)}
        for one in old:
            LOG.error("controller: %s of %s was not told: given up", one.moment, name)
        over = self._settled.get(name, set())
        over &= set(owed)  # the others were dropped from what is stored: they need not be known any more
        return over | old

    def post(
        self, name: str, stored: Mapping[str, Any], owed: Sequence[Owed], notify: Notify | None, now: float
    ) -> float | None:
        """Post what is not under way; in how many seconds something is to be posted again, if it is."""
        if notify is None:
            return None
        again_s = None
        flying, failed = self._flying.setdefault(name, set()), self._failed_at.setdefault(name, {})
        for one in owed:
            if one in flying:
                continue
            if one in failed and (left_s := failed[one] + POST_AGAIN_S - now) > 0:
                again_s = min(again_s or left_s, left_s)
                continue
            if self.webhook.post(notify, notice(stored, one), partial(self._posted, name, one)):
                flying.add(one)
            else:
                again_s = POST_AGAIN_S
        return again_s

    def forget(self, name: str) -> None:
        """Drop what is kept of a sweep that is gone."""
        for kept in (self._flying, self._failed_at, self._settled):
            kept.pop(name, None)

    def _posted(self, name: str, one: Owed, settled: bool) -> None:
        self._came.put((name, one, settled))
        self.wake(name)
