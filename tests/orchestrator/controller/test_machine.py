"""Whatever happens to Jobs, pods and records, in any order: what must hold always, and that it ends well."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.cluster.base import Condition, ObservedJob, ObservedPod
from orchestrator.controller.observed import ALL_RUNS, Observed
from orchestrator.controller.plan import CreateJob, Plan
from orchestrator.controller.status import STATES
from orchestrator.sweep.naming import LABEL_RUN, LABEL_STAGE
from tests.orchestrator.controller.scene import Scene, a_sweep

RUNS = 4
CODES = (64, 70, 75, 77, 79, 137, None)
WINDOW = 3
GPU_HOURS = 0.03  # two Jobs, of a minute each


class LateScene(Scene):
    """What the controller sees of Jobs is what it was told last; only of its own it knows at once."""

    told: dict[str, ObservedJob]

    @property
    def observed(self) -> Observed:
        return replace(super().observed, jobs=tuple(self.told.values()))

    def hear(self) -> None:
        self.told = dict(self.cluster.made)

    def turn(self, most: int | None = None) -> Plan:
        planned = super().turn(most)
        for name, job in self.cluster.made.items():
            self.told.setdefault(name, job)
        return planned


class Machine(RuleBasedStateMachine):
    """A sweep of four runs; the world does what it likes between the controller's turns."""

    @initialize(
        per_job=strategies.integers(1, 4),
        canary=strategies.booleans(),
        hours=strategies.sampled_from([None, GPU_HOURS]),
        begun=strategies.integers(0, 3),
    )
    def submit(self, per_job: int, canary: bool, hours: float | None, begun: int) -> None:
        patient = {"retry": {"userError": 100, "internal": 100, "stalled": 100, "unknown": 100, "lost": 100}}
        self.sweep = partial(
            a_sweep,
            RUNS,
            eval={"adaptersPerJob": per_job},
            retry=patient["retry"] | {"preempted": 100, "oomCuda": 100, "unverified": 100},
        )
        self.scheduling = {"parallelism": WINDOW, "canary": canary}
        self.hours = hours
        self.scene = LateScene(
            self.sweep(scheduling=self.scheduling | ({"gpuHours": hours} if hours else {}))
        )
        self.scene.told = {}
        self.done: set[str] = set()
        self.measured: dict[str, str] = {}
        self.lost_at: dict[str, float] = {}
        self.go_on(begun)

    def job(self, data: strategies.DataObject, jobs: list[ObservedJob]) -> str:
        return data.draw(strategies.sampled_from(sorted(job.name for job in jobs)))

    @property
    def unfinished(self) -> list[ObservedJob]:
        return [job for job in self.scene.cluster.made.values() if not job.finished]

    @rule(late=strategies.booleans())
    def turn(self, late: bool) -> None:
        """Late: of what became of Jobs since the last turn nothing was heard."""
        self.act(late, None)
        if not late:
            self.scene.hear()
            assert self.scene.plan().actions == (), "a second look at the same world finds something to do"

    @rule(turns=strategies.integers(1, 3))
    def go_on(self, turns: int) -> None:
        """Without this few examples would get beyond the first training."""
        for _ in range(turns):
            self.turn(late=False)
            for job in self.unfinished:
                self.scene.cluster.finish(job.name)

    @rule(late=strategies.booleans(), most=strategies.integers(1, 4))
    def be_cut_off(self, late: bool, most: int) -> None:
        """The answer to the controller's first, second … action is lost, and the rest is not done."""
        self.act(late, most)

    def act(self, late: bool, most: int | None) -> None:
        if not late:
            self.scene.hear()
        before = set(self.scene.cluster.stored_records)
        spent = sum(one["gpu_seconds"] for one in self.scene.cluster.stored_records.values())
        for action in self.scene.turn(most).actions[:most]:
            if isinstance(action, CreateJob):
                assert self.hours is None or spent < self.hours * 3600, "a Job beyond the GPU-hours"
                request = action.request
                assert action.name not in before, "an attempt that is recorded was made again"
                assert f"{request.stage} {request.run_id}" not in self.done, "what was done is run again"
                assert not self.written_to(request.run_id), "an attempt starts beside a pod of the former"
                for run in action.runs:
                    assert self.measured.setdefault(run, request.run_id) == request.run_id
        for record in self.scene.cluster.stored_records.values():
            if record["state"] == "done":
                self.done.add(f"{record['stage']} {record['run_id']}")

    def written_to(self, run: str) -> bool:
        """Whether a pod of a lost node may still write: it has a grace of 60 s and 120 s more."""
        return any(
            pod.phase == "Running" and self.scene.cluster.now < self.lost_at[job.name] + 180
            for job in self.scene.cluster.made.values()
            if job.labels[LABEL_RUN] == run and job.name in self.lost_at
            for pod in job.pods
        )

    @precondition(lambda self: self.unfinished)
    @rule(data=strategies.data(), ready=strategies.booleans())
    def start(self, data: strategies.DataObject, ready: bool) -> None:
        self.scene.cluster.start(self.job(data, self.unfinished), ready=ready)

    @precondition(lambda self: self.unfinished)
    @rule(data=strategies.data())
    def finish(self, data: strategies.DataObject) -> None:
        self.scene.cluster.finish(self.job(data, self.unfinished))

    @precondition(lambda self: self.unfinished)
    @rule(data=strategies.data(), code=strategies.sampled_from(CODES))
    def fail(self, data: strategies.DataObject, code: int | None) -> None:
        self.scene.cluster.fail(self.job(data, self.unfinished), code)

    @precondition(lambda self: self.unfinished)
    @rule(data=strategies.data())
    def complete_without_a_record(self, data: strategies.DataObject) -> None:
        self.scene.cluster.finish(self.job(data, self.unfinished), message="")

    @precondition(lambda self: self.scene.cluster.made)
    @rule(data=strategies.data())
    def vanish(self, data: strategies.DataObject) -> None:
        name = self.job(data, list(self.scene.cluster.made.values()))
        self.scene.cluster.made.pop(name)

    @precondition(lambda self: self.unfinished)
    @rule(data=strategies.data())
    def leave_a_zombie(self, data: strategies.DataObject) -> None:
        """The node is lost: the Job has failed, and its pod may still be writing."""
        lost = {"DisruptionTarget": Condition("DeletionByTaintManager")}
        name = self.job(data, self.unfinished)
        self.lost_at[name] = self.scene.cluster.now
        pod = ObservedPod(f"pod-{name}", "Running", started_at=self.scene.cluster.now, conditions=lost)
        self.scene.cluster.set_state(
            name, pods=(pod,), conditions={"Failed": Condition("BackoffLimitExceeded")}
        )

    @rule(seconds=strategies.sampled_from([1.0, 100.0, 1000.0]))
    def pass_time(self, seconds: float) -> None:
        self.scene.cluster.now += seconds

    @rule(suspend=strategies.booleans())
    def suspend(self, suspend: bool) -> None:
        self.command(suspend=suspend)

    @rule(cancel=strategies.sets(strategies.sampled_from(["r0", "r1", ALL_RUNS]), max_size=2))
    def cancel(self, cancel: set[str]) -> None:
        """Also taken back: `orch retry` does it."""
        self.command(cancel=sorted(cancel))

    @rule()
    def retry(self) -> None:
        """All that failed so far."""
        records = self.scene.cluster.stored_records
        self.command(retry=sorted(job for job, one in records.items() if one["state"] == "failed"))

    def command(self, **change: object) -> None:
        self.scene.control = self.scene.control.model_copy(update=change)

    @rule()
    def restart_the_controller(self) -> None:
        self.scene.created.clear()
        self.scene.hear()

    @invariant()
    def one_live_attempt(self) -> None:
        units = [(job.labels[LABEL_STAGE], job.labels[LABEL_RUN]) for job in self.unfinished]
        assert len(units) == len(set(units)), "two live Jobs do the same"

    @invariant()
    def window_holds(self) -> None:
        assert len(self.unfinished) <= WINDOW

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.scene.plan().status.counts
        assert counts["total"] == RUNS == sum(counts[state] for state in STATES)

    def teardown(self) -> None:
        if hasattr(self, "scene"):
            self.converges_once_faults_stop()

    def converges_once_faults_stop(self) -> None:
        scene = self.scene
        self.command(suspend=False)
        self.hours = None
        scene.change(self.sweep(scheduling=self.scheduling))
        for _ in range(40):
            self.turn(late=False)
            if scene.plan().status.finished:
                break
            for job in self.unfinished:
                scene.cluster.finish(job.name)
            for job in list(scene.cluster.made.values()):  # pods of lost nodes end, too
                ended = tuple(replace(pod, phase="Failed") for pod in job.pods if pod.phase == "Running")
                if ended:
                    scene.cluster.set_state(job.name, pods=ended)
        assert scene.plan().status.finished
        ended = set(scene.states().values())
        # Out of CUDA memory has an end: a micro-batch of one cannot be cut.
        assert ended <= {"done", "failed", "cancelled"}
        cancelled = set(scene.control.cancel)
        for state in scene.plan().states:
            if state.state == "cancelled":
                assert cancelled & {state.run.name, ALL_RUNS}
            elif state.state == "failed":
                assert state.failure in ("oomCuda", "nodeLost")


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_machine = Machine.TestCase
