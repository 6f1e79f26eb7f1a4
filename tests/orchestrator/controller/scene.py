"""A sweep on a fake cluster, stepped by plan() alone: no rendering, no loop."""

from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.cluster.base import Created
from orchestrator.controller.memory import Memory
from orchestrator.controller.observed import Control, Observed, read_records
from orchestrator.controller.plan import CreateJob, DeleteJob, Plan, RecordAttempt, plan
from orchestrator.controller.status import RunState
from orchestrator.render import render, template
from orchestrator.sweep import naming
from orchestrator.sweep.expand import expand
from orchestrator.sweep.spec import Sweep
from tests.orchestrator.fakes import FakeCluster


def a_sweep(count: int = 3, **spec: Any) -> Sweep:
    """A sweep `demo` of `count` runs r0, r1, … that differ in their learning rate."""
    runs = [{"name": f"r{i}", "params": {"learning_rate": (i + 1) * 1e-5}} for i in range(count)]
    base = {"groups": [{"name": "g", "runs": runs}], "resources": {"gpus": 1, "memory": "8Gi"}}
    return Sweep.model_validate(
        {
            "apiVersion": "orch.dev/v1alpha1",
            "kind": "Sweep",
            "metadata": {"name": "demo"},
            "spec": base | spec,
        }
    )


@contextlib.contextmanager
def filled_once() -> Iterator[None]:
    """For plays of one sweep that make the same Jobs again and again: half their time went into YAML."""
    filled: dict[str, dict[str, Any]] = {}

    def cached(name: str, context: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps([name, context], sort_keys=True)
        if key not in filled:
            filled[key] = template.fill(name, context)
        return copy.deepcopy(filled[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "fill", cached)
        yield


class Scene:
    """`turn` plans and does what was planned; `names` and friends find Jobs by what they are for."""

    def __init__(self, sweep: Sweep, *, max_memory: int | None = None) -> None:
        self.cluster = FakeCluster()
        self.max_memory = max_memory
        self.control = Control()
        self.memory = Memory("")
        self.created: Counter[str] = Counter()
        self.runs_of_eval: dict[str, tuple[str, ...]] = {}
        self.requests: dict[str, CreateJob] = {}
        self.change(sweep)

    def change(self, sweep: Sweep) -> None:
        self.sweep, self.runs = sweep, expand(sweep)

    @property
    def observed(self) -> Observed:
        jobs, now = tuple(self.cluster.made.values()), self.cluster.now
        records = read_records(self.cluster.stored_records)
        said = self.memory.said(jobs, now, self.cluster.said)
        return Observed(
            jobs=jobs,
            records=records,
            control=self.control,
            created=self.created,
            unreadable=frozenset(self.cluster.stored_records) - frozenset(records),
            since=self.memory.since(jobs, now, said),
            said=said,
        )

    def plan(self) -> Plan:
        return plan(self.sweep, self.runs, self.observed, self.cluster.now, self.max_memory)

    def turn(self, most: int | None = None) -> Plan:
        """With `most`, so many actions are done, and the answer to the last of them is lost."""
        planned = self.plan()
        for action in planned.actions[:most]:
            if isinstance(action, RecordAttempt):
                self.cluster.put_record("demo", action.record.job, action.record.to_json())
            elif isinstance(action, DeleteJob):
                self.cluster.delete_job(action.name)
            else:
                self.create(action, told=most is None or action is not planned.actions[:most][-1])
        return planned

    def create(self, action: CreateJob, *, told: bool = True) -> None:
        request = action.request
        labels = naming.labels(request.sweep, request.run_id, request.stage, request.attempt)
        annotations = naming.job_annotations(request.run_id, request.digest)
        annotations[naming.ANNOTATION_RUNS] = ",".join(action.runs)
        made = self.cluster.add(action.name, labels, annotations, request.resources.gpus)
        self.created[action.name] += told and made is Created.CREATED
        self.requests[action.name] = action

    def live(self, stage: str) -> list[str]:
        """Names of the unfinished Jobs of a stage, oldest first."""
        jobs = self.cluster.made.values()
        return [job.name for job in jobs if job.labels[naming.LABEL_STAGE] == stage and not job.finished]

    def job(self, run: str, stage: str = "train") -> str:
        """The unfinished Job of a run, by the run's name."""
        ids = {one.name: one.id for one in self.runs}
        return next(
            name for name in self.live(stage) if self.cluster.made[name].labels[naming.LABEL_RUN] == ids[run]
        )

    def fetched(self) -> Scene:
        """Goes on until the fetches are done and the first trainings are made."""
        self.turn()
        for name in self.live("fetch"):
            self.cluster.finish(name)
        self.turn()
        return self

    def trained(self, *runs: str) -> Scene:
        """Ends the trainings of these runs (all live ones by default) and goes on one turn."""
        for name in [self.job(run) for run in runs] or self.live("train"):
            self.cluster.finish(name)
            self.cluster.now += 1
        self.turn()
        return self

    def measured(self, stage: str = "eval") -> Scene:
        """Ends the live evaluations (or baselines) and goes on one turn."""
        for name in self.live(stage):
            self.cluster.finish(name)
        self.turn()
        return self

    def args(self, name: str) -> list[str]:
        return list(self.requests[name].request.args)

    def state(self, run: str) -> RunState:
        return next(state for state in self.plan().states if state.run.name == run)

    def states(self) -> dict[str, str]:
        return {state.run.name: state.state for state in self.plan().states}
