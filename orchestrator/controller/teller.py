"""Tells people how a sweep is: its stored status, and events for what is new in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster.base import Cluster
from orchestrator.controller.news import news
from orchestrator.controller.notice import notice
from orchestrator.controller.status import SweepStatus
from orchestrator.controller.webhook import Webhook
from orchestrator.errors import ClusterError
from orchestrator.profile import Notify

LOG = logging.getLogger(__name__)


@dataclass
class Teller:
    """A status is told at most every `every_s`, and every `hours_every_s` when its essence is as before.

    The webhook is told of what ended or halted as `notify` says at that moment.
    """

    cluster: Cluster
    every_s: float = 0.0
    hours_every_s: float = 0.0
    webhook: Webhook = field(default_factory=Webhook)
    notify: Callable[[], Notify | None] = lambda: None
    _told_at: dict[str, float] = field(default_factory=dict)

    def tell(self, name: str, stored: Mapping[str, Any], status: SweepStatus, now: float) -> float | None:
        """Store the status and tell what is new in it; in how many seconds, if it was told only just now.

        `stored` is the Sweep object as it was before.
        """
        before, value = stored.get("status"), status.to_json()
        if value == before:
            return None
        # GPU-hours and a scheduler's words change as long as a Job runs or waits; every write wakes us anew.
        every_s = self.hours_every_s if _essence(value) == _essence(before or {}) else self.every_s
        left_s = self._told_at.get(name, -every_s) + every_s - now
        if left_s > 0 and not status.finished:
            return left_s
        events = news(before, status, name)
        for event in events:  # first: once the status is stored, they are no news any more
            try:
                self.cluster.put_event(name, event)
            except ClusterError as error:  # the status says the same; one that is not taken costs no other
                LOG.warning("controller: an event was not told: %s", error)
        self.cluster.put_status(name, value)
        self._told_at[name] = now
        # Last: an event is told once however often it is posted, a webhook hears each call. Once or never.
        notify = self.notify()
        for event in events:
            if notify and event.moment in notify.on:
                self.webhook.post(notify, notice(stored, event, status))
        return None

    def forget(self, name: str) -> None:
        """Drop what is kept of a sweep that is gone."""
        self._told_at.pop(name, None)


def _essence(status: Mapping[str, Any]) -> dict[str, Any]:
    """A status but for its GPU-hours and the words of its conditions."""
    conditions = [{**one, "message": ""} for one in status.get("conditions") or []]
    return {**status, "gpuHours": 0, "conditions": conditions}
