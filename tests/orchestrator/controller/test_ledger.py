"""What is left out of a turn changes nothing but its cost."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.cluster.base import Created
from orchestrator.controller import loop, observed
from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.loop import Controller
from orchestrator.controller.observed import Observed, read_records
from orchestrator.controller.plan import CreateJob, plan
from orchestrator.controller.requests import base_of, protocols
from orchestrator.controller.rest import Rest
from orchestrator.profile import Profile
from orchestrator.sweep.load import from_object
from orchestrator.sweep.naming import ANNOTATION_RUNS, LABEL_STAGE
from tests.orchestrator.controller.scene import Scene, a_sweep
from tests.orchestrator.fakes import FakeCluster, done_record

AHEAD = 3
WORKED_OUT = 16
"""Times that the histories of a run may be: its two Jobs are made, started, ended, recorded and let go."""


class Compared(Controller):
    """At every turn what is planned of the part is what is planned of the whole."""

    left_out = 0

    def _observe(self, name: str, stored: Mapping[str, Any], runs: Catalogue) -> Observed:
        part = super()._observe(name, stored, runs)
        records = read_records(self.cluster.records(name))
        jobs = tuple(self.cluster.jobs(name))
        whole = replace(part, jobs=jobs, records=records, rest=Rest(), histories=None)
        sweep = from_object(stored)
        one = plan(sweep, runs, part, self.clock(), None, loop.CREATES_A_TURN)
        other = plan(sweep, tuple(runs), whole, self.clock(), None, loop.CREATES_A_TURN)
        assert sorted(map(repr, one.actions)) == sorted(map(repr, other.actions))
        assert one.status == other.status
        assert one.due_s == other.due_s
        self.left_out = max(self.left_out, len(other.states) - len(one.states))
        return part


class Keeping(FakeCluster):
    """As a cluster that keeps a finished Job until it is told for how long, which it may hear late."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    def retire_job(self, name: str, after_s: int) -> None:
        if self.random.random() < 0.5:
            super().retire_job(name, after_s)

    def add(
        self, name: str, labels: Mapping[str, str], annotations: Mapping[str, str], gpus: int = 0
    ) -> Created:
        made = super().add(name, labels, annotations, gpus)
        if made is Created.CREATED:
            self.set_state(name, retired=False)
        return made


class Fate:
    """What happens to the Jobs, and what their user wants, between two turns."""

    def __init__(self, seed: int, failing: float, turns: int = 60) -> None:
        self.random = random.Random(seed)
        self.failing = failing
        self.left = turns

    def __call__(self, cluster: FakeCluster) -> None:
        self.left -= 1
        for job in list(cluster.made.values()):
            if job.finished:
                if job.retired and self.random.random() < 0.1:
                    del cluster.made[job.name]
            elif self.left <= 0:
                self._end(cluster, job.name)
            elif self.random.random() < 0.5:
                self._go_on(cluster, job.name)
        if self.failing and self.random.random() < 0.03 and self.left > 0:
            self._command(cluster)

    def _go_on(self, cluster: FakeCluster, name: str) -> None:
        if not cluster.made[name].pods:
            cluster.start(name, ready=True, node=self.random.choice("ab"))
        elif self.random.random() >= self.failing:
            self._end(cluster, name)
        elif self.random.random() < 0.1:
            del cluster.made[name]
        else:
            said = self.random.choice(["", "", "CUDA error: uncorrectable ECC error"])
            cluster.fail(name, self.random.choice([1, 64, 70, 75, 79, 137, None]), message=said)

    def _end(self, cluster: FakeCluster, name: str) -> None:
        job = cluster.made[name]
        measured = filter(None, job.annotations.get(ANNOTATION_RUNS, "").split(","))
        text = [1000, 2.5, 0.1, self.random.random(), 0.01]  # tokens, nll, nll_se, kl, kl_se
        variants = [{"variant": "adapter", "run_id": run, "text": text} for run in measured]
        message = done_record(job, **({"variants": variants} if job.labels[LABEL_STAGE] == "eval" else {}))
        cluster.finish(name, message=message, seconds=self.random.uniform(10, 100))

    def _command(self, cluster: FakeCluster) -> None:
        runs = [f"r{number}" for number in range(20)]
        commands: list[dict[str, Any]] = [
            {"cancel": self.random.sample(runs, 2)},
            {"retry": [one["job"] for one in cluster.stored_records.values() if one["state"] == "failed"]},
            {"evals": [{"tasks": ["mmlu"]}]},
            {"cancel": ["*"]},
            {},
        ]
        cluster.stored["demo"]["spec"]["control"] = self.random.choices(commands, [3, 3, 2, 1, 3])[0]


