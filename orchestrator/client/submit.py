"""`orch submit`, `orch eval`, `orch retry`: change what is wanted, then see that someone works on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.client.session import Session, find
from orchestrator.controller.observed import Control, EvalRequest
from orchestrator.errors import SweepError, UserError
from orchestrator.sweep.expand import Run, expand
from orchestrator.sweep.load import from_object, load
from orchestrator.sweep.naming import ANNOTATION_SUBMITTER
from orchestrator.sweep.spec import EvalSpec, Sweep
from trainer.flags import describe


def submit(session: Session, file: Path, *, prune: bool = False) -> tuple[Sweep, tuple[Run, ...], bool]:
    """Store the sweep of a file; (sweep, runs, whether anything was written). What is equal is not written.

    Submitting again goes on after an interruption: it lifts the suspension. SweepError with every fault.
    """
    sweep = load(file)
    runs = expand(sweep, str(file))
    name = sweep.metadata.name
    wrote = not _stored_alike(session, sweep)
    if wrote:
        value = to_object(sweep)
        value["metadata"]["annotations"] = {ANNOTATION_SUBMITTER: session.user}
        session.cluster.put_sweep(value)
    control = session.control(name, suspend=False, prune=prune)
    return sweep, runs, wrote or control


def _stored_alike(session: Session, sweep: Sweep) -> bool:
    """Whether what is stored means the same, however it is spelled and whoever wrote it."""
    name = sweep.metadata.name
    stored = session.cluster.sweep(name)
    if stored and stored["metadata"].get("deletionTimestamp"):
        raise UserError(
            f"sweep {name}: is being deleted, and all would go with it; submit it again once it is gone"
        )
    try:
        return stored is not None and from_object(stored) == sweep
    except SweepError:
        return False


def to_object(sweep: Sweep) -> dict[str, Any]:
    """The Sweep object that is stored: what the file says, with defaults; null is not part of the schema."""
    return sweep.model_dump(mode="json", exclude_none=True)


def ask_eval(session: Session, name: str, tasks: Sequence[str], *, limit: int | None, teacher: bool) -> bool:
    """Ask for one more evaluation of every adapter of a sweep; whether it was new.

    `tasks`: none given means those of the sweep; each may hold several, parted by commas. Raises UserError.
    """
    names = [task.strip() for text in tasks for task in text.split(",") if task.strip()]
    try:
        EvalSpec.model_validate({"tasks": names} | ({"limit": limit} if limit is not None else {}))
    except ValidationError as error:
        raise UserError("\n".join(describe(error, "--", {"tasks": names, "limit": limit}))) from None
    request = EvalRequest(tasks=names or None, limit=limit, evalTeacher=teacher)
    session.sweep(name)  # its nearest name, if it is not there

    def asked(now: Control) -> dict[str, object]:
        return {"evals": [*now.evals, *([] if request in now.evals else [request])], "suspend": False}

    return session.command(name, asked)


def ask_retry(session: Session, name: str, runs: Sequence[str]) -> list[str]:
    """Give the failed or cancelled of `runs` (none given: all) another attempt; who gets it."""
    stored = session.sweep(name)
    chosen = {find(text, [stored]).run.id for text in runs} or {run.id for run in stored.runs}
    states = [one for one in session.states(stored) if one.run.id in chosen]
    again = [one for one in states if one.state in ("failed", "cancelled")]
    ours = {known for one in again for known in (one.run.id, one.run.name, *one.run.also)}
    jobs = [one.job for one in again if one.state == "failed" and one.job]
    everything = [run.id for run in stored.runs]

    def asked(now: Control) -> dict[str, object]:
        return {
            "retry": list(dict.fromkeys([*now.retry, *jobs])),
            "cancel": _without(now.cancel, ours, everything),
            "suspend": False,
        }

    session.command(name, asked)
    return [one.run.name for one in again]


def ask_suspend(session: Session, name: str, suspend: bool) -> bool:
    """Start no new Job of a sweep, or go on; whether that changes anything."""
    session.sweep(name)  # its nearest name, if it is not there
    return session.control(name, suspend=suspend)


def _without(cancelled: Sequence[str], ours: set[str], everything: Sequence[str]) -> list[str]:
    """The cancelled but ours; `*` is every other run."""
    spelled = [run for one in cancelled for run in (everything if one == "*" else [one])]
    return [one for one in dict.fromkeys(spelled) if one not in ours]
