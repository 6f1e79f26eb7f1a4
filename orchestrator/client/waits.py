"""What each run that does not go on waits for, and what someone could do about it: PURE.

The order of the rules is that of the controller's own decisions: what holds the whole sweep comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.client.view import View
from orchestrator.cluster.base import ObservedJob
from orchestrator.controller.advice import about
from orchestrator.controller.observed import unit_of
from orchestrator.controller.outcome import FailureClass
from orchestrator.controller.plan import CreateJob, released
from orchestrator.controller.requests import fetch_unit, measure_fetch
from orchestrator.controller.status import FINAL, RunState

Reason = Literal[
    "refused", "suspended", "halted", "ending", "queue", "unschedulable", "starting", "canary", "fetch",
    "baseline", "quota", "parallelism", "batch", "controller", "turn",
]  # fmt: skip
"""Words that a program may rely on."""


@dataclass(frozen=True)
class Wait:
    """Why a run does not go on. `on` names the Job or run that it waits for, `remedy` what someone can do."""

    reason: Reason
    message: str
    remedy: str = ""
    on: str | None = None


def to_json(wait: Wait | None) -> dict[str, Any] | None:
    """The wait as JSON values; absent ones are null."""
    return {**vars(wait), "remedy": wait.remedy or None} if wait else None


def waits(view: View) -> dict[Wait, list[str]]:
    """Names of the runs that wait, by what for; those that go on or ended are left out."""
    found: dict[Wait, list[str]] = {}
    for state in view.plan.states:
        wait = wait_of(view, state)
        if wait:
            found.setdefault(wait, []).append(state.run.name)
    return found


def wait_of(view: View, state: RunState) -> Wait | None:
    """What one run waits for; None when it goes on or ended."""
    rules: tuple[Callable[[View, RunState], Wait | None], ...] = {
        "pending": (_own_job, _held, _last_pod, _canary, _fetch, _quota, _window, _turn),
        "trained": (_held, _text, _quota, _baseline, _window, _batch, _turn),
        "evaluating": (_own_job,),
    }.get(state.state, ())
    return next((wait for rule in rules if (wait := rule(view, state))), None)


def standing(view: View, job: ObservedJob) -> Wait | None:
    """Why a Job has no pod at work; None when it has one."""
    known = view.world.causes.get(job.name)
    if known:
        queue = view.world.sweep.spec.scheduling.queue if job.suspended else None
        said = known.evidence.removeprefix("Unschedulable: ") + (f" ({queue})" if queue else "")
        ends = f"it is ended after {known.ends_after_s:.0f} s of this" if known.ends_after_s else ""
        reason = "queue" if job.suspended else _REASONS.get(known.failure, "starting")
        return Wait(reason, said, _of_queue(queue) if queue else ends, job.name)
    if any(pod.phase == "Running" for pod in job.pods):
        return None
    if job.deleting:
        return Wait("ending", "its Job is being deleted", on=job.name)
    pod = next((pod for pod in job.pods if pod.living), None)
    if pod is None and view.remote:
        return Wait("starting", "its Job has no pod yet", on=job.name)
    if pod is None:
        return Wait("unschedulable", "no GPU of this machine is free for it", on=job.name)
    return Wait("starting", pod.waiting_reason or "its pod starts", on=job.name)


def _of_queue(queue: str) -> str:
    """Whom to ask: why it does not admit a Job, Kueue says in the Job's Workload and nowhere else."""
    return (
        f"`orch doctor --queue {queue}` tells whether it is there, `kubectl describe workloads` what it lacks"
    )


_REASONS: Mapping[FailureClass, Reason] = {
    FailureClass.UNSCHEDULABLE: "unschedulable",
    FailureClass.NODE_LOST: "ending",
}


def _own_job(view: View, state: RunState) -> Wait | None:
    job = view.live.get(state.job or "")
    return standing(view, job) if job else None


def _held(view: View, state: RunState) -> Wait | None:
    suspended, halted = view.conditions.get("Suspended"), view.conditions.get("Halted")
    if suspended:
        return Wait("suspended", "its sweep starts no new Job", about(suspended["reason"], view.world.name))
    # What halts a sweep halts trainings; adapters that exist are measured, unless no hours are left.
    if halted and (state.state == "pending" or halted["reason"] in ("GpuHoursUsed", "CannotRender")):
        remedy = about(halted["reason"], view.world.name)
        return Wait("halted", str(halted.get("message", "")), remedy)
    return None


def _last_pod(view: View, state: RunState) -> Wait | None:
    step = view.world.trains[state.run.id]
    if step.verb == "busy" and not step.job:
        return Wait("ending", "a pod of its last attempt has not ended")
    return None


def _canary(view: View, state: RunState) -> Wait | None:
    if not view.world.sweep.spec.scheduling.canary or released(view.world):
        return None
    first = next((one.run for one in view.plan.states if one.state not in FINAL), state.run)
    if first.id == state.run.id:
        return None
    return Wait("canary", f"run {first.name} goes first and has not done its first step", on=first.name)


def _fetch(view: View, state: RunState) -> Wait | None:
    return _shared(view, fetch_unit(view.world.runs.fetches[state.run.id]).id, "fetch", "model and data come")


def _text(view: View, state: RunState) -> Wait | None:
    texts = [fetch for one in view.world.protocols if (fetch := measure_fetch(one))]
    found = (_shared(view, fetch_unit(text).id, "fetch", "texts and tasks come") for text in texts)
    return next(filter(None, found), None)


def _baseline(view: View, state: RunState) -> Wait | None:
    units = map(unit_of, view.world.live_jobs)
    baseline = next((unit.id for unit in units if unit.stage == "baseline"), None)
    return _shared(view, baseline, "baseline", "teacher and ptq are measured") if baseline else None


def _shared(view: View, unit: str, reason: Literal["fetch", "baseline"], said: str) -> Wait | None:
    """A Job that several runs wait for, and what that one waits for in turn."""
    job = next((one for one in view.world.live_jobs if unit_of(one).id == unit), None)
    if job is None:
        return None
    why = standing(view, job)
    return Wait(
        reason, f"{said}; {why.message}" if why else f"{said} first", why.remedy if why else "", job.name
    )


def _quota(view: View, state: RunState) -> Wait | None:
    refused = view.conditions.get("JobsRefused")
    if not refused:
        return None
    return Wait("quota", str(refused.get("message", "")), about(refused["reason"], view.world.name))


def _window(view: View, state: RunState) -> Wait | None:
    most, now = view.world.sweep.spec.scheduling.parallelism, len(view.live)
    if now < most:
        return None
    said = f"{now} of at most {most} Jobs of its sweep are there"
    return Wait("parallelism", said, "raise scheduling.parallelism and submit again")


def _batch(view: View, state: RunState) -> Wait | None:
    each = view.world.sweep.spec.eval.adaptersPerJob
    starts = (one for one in view.plan.actions if isinstance(one, CreateJob) and state.run.id in one.runs)
    if each == 1 or next(starts, None):
        return None
    return Wait("batch", f"up to {each} adapters are measured together; others are still trained")


def _turn(view: View, state: RunState) -> Wait | None:
    if view.led:
        return Wait("turn", "the controller takes it next")
    remedy = "`orch doctor` tells what is missing" if view.remote else "submit its file again"
    return Wait("controller", "no controller works", remedy)
