"""How long the controller thinks: plan() over sweeps as they are at their beginning, midway and end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from bench.fake_kubelet import FakePod, done_record
from bench.figures import Figure, median
from orchestrator.cluster.base import Condition, ObservedJob, ObservedPod
from orchestrator.cluster.kube import decode
from orchestrator.controller.observed import Observed, runs_of
from orchestrator.controller.outcome import AttemptRecord
from orchestrator.controller.plan import CreateJob, Plan, RecordAttempt, plan
from orchestrator.profile import Profile
from orchestrator.render import DUMP_MOUNT, render_job
from orchestrator.sweep.expand import Run, expand
from orchestrator.sweep.load import from_object
from orchestrator.sweep.naming import ANNOTATION_RUN, ANNOTATION_RUNS, LABEL_STAGE, LABEL_SWEEP
from orchestrator.sweep.spec import API_VERSION, KIND, Sweep

REPEATS = 5
SEEDS = 10


def sweep_object(name: str, runs: int, **spec: Any) -> dict[str, Any]:
    """A sweep of so many runs, rounded up to tens, all at once unless `spec` says otherwise."""
    rates = [round(1e-6 * (number + 1), 9) for number in range(-(-runs // SEEDS))]
    head = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}}
    scheduling = {"parallelism": 10_000} | spec.pop("scheduling", {})
    group = {"name": "lr", "grid": {"learning_rate": rates}}
    whole = {"params": {"quant_type": "int4"}, "groups": [group], "seeds": list(range(SEEDS)), **spec}
    return head | {"spec": whole | {"scheduling": scheduling}}


@dataclass
class Played:
    """A sweep played to its end without a cluster, Job by Job, with what the controller would see."""

    sweep: Sweep
    runs: tuple[Run, ...]
    uid: str = "uid"
    observed: Observed = field(default_factory=Observed)
    now: float = 1_800_000_000.0

    @classmethod
    def of(cls, value: dict[str, Any], uid: str = "uid") -> Played:
        sweep = from_object(value)
        return cls(sweep, expand(sweep, "bench"), uid, Observed(uid=uid))

    def plan(self) -> Plan:
        return plan(self.sweep, self.runs, self.observed, self.now)

    def until_training(self) -> None:
        """Every run has a Job to be made, what they wait for being fetched."""
        while not any(_stage(one) == "train" for one in _created(self.plan())):
            self._turn(end=True)

    def start_all(self) -> None:
        """Make the Jobs that are wanted; their pods run."""
        self._turn(end=False)

    def end_all(self) -> None:
        """Go on until nothing is left to do."""
        self.observed = replace(self.observed, jobs=tuple(map(_ended, self.observed.jobs)))
        while self.plan().actions:
            self._turn(end=True)

    def _turn(self, *, end: bool) -> None:
        self.now += 60.0
        planned = self.plan()
        records = {one.record.job: one.record for one in planned.actions if isinstance(one, RecordAttempt)}
        made = [_running(one, self.now) for one in _created(planned)]
        self.observed = replace(
            self.observed,
            jobs=(*self.observed.jobs, *(map(_ended, made) if end else made)),
            records={**self.observed.records, **records},
        )


def records_of(value: dict[str, Any], uid: str) -> Iterable[AttemptRecord]:
    """The records of a sweep in which everything went well."""
    played = Played.of(value, uid)
    played.until_training()
    played.start_all()
    played.end_all()
    return played.observed.records.values()


def measure(runs: int) -> Iterable[Figure]:
    """Seconds of one plan() in three worlds."""
    played = Played.of(sweep_object("plan", runs))
    played.until_training()
    yield _timed(played, "all to be started")
    played.start_all()
    yield _timed(played, "all training")
    played.end_all()
    yield _timed(played, f"all done ({len(played.observed.records):,} records)")


def _timed(played: Played, what: str) -> Figure:
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        played.plan()
        taken.append(time.perf_counter() - began)
    return Figure(f"plan of {len(played.runs):,} runs, {what}", median(taken), "s", at_most=1.0)


def _created(planned: Plan) -> list[CreateJob]:
    return [one for one in planned.actions if isinstance(one, CreateJob)]


def _stage(one: CreateJob) -> str:
    return one.request.stage


def _running(one: CreateJob, now: float) -> ObservedJob:
    manifest = render_job(one.request, PROFILE, check_schema=False)
    if one.runs:
        manifest["metadata"]["annotations"][ANNOTATION_RUNS] = ",".join(one.runs)
    kept = decode.job(json.dumps(manifest).encode())
    pod = ObservedPod(f"pod-{one.name}", "Running", ready=True, node="node", created_at=now, started_at=now)
    return replace(kept.job, uid=f"uid-{one.name}", created_at=now, pods=(pod,))


def _ended(job: ObservedJob) -> ObservedJob:
    if job.finished:
        return job
    sweep = job.labels[LABEL_SWEEP]
    adapters = tuple(f"{DUMP_MOUNT}/{sweep}/{run}" for run in runs_of(job))
    said = FakePod(job.name, sweep, job.labels[LABEL_STAGE], job.annotations[ANNOTATION_RUN], adapters)
    pod = replace(
        job.pods[0],
        phase="Succeeded",
        ready=False,
        exit_code=0,
        message=done_record(said),
        finished_at=job.created_at + 60.0,
    )
    return replace(job, pods=(pod,), conditions={"Complete": Condition("CompletionsReached")}, retired=True)


PROFILE = Profile(image="registry.example/orch-trainer@sha256:" + "0" * 64)