@pytest.mark.parametrize("seed", range(9))
def test_a_part_is_planned_as_the_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CREATES_A_TURN", AHEAD)
    fate = Fate(seed, failing=(0.0, 0.1, 0.4)[seed % 3])
    two_bases = {"name": "h", "params": {"quant_type": "int4_sym"}, "grid": {"learning_rate": [1e-3, 2e-3]}}
    spec = a_sweep(20).model_dump(exclude_none=True)["spec"]
    sweep = a_sweep(
        1,
        groups=[*spec["groups"], two_bases],
        scheduling={"parallelism": fate.random.choice([2, 6]), "canary": fate.random.random() < 0.3},
        eval={
            "enabled": fate.random.random() < 0.9,
            "adaptersPerJob": fate.random.choice([1, 2, 4]),
            "baselines": fate.random.choice([[], ["teacher", "ptq"]]),
        },
    )
    cluster = Keeping(seed)
    cluster.put_sweep(sweep.model_dump(exclude_none=True))
    controller = Compared(cluster, Profile(allowImageTags=True), cluster.clock, check_schema=False)
    cluster.on_wait = fate
    status = controller.run(until_done=True, give_up_after=1)["demo"]
    assert status.counts["total"] == 22
    if not fate.failing:
        assert controller.left_out > 22 / 2, "most runs are left out of the last turns"


def test_baselines_that_something_closed_has_measured_are_not_measured_again() -> None:
    scene = Scene(a_sweep(2)).fetched()
    scene.cluster.finish(scene.job("r0"))
    base = base_of(scene.runs[0].config)
    [protocol] = protocols(scene.sweep.spec.eval, [])
    for measured, stage in (
        (frozenset[tuple[str, str]](), "baseline"),
        (frozenset({(protocol, base)}), "eval"),
    ):
        part = replace(scene.observed, rest=Rest(measured=measured))
        actions = plan(scene.sweep, scene.runs, part, scene.cluster.now).actions
        assert [one.request.stage for one in actions if isinstance(one, CreateJob)] == [stage]


class Counted(Controller):
    """The most that any turn looked at."""

    most = 0

    def _observe(self, name: str, stored: Mapping[str, Any], runs: Catalogue) -> Observed:
        part = super()._observe(name, stored, runs)
        present = part.rest.present or ()
        self.most = max(self.most, len(part.jobs), len(part.records), len(present), len(part.histories or ()))
        return part


def test_a_turn_does_not_cost_more_the_more_runs_are_done_or_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CREATES_A_TURN", AHEAD)
    worked_out = 0
    once = observed._history

    def counting(*args: Any) -> Any:
        nonlocal worked_out
        worked_out += 1
        return once(*args)

    monkeypatch.setattr(observed, "_history", counting)
    found = []
    for runs in (30, 120):
        worked_out = 0
        cluster = Keeping(0)
        cluster.put_sweep(a_sweep(runs, scheduling={"parallelism": 4}).model_dump(exclude_none=True))
        cluster.on_wait = Fate(0, failing=0.0, turns=10_000)
        controller = Counted(cluster, Profile(allowImageTags=True), cluster.clock, check_schema=False)
        assert controller.run(until_done=True, give_up_after=1)["demo"].counts["done"] == runs
        found.append((controller.most, worked_out / runs))
    [(few_most, few_each), (many_most, many_each)] = found
    assert many_most <= few_most + 4, "what a turn looks at is what is open"
    assert many_each <= few_each * 1.1
    assert many_each < WORKED_OUT, "a history is worked out when something happened to it"
