"""`orch why` and `orch logs`: what happened to a run, attempt by attempt."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.client import waits
from orchestrator.client.session import Found, Session
from orchestrator.client.view import look
from orchestrator.client.waits import Wait, wait_of
from orchestrator.controller.advice import about
from orchestrator.controller.outcome import AttemptRecord
from orchestrator.controller.requests import fetch_of, fetch_unit, measure_fetch
from orchestrator.controller.status import RunState
from orchestrator.errors import NotFoundError, OrchError
from trainer.results import Stage

LOG_TAIL = 15


@dataclass(frozen=True)
class Account:
    """All that is known of a run: its state now, its attempts, and the end of the log of what failed last.

    `wait` is what it waits for, `held` what keeps the whole sweep from going on.
    """

    sweep: str
    state: RunState
    attempts: tuple[AttemptRecord, ...]
    log: tuple[str, ...] = ()
    wait: Wait | None = None
    held: str = ""


def why(session: Session, text: str) -> Account:
    """The account of the run that `text` names. UserError as Session.run."""
    found = session.run(text)
    seen = look(session, found.stored, time.time(), led=session.led())
    state = next(one for one in seen.plan.states if one.run.id == found.run.id)
    attempts = tuple(one for one in session.records(found.stored) if _concerns(one, found))
    failed = [one for one in attempts if one.state == "failed"]
    tail = _tail(session, failed[-1].job) if failed and state.state != "done" else ()
    return Account(
        found.stored.name,
        state,
        attempts,
        tail,
        wait_of(seen, state),
        held(found.stored.status, found.stored.name),
    )


def held(status: Mapping[str, Any], sweep: str = "") -> str:
    """What keeps a sweep from going on, as its controller said it; empty when nothing does.

    With the name of the `sweep`, also what someone can do about it.
    """
    by_type = {one["type"]: one for one in status.get("conditions") or []}
    for kind, word in (
        ("Suspended", "suspended"),
        ("Halted", "halted"),
        ("JobsRefused", "waits"),
        ("Waiting", "waits"),
    ):
        one = by_type.get(kind)
        if one:
            advice = about(one.get("reason", ""), sweep) if sweep else ""
            return f"{word}: " + "; ".join(filter(None, (one.get("message", ""), advice)))
    accepted = by_type.get("Accepted", {})
    return f"refused: {accepted.get('message', '')}" if accepted.get("status") == "False" else ""


def to_json(account: Account) -> dict[str, Any]:
    """The account as JSON values: the run's state, and every attempt's record."""
    state = account.state
    return {
        "v": 1,
        "sweep": account.sweep,
        "name": state.run.name,
        "id": state.run.id,
        "state": state.state,
        "stage": state.stage,
        "failure": state.failure,
        "evidence": state.evidence or None,
        "remedy": state.remedy or None,
        "attempts": [one.to_json() for one in account.attempts],
        "log": list(account.log),
        "waits": waits.to_json(account.wait),
        "held": account.held or None,
    }


def _state(session: Session, found: Found) -> RunState:
    return next(one for one in session.states(found.stored) if one.run.id == found.run.id)


def _concerns(record: AttemptRecord, found: Found) -> bool:
    """Its training, what measures it, the fetch it waits for, and what all wait for."""
    run = found.run
    text = measure_fetch(found.stored.sweep.spec.eval.model_dump_json())
    fetched = {fetch_unit(one).id for one in (fetch_of(run.config), text) if one}
    return run.id in (record.run_id, *record.runs) or record.run_id in fetched or record.stage == "baseline"


def _tail(session: Session, job: str) -> tuple[str, ...]:
    try:
        return tuple(line.rstrip("\n") for line in session.cluster.logs(job, tail=LOG_TAIL))
    except (OrchError, OSError):
        return ()


def logs(
    session: Session, text: str, *, follow: bool, stage: Stage | None, tail: int | None
) -> Iterator[str]:
    """Lines of the newest Job's log of a run, or of a stage of it. NotFoundError when it has had none."""
    found = session.run(text)
    job = _job(session, found, stage)
    if job is None:
        what = f"stage {stage}" if stage else "Job"
        raise NotFoundError(f"run {text}: has had no {what} yet, so there is no log; see `orch status`")
    return (line.rstrip("\n") for line in session.cluster.logs(job, follow=follow, tail=tail))


def _job(session: Session, found: Found, stage: Stage | None) -> str | None:
    state = _state(session, found)
    if state.job and stage in (None, state.stage):
        return state.job
    jobs = [one.job for one in session.records(found.stored) if _concerns(one, found) and one.stage == stage]
    return jobs[-1] if jobs else None
