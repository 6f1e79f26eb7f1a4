"""How far every run of a sweep is: its state, and the last progress line of its Job's log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.client.session import Session, Stored
from orchestrator.cluster.base import Cluster, ObservedJob
from orchestrator.controller.observed import Unit, unit_of
from orchestrator.controller.requests import fetch_of, fetch_unit
from orchestrator.controller.status import RunState
from orchestrator.errors import OrchError
from trainer.results import Progress, Stage, parse_progress

LOG_TAIL = 40
"""Lines of a log in which the last progress line is looked for."""
BUSY = frozenset({"running", "evaluating"})


@dataclass(frozen=True)
class RunProgress:
    """A run's state with the progress of the Job it runs in now.

    `waits_for` is the stage of a Job that it waits for and that runs now: a fetch, or the baselines.
    """

    state: RunState
    progress: Progress | None = None
    waits_for: Stage | None = None

    @property
    def share(self) -> float:
        """How much of the Job is done, in [0, 1]."""
        if self.state.state == "done":
            return 1.0
        known = self.progress
        return min(1.0, known.done / known.total) if known and known.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The JSON value of `orch status -o json`; absent numbers are null."""
        state, known = self.state, self.progress
        return {
            "name": state.run.name,
            "id": state.run.id,
            "state": state.state,
            "stage": state.stage,
            "attempt": state.attempts,
            "job": state.job,
            "waits_for": self.waits_for,
            "failure": state.failure,
            "evidence": state.evidence or None,
            "remedy": state.remedy or None,
            "done": known.done if known else None,
            "total": known.total if known else None,
            "loss": known.loss if known else None,
            "tokens_per_s": known.tokens_per_s if known else None,
            "seconds_left": known.seconds_left if known else None,
        }


def progress_of(session: Session, stored: Stored) -> list[RunProgress]:
    """Every run of a sweep with its progress; a log is read once for all runs of its Job."""
    states = session.states(stored)
    shared = {unit_of(job): job for job in session.cluster.jobs(stored.name) if not job.finished and job.pods}
    found = [(one, _busy_with(one, shared)) for one in states]
    logs = {job: last_progress(session.cluster, job) for job in {job for _, (job, _) in found if job}}
    return [RunProgress(one, logs.get(job or ""), waits_for) for one, (job, waits_for) in found]


def _busy_with(state: RunState, shared: Mapping[Unit, ObservedJob]) -> tuple[str | None, Stage | None]:
    """(the Job whose progress is the run's, the stage it waits for if that is another's)."""
    if state.state in BUSY:
        return state.job, None
    if state.state == "pending":
        job = shared.get(fetch_unit(fetch_of(state.run.config)))
        return (job.name, "fetch") if job else (None, None)
    if state.state == "trained":
        names = [job.name for unit, job in shared.items() if unit.stage == "baseline"]
        return (names[0], "baseline") if names else (None, None)
    return None, None


def last_progress(cluster: Cluster, job: str) -> Progress | None:
    """The last progress a Job's log tells of, None when it tells of none or there is no log yet."""
    try:
        return newest(cluster.logs(job, tail=LOG_TAIL))
    except (OrchError, OSError):
        return None


def newest(lines: Iterable[str]) -> Progress | None:
    """The last progress line among `lines`."""
    found = [progress for line in lines if (progress := parse_progress(line.strip())) is not None]
    return found[-1] if found else None


def seconds_left(runs: Sequence[RunProgress], done_s: Sequence[float], slots: int = 1) -> float | None:
    """Estimate of the seconds left, over `slots` Jobs at once; None when nothing tells how long a run takes.

    A run that waits takes as long as the mean of those done (`done_s`), or else of those that run.
    """
    running = [
        (one.progress.seconds_left, one.share)
        for one in runs
        if one.state.state in BUSY and one.progress and one.progress.seconds_left is not None
    ]
    waiting = sum(one.state.state == "pending" for one in runs)
    typical = list(done_s) or [left / (1 - share) for left, share in running if share < 1]
    if (waiting and not typical) or not (waiting or running):
        return None
    mean = sum(typical) / len(typical) if typical else 0.0
    each = [left for left, _ in running]
    return max([*each, (sum(each) + waiting * mean) / max(1, slots)])
