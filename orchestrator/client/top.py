"""`orch top`: who uses which GPUs now, and what waits for what."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.client.session import Session, Stored, submitter
from orchestrator.client.view import View, look
from orchestrator.client.waits import Wait, waits
from orchestrator.client.waits import to_json as waits_json
from orchestrator.client.why import held
from orchestrator.cluster.base import ObservedJob, ObservedPod
from orchestrator.controller.observed import attempt_of, runs_of, unit_of
from orchestrator.errors import NotFoundError, SweepError


@dataclass(frozen=True)
class Use:
    """A pod that has its GPUs, and for which runs. `since` in Unix seconds, None before it started.

    A fetch or a baseline is for all runs of its sweep: `runs` is then empty.
    """

    sweep: str
    submitted_by: str | None
    runs: tuple[str, ...]
    stage: str
    attempt: int
    job: str
    gpus: int
    node: str | None
    since: float | None
    gpu_hours: float

    def to_json(self) -> dict[str, Any]:
        """Its fields; `runs` holds names."""
        return {**vars(self), "runs": list(self.runs), "gpu_hours": round(self.gpu_hours, 3)}


@dataclass(frozen=True)
class Share:
    """What a sweep uses: GPUs now, and GPU-hours over all its attempts up to now."""

    sweep: str
    submitted_by: str | None
    gpus: int
    gpu_hours: float


@dataclass(frozen=True)
class Waiting:
    """Runs of a sweep that wait for the same."""

    sweep: str
    submitted_by: str | None
    wait: Wait
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Top:
    """Everything at `at` (Unix seconds); `led`: a controller works."""

    at: float
    led: bool
    uses: tuple[Use, ...] = ()
    shares: tuple[Share, ...] = ()
    waiting: tuple[Waiting, ...] = ()

    @property
    def gpus(self) -> int:
        """GPUs in use."""
        return sum(one.gpus for one in self.uses)


def top(session: Session) -> Top:
    """All sweeps of the place as they are now. One that is deleted meanwhile is left out."""
    now, led = time.time(), session.led()
    parts = [_part(session, one, now, led) for one in session.objects()]
    uses = sorted((one for part in parts for one in part.uses), key=lambda one: one.since or now)
    shares = sorted((one for part in parts for one in part.shares), key=lambda one: (-one.gpus, one.sweep))
    return Top(now, led, tuple(uses), tuple(shares), tuple(one for part in parts for one in part.waiting))


def _part(session: Session, value: dict[str, Any], now: float, led: bool) -> Top:
    if session.remote and over(value):
        share = Share(
            str(value["metadata"]["name"]), submitter(value), 0, value["status"].get("gpuHours", 0.0)
        )
        return Top(now, led, shares=(share,))
    try:
        stored = session.expanded(value)
        return of_sweep(stored, look(session, stored, now, led=led))
    except NotFoundError:
        return Top(now, led)
    except SweepError as error:  # it no longer expands: the controller refuses it, too
        name, who = str(value["metadata"]["name"]), submitter(value)
        said = held(value.get("status") or {}, name) or str(error)
        wait = Wait("refused", said, "correct its file and submit it again")
        return Top(now, led, waiting=(Waiting(name, who, wait, ()),))


def over(value: Mapping[str, Any]) -> bool:
    """Whether the controller said of exactly this Sweep object that nothing runs and nothing waits: PURE.

    A namespace keeps many such sweeps, and to look at the Jobs of each takes requests.
    """
    status, counts = value.get("status") or {}, (value.get("status") or {}).get("counts") or {}
    seen = status.get("observedGeneration") == value["metadata"].get("generation")
    return bool(
        seen and status.get("finished") and counts and not counts.get("pending") and not counts.get("trained")
    )


def of_sweep(stored: Stored, seen: View) -> Top:
    """One sweep's part: PURE."""
    name, who = stored.name, submitter(stored.object)
    uses = tuple(_uses(seen, who))
    share = Share(name, who, sum(one.gpus for one in uses), round(seen.world.gpu_seconds / 3600, 3))
    waiting = tuple(Waiting(name, who, wait, tuple(runs)) for wait, runs in waits(seen).items())
    return Top(seen.world.now, seen.led, uses, (share,), waiting)


def _uses(seen: View, who: str | None) -> Iterator[Use]:
    """Every pod that lives on a node, those of recorded Jobs too: they still hold their GPUs."""
    for job in seen.world.observed.jobs:
        for pod in job.pods:
            if pod.phase in ("Pending", "Running") and pod.node:
                yield _use(seen, who, job, pod)


def _use(seen: View, who: str | None, job: ObservedJob, pod: ObservedPod) -> Use:
    unit, world = unit_of(job), seen.world
    ids = (unit.id,) if unit.stage == "train" else runs_of(job)
    seconds = max(0.0, world.now - pod.started_at) if pod.started_at is not None else 0.0
    return Use(
        sweep=world.name,
        submitted_by=who,
        runs=tuple(world.runs.by_id[one].name if one in world.runs.by_id else one for one in ids),
        stage=unit.stage,
        attempt=attempt_of(job),
        job=job.name,
        gpus=job.gpus,
        node=pod.node,
        since=pod.started_at,
        gpu_hours=seconds * job.gpus / 3600,
    )


def to_json(top: Top) -> dict[str, Any]:
    """The JSON value of `orch top -o json`; field names stay, absent values are null."""
    return {
        "v": 1,
        "at": top.at,
        "controller": top.led,
        "gpus": top.gpus,
        "using": [one.to_json() for one in top.uses],
        "sweeps": [vars(one) for one in top.shares],
        "waiting": [
            {
                "sweep": one.sweep,
                "submitted_by": one.submitted_by,
                **(waits_json(one.wait) or {}),
                "runs": list(one.runs),
            }
            for one in top.waiting
        ],
    }
