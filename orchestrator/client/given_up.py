"""What the controller gave up without a record, as its status tells: no client sees it in Jobs and records.

Pure. Whether a Job's name is another's, and how often a Job vanished, only the controller knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.controller.observed import Unit
from orchestrator.controller.requests import fetch_of, fetch_unit, job_of
from orchestrator.controller.status import Failure, RunState


def with_given_up(sweep: str, states: Sequence[RunState], status: Mapping[str, Any]) -> tuple[RunState, ...]:
    """The states of a sweep's runs: those that seem to wait have failed when its status says so."""
    failures = [Failure.model_validate(one) for one in status.get("failures") or []]
    by_run = {one.run: one for one in reversed(failures)}  # those without a record come first
    return tuple(_told(sweep, state, by_run.get(state.run.id)) for state in states)


def _told(sweep: str, state: RunState, told: Failure | None) -> RunState:
    if told is None or state.state != "pending":
        return state
    if told.stage == "train" and told.attempt <= state.attempts:
        return state  # a recorded one, from which it goes on
    unit = fetch_unit(fetch_of(state.run.config)) if told.stage == "fetch" else Unit("train", state.run.id)
    return replace(
        state,
        state="failed",
        stage=told.stage,
        attempts=told.attempt,
        job=job_of(sweep, unit, told.attempt),
        failure=told.failure,
        evidence=told.evidence,
    )
