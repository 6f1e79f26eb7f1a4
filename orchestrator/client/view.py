"""A sweep as it is now, and what a controller would do with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from orchestrator.client.given_up import with_given_up
from orchestrator.client.session import Session, Stored
from orchestrator.cluster.base import ObservedJob
from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.plan import Plan, plan
from orchestrator.controller.settling import settled
from orchestrator.controller.world import World


@dataclass(frozen=True)
class View:
    """`status` is what its controller told last; `led`: a controller works.

    `remote`: Jobs are a cluster's, else processes of this machine.
    """

    world: World
    plan: Plan
    status: Mapping[str, Any]
    led: bool = True
    remote: bool = True

    @cached_property
    def live(self) -> dict[str, ObservedJob]:
        """Unfinished Jobs by name."""
        return {job.name: job for job in self.world.live_jobs}

    @cached_property
    def conditions(self) -> dict[str, Mapping[str, Any]]:
        """Conditions that hold: what would be decided now, and what the API server said to the controller."""
        now = {one.type: one.model_dump() for one in self.plan.status.conditions if one.status == "True"}
        told = {one["type"]: one for one in self.status.get("conditions") or [] if one["status"] == "True"}
        kept = {kind: told[kind] for kind in ("JobsRefused", "Halted") if kind in told}
        if kept.get("Halted", {}).get("reason") != "CannotRender":
            kept.pop("Halted", None)  # the others can be told from here, and may be over
        return kept | now


def look(session: Session, stored: Stored, now: float, *, led: bool) -> View:
    """The view of a stored sweep at `now` (Unix seconds)."""
    observed = session.observe(stored)
    planned = plan(stored.sweep, stored.runs, observed, now, session.max_memory)
    planned = replace(planned, states=with_given_up(stored.name, planned.states, stored.status))
    world, _ = settled(World(stored.sweep, Catalogue.of(stored.runs), observed, now, session.max_memory))
    return View(world, planned, stored.status, led, session.remote)
