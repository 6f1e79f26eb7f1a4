"""Tells people how a sweep is: its stored status, and events for what is new in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster.base import Cluster
from orchestrator.controller.news import news
from orchestrator.controller.status import SweepStatus
from orchestrator.errors import ClusterError

LOG = logging.getLogger(__name__)


@dataclass
class Teller:
    """A status is told at most every `every_s`, and every `hours_every_s` when only its GPU-hours are new."""

    cluster: Cluster
    every_s: float = 0.0
    hours_every_s: float = 0.0
    _told_at: dict[str, float] = field(default_factory=dict)

    def tell(
        self, name: str, before: Mapping[str, Any] | None, status: SweepStatus, now: float
    ) -> float | None:
        """Store the status and tell what is new in it; in how many seconds, if it was told only just now."""
        value = status.to_json()
        if value == before:
            return None
        # GPU-hours grow as long as a Job runs, and every write wakes the controller anew.
        alone = {**value, "gpuHours": 0} == {**(before or {}), "gpuHours": 0}
        every_s = self.hours_every_s if alone else self.every_s
        left_s = self._told_at.get(name, -every_s) + every_s - now
        if left_s > 0 and not status.finished:
            return left_s
        for event in news(before, status):  # first: once the status is stored, they are no news any more
            try:
                self.cluster.put_event(name, event)
            except ClusterError as error:  # the status says the same; one that is not taken costs no other
                LOG.warning("controller: an event was not told: %s", error)
        self.cluster.put_status(name, value)
        self._told_at[name] = now
        return None

    def forget(self, name: str) -> None:
        """Drop what is kept of a sweep that is gone."""
        self._told_at.pop(name, None)
