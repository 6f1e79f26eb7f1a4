"""plan(): what is created, recorded and deleted, policy by policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.cluster.base import Condition, ObservedPod
from orchestrator.controller.observed import FENCE_S, Control
from orchestrator.controller.plan import DeleteJob, RecordAttempt, changes
from orchestrator.controller.stuck import ENDED_LATE_S, PATIENCE_S
from orchestrator.sweep.expand import expand
from tests.orchestrator.controller.scene import Scene, a_sweep
from tests.orchestrator.fakes import record_message
from trainer import flags
from trainer.config import EvalConfig, EvalPlace, FetchConfig, TrainConfig, TrainPlace

NO_EVAL: dict[str, Any] = {"eval": {"enabled": False}}


def condition(scene: Scene, kind: str) -> Condition | None:
    return next((one for one in scene.plan().status.conditions if one.type == kind), None)


def test_plan_fetches_once_before_any_training() -> None:
    scene = Scene(a_sweep(3, **NO_EVAL))
    scene.turn()
    assert (len(scene.live("fetch")), len(scene.live("train"))) == (1, 0)
    scene.turn()
    assert len(scene.live("fetch")) == 1
    scene.cluster.finish(scene.live("fetch")[0])
    scene.turn()
    assert len(scene.live("train")) == 3


def test_plan_fetches_every_model_and_dataset_and_starts_what_is_there() -> None:
    runs = [{"name": "a"}, {"name": "b", "params": {"dataset_name": "other/data"}}]
    scene = Scene(a_sweep(groups=[{"name": "g", "runs": runs}], **NO_EVAL))
    scene.turn()
    first, second = scene.live("fetch")
    scene.cluster.finish(second)
    scene.turn()
    assert scene.live("train") == [scene.job("b")]
    scene.cluster.finish(first)
    scene.turn()
    assert len(scene.live("train")) == 2


def test_plan_gives_up_a_run_whose_fetch_fails_for_good() -> None:
    scene = Scene(a_sweep(1, **NO_EVAL))
    scene.turn()
    scene.cluster.fail(scene.live("fetch")[0], 65)
    scene.turn()
    state = scene.state("r0")
    assert (state.state, state.stage, state.failure) == ("failed", "fetch", "userError")
    assert scene.plan().status.finished


def test_plan_asks_the_trainer_for_exactly_the_runs_config() -> None:
    scene = Scene(a_sweep(1, tags=["t"]))
    scene.turn()
    command, *rest = scene.args(scene.live("fetch")[0])
    [fetch] = flags.parse(rest, FetchConfig)
    assert (command, fetch.model_name, fetch.models_dir) == (
        "fetch",
        scene.runs[0].config.model_name,
        "/data/dump/.models",
    )
    scene.fetched()
    command, *rest = scene.args(scene.job("r0"))
    config, place = flags.parse(rest, TrainConfig, TrainPlace)
    run = scene.runs[0]
    assert command == "train"
    assert config == run.config
    assert place == TrainPlace(
        output_dir=f"/data/dump/demo/{run.id}",
        run_id=run.id,
        tags=["t", "g"],
        models_dir="/data/dump/.models",
    )


def test_plan_of_a_quiet_world_does_nothing() -> None:
    scene = Scene(a_sweep(3)).fetched()
    for name in scene.live("train"):
        scene.cluster.start(name)
    assert scene.plan().actions == ()
    assert not scene.plan().status.finished


def test_plan_keeps_the_window() -> None:
    scene = Scene(a_sweep(5, scheduling={"parallelism": 2}, **NO_EVAL)).fetched()
    assert scene.live("train") == [scene.job("r0"), scene.job("r1")]
    scene.trained("r0")
    assert scene.live("train") == [scene.job("r1"), scene.job("r2")]


def test_plan_runs_nothing_again_that_is_done() -> None:
    scene = Scene(a_sweep(3, **NO_EVAL)).fetched().trained()
    scene.cluster.made.clear()
    assert scene.plan().actions == ()
    assert scene.plan().status.counts["done"] == 3
    assert scene.plan().status.finished


def test_plan_makes_the_same_attempt_again_when_its_job_vanished() -> None:
    scene = Scene(a_sweep(1, retry={"lost": 2}, **NO_EVAL)).fetched()
    name = scene.job("r0")
    for _ in range(2):
        scene.cluster.made.pop(name)
        scene.turn()
        assert scene.live("train") == [name]
    scene.cluster.made.pop(name)
    assert scene.plan().actions == ()
    assert (scene.state("r0").state, scene.state("r0").failure) == ("failed", "lost")
    scene.control = Control(retry=[name])
    scene.turn()
    assert scene.live("train") == [name], "its user wants it all the same"


RETRIES = {
    "a preempted attempt goes on": (75, {}, 2),
    "a user's error is not tried again": (64, {}, None),
    "a budget in the file counts": (64, {"userError": 1}, 2),
    "a diverged run is not tried again": (78, {}, None),
    "a stalled run is tried once more": (77, {}, 2),
}


@pytest.mark.parametrize(("code", "retry", "attempt"), RETRIES.values(), ids=RETRIES)
def test_plan_retries_by_class(code: int, retry: dict[str, int], attempt: int | None) -> None:
    scene = Scene(a_sweep(1, retry=retry, **NO_EVAL)).fetched()
    scene.cluster.fail(scene.job("r0"), code)
    scene.turn()
    assert [scene.requests[name].request.attempt for name in scene.live("train")] == (
        [attempt] if attempt else []
    )
    assert scene.state("r0").state == ("pending" if attempt else "failed")


def test_plan_ends_retries_with_the_budget() -> None:
    scene = Scene(a_sweep(1, retry={"preempted": 3}, **NO_EVAL)).fetched()
    for _ in range(4):
        scene.cluster.fail(scene.job("r0"), 75)
        scene.turn()
    assert scene.live("train") == []
    assert scene.state("r0").remedy == "not tried again: preempted 4 times, retry.preempted is 3"
    assert len(scene.cluster.stored_records) == 5  # four attempts and the fetch


def test_plan_gives_more_memory_after_out_of_memory_up_to_the_profiles_limit() -> None:
    scene = Scene(a_sweep(1, retry={"oomHost": 9}, **NO_EVAL), max_memory=16 * 2**30).fetched()
    seen = []
    while scene.live("train"):
        name = scene.job("r0")
        seen.append(scene.requests[name].request.memory)
        scene.cluster.start(name)
        pods = (replace(scene.cluster.made[name].pods[0], exit_reason="OOMKilled"),)
        scene.cluster.set_state(name, pods=pods)
        scene.cluster.fail(name, 137)
        scene.turn()
    assert seen == [None, "12Gi", "16Gi"]
    assert "maxMemory, 16Gi" in scene.state("r0").remedy


def test_plan_cuts_the_micro_batch_after_cuda_out_of_memory() -> None:
    scene = Scene(a_sweep(1, retry={"oomCuda": 9}, **NO_EVAL)).fetched()
    seen = []
    while scene.live("train"):
        name = scene.job("r0")
        config, place = flags.parse(scene.args(name)[1:], TrainConfig, TrainPlace)
        assert config == scene.runs[0].config
        seen.append(place.micro_batch_split)
        scene.cluster.fail(name, 79)
        scene.turn()
    assert seen == [1, 2, 4]  # four sequences a micro-batch
    record = scene.cluster.stored_records[scene.state("r0").job]
    assert record["overrides"] == {"micro_batch_split": 4}
    assert scene.state("r0").failure == "oomCuda"


def test_plan_avoids_a_node_after_two_faults_of_its_gpu() -> None:
    scene = Scene(a_sweep(2, retry={"gpuFault": 5}, **NO_EVAL)).fetched()
    avoided = []
    for run in ("r0", "r1"):
        name = scene.job(run)
        scene.cluster.start(name, node="bad")
        error = "CUDA error: uncorrectable ECC error encountered"
        message = record_message(scene.cluster.made[name], status="failed", exit_code=70, error=error)
        scene.cluster.fail(name, 70, message=message)
        scene.turn()
        avoided.append(scene.requests[scene.job(run)].request.avoid_nodes)
    assert avoided == [(), ("bad",)]
    remedies = [record.get("remedy") for record in scene.cluster.stored_records.values()]
    assert remedies[-2:] == ["tried again (1 of 5)", "tried again (1 of 5): away from bad"]


def test_plan_starts_no_attempt_while_a_pod_of_the_former_lives() -> None:
    scene = Scene(a_sweep(1, **NO_EVAL)).fetched()
    name = scene.job("r0")
    scene.cluster.fail(name, 75)
    zombie = ObservedPod("zombie", "Running", started_at=0.0)
    scene.cluster.set_state(name, pods=(*scene.cluster.made[name].pods, zombie))
    scene.turn()
    assert name in scene.cluster.stored_records
    assert scene.live("train") == []
    assert not scene.plan().status.finished
    scene.cluster.set_state(name, pods=())
    scene.turn()
    assert len(scene.live("train")) == 1


def test_plan_waits_for_a_lost_nodes_pod_only_as_long_as_it_may_write() -> None:
    scene = Scene(a_sweep(1, **NO_EVAL)).fetched()
    name = scene.job("r0")
    lost = ObservedPod(
        "p",
        "Running",
        started_at=1000.0,
        gone_by=4600.0,
        conditions={"DisruptionTarget": Condition("DeletionByTaintManager")},
    )
    scene.cluster.now += 3600
    scene.cluster.set_state(name, pods=(lost,), conditions={"Failed": Condition("x")})
    scene.turn()
    assert scene.cluster.stored_records[name]["class"] == "nodeLost"
    assert scene.live("train") == []
    scene.cluster.now += 181
    scene.turn()
    assert len(scene.live("train")) == 1


def test_plan_holds_the_others_until_the_canary_is_ready() -> None:
    scene = Scene(a_sweep(3, scheduling={"canary": True}, **NO_EVAL)).fetched()
    assert scene.live("train") == [scene.job("r0")]
    scene.cluster.start(scene.job("r0"))
    assert scene.plan().actions == ()
    scene.cluster.start(scene.job("r0"), ready=True)
    scene.turn()
    assert len(scene.live("train")) == 3


def test_plan_releases_the_others_when_the_canary_is_done_and_never_was_ready() -> None:
    scene = Scene(a_sweep(3, scheduling={"canary": True}, **NO_EVAL)).fetched().trained("r0")
    assert len(scene.live("train")) == 2


CANARIES = {"a user's error": (64, True), "a config that is missing": (127, True), "divergence": (78, False)}


@pytest.mark.parametrize(("code", "halts"), CANARIES.values(), ids=CANARIES)
def test_plan_halts_when_the_canary_fails_for_all(code: int, halts: bool) -> None:
    scene = Scene(a_sweep(3, scheduling={"canary": True}, **NO_EVAL)).fetched()
    scene.cluster.fail(scene.job("r0"), code)
    scene.turn()
    assert len(scene.live("train")) == (0 if halts else 1)
    halted = condition(scene, "Halted")
    assert (halted.reason if halted else None) == ("CanaryFailed" if halts else None)
    assert scene.plan().status.finished == halts


def test_plan_halts_when_three_runs_fail_alike_and_goes_on_when_forgiven() -> None:
    scene = Scene(a_sweep(6, scheduling={"parallelism": 3}, **NO_EVAL)).fetched()
    failed = [scene.job(run) for run in ("r0", "r1", "r2")]
    for run, name in zip(scene.runs, failed, strict=False):
        error = f"dump/demo/{run.id}: no column named text"
        message = record_message(scene.cluster.made[name], status="failed", exit_code=65, error=error)
        scene.cluster.fail(name, 65, message=message)
    scene.turn()
    assert scene.live("train") == []
    assert "3 runs fail alike" in condition(scene, "Halted").message
    assert scene.plan().status.finished
    scene.control = Control(retry=failed)
    scene.turn()
    assert [scene.requests[name].request.attempt for name in scene.live("train")] == [2, 2, 2]


def test_plan_goes_on_when_runs_fail_each_in_its_own_way() -> None:
    scene = Scene(a_sweep(4, scheduling={"parallelism": 3}, **NO_EVAL)).fetched()
    for index, run in enumerate(("r0", "r1", "r2")):
        name = scene.job(run)
        message = record_message(
            scene.cluster.made[name], status="failed", exit_code=64, error=f"fault {index}"
        )
        scene.cluster.fail(name, 64, message=message)
    scene.turn()
    assert scene.live("train") == [scene.job("r3")]


def test_plan_forgives_only_what_came_before() -> None:
    scene = Scene(a_sweep(1, **NO_EVAL)).fetched()
    scene.control = Control(retry=[scene.job("r0")])
    for attempt in (2, None):
        scene.cluster.fail(scene.job("r0"), 64)
        scene.turn()
        assert len(scene.live("train")) == (1 if attempt else 0)


def test_plan_starts_nothing_beyond_the_gpu_hours() -> None:
    scene = Scene(a_sweep(3, scheduling={"parallelism": 1, "gpuHours": 2}, **NO_EVAL)).fetched()
    scene.cluster.finish(scene.job("r0"), seconds=3600)
    scene.turn()
    scene.cluster.finish(scene.job("r1"), seconds=3600)
    scene.turn()
    assert scene.live("train") == []
    assert condition(scene, "Halted").reason == "GpuHoursUsed"
    assert scene.plan().status.gpuHours == 2.0
    scene.change(a_sweep(3, scheduling={"parallelism": 1, "gpuHours": 3}, **NO_EVAL))
    scene.turn()
    assert len(scene.live("train")) == 1


def test_plan_suspended_starts_nothing_and_lets_jobs_end() -> None:
    scene = Scene(a_sweep(3, scheduling={"parallelism": 1}, **NO_EVAL)).fetched()
    scene.control = Control(suspend=True)
    assert scene.plan().actions == ()
    scene.trained("r0")
    assert scene.live("train") == []
    scene.control = Control()
    scene.turn()
    assert len(scene.live("train")) == 1


@pytest.mark.parametrize("by", ["id", "name"])
def test_plan_cancels_a_run(by: str) -> None:
    scene = Scene(a_sweep(2, **NO_EVAL)).fetched()
    scene.control = Control(cancel=[getattr(scene.runs[0], by)])
    gone = scene.job("r0")
    scene.turn()
    assert gone not in scene.cluster.made
    assert scene.plan().actions == ()
    assert scene.states() == {"r0": "cancelled", "r1": "pending"}
    scene.trained("r1")
    assert scene.plan().status.finished


def test_what_is_cancelled_is_recorded_with_its_gpu_hours_and_goes_on_when_asked_to() -> None:
    scene = Scene(a_sweep(1, **NO_EVAL)).fetched()
    job = scene.job("r0")
    scene.cluster.start(job, ready=True)
    scene.cluster.now += 1800
    scene.control = Control(cancel=["*"])
    scene.turn()
    status = scene.plan().status
    assert (status.gpuHours, status.failures, status.finished) == (0.5, [], True)
    record = scene.observed.records[job]
    assert (record.failure, record.evidence) == ("cancelled", "cancelled by its user")
    scene.control = Control()
    scene.turn()
    assert (scene.job("r0"), scene.state("r0").attempts) == (job.replace("-1", "-2"), 2)


def test_what_is_ended_is_recorded_before_it_is_deleted_and_deleted_though_that_was_interrupted() -> None:
    scene = Scene(a_sweep(1, **NO_EVAL)).fetched()
    job = scene.job("r0")
    scene.control = Control(cancel=["*"])
    record, delete = scene.plan().actions
    assert isinstance(record, RecordAttempt)
    assert delete == DeleteJob(job, scene.cluster.made[job].uid, "cancelled by its user")
    scene.cluster.put_record("demo", job, record.record.to_json())  # and there the controller was killed
    assert scene.plan().actions == (delete,)
    scene.cluster.set_state(job, deleting=True)
    assert scene.plan().actions == ()


def test_a_record_that_nobody_can_read_keeps_its_attempts_number() -> None:
    scene = Scene(a_sweep(1, **NO_EVAL)).fetched()
    first = scene.job("r0")
    scene.cluster.finish(first)
    scene.cluster.set_state(first, retired=False)
    scene.cluster.stored_records[first] = {"sweep": "demo", "v": 9}
    planned = scene.plan()
    assert [type(one).__name__ for one in planned.actions] == ["RetireJob", "CreateJob"]
    assert planned.actions[1].name == first.replace("-1", "-2")


def held(scene: Scene, reason: str, message: str = "", job: str | None = None) -> str:
    """A Job's pod waits from now on."""
    name = job or scene.job("r0")
    pod = ObservedPod(f"pod-{name}", "Pending", waiting_reason=reason, waiting_message=message)
    scene.cluster.set_state(name, pods=(pod,))
    scene.plan()  # sees it
    return name


def test_what_lacks_an_image_is_ended_after_a_while_and_says_why() -> None:
    scene = Scene(a_sweep(2, scheduling={"canary": True}, **NO_EVAL)).fetched()
    job = held(scene, "ImagePullBackOff", "manifest unknown")
    assert (scene.plan().actions, scene.plan().due_s) == ((), PATIENCE_S)
    assert scene.state("r0").evidence == "ImagePullBackOff: manifest unknown"
    scene.cluster.now += PATIENCE_S
    assert scene.plan().due_s is None
    scene.turn()
    assert job not in scene.cluster.made
    state = scene.state("r0")
    assert (state.state, state.failure) == ("failed", "imagePull")
    assert condition(scene, "Halted").reason == "CanaryFailed"
    assert scene.plan().actions == ()


def test_what_waits_for_room_waits_for_ever_and_says_for_what() -> None:
    scene = Scene(a_sweep(1, **NO_EVAL)).fetched()
    held(scene, "Unschedulable", "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")
    assert condition(scene, "Waiting") is None  # every pod is unschedulable for a moment
    scene.cluster.now += 7 * 24 * 3600
    assert (scene.plan().actions, scene.plan().due_s) == ((), None)
    waiting = condition(scene, "Waiting")
    assert (waiting.reason, scene.state("r0").state) == ("Unschedulable", "pending")
    assert "Insufficient nvidia.com/gpu" in waiting.message
    scene.cluster.start(scene.job("r0"))
    assert condition(scene, "Waiting") is None


def test_a_pod_on_a_lost_node_is_given_up_and_fenced() -> None:
    scene = Scene(a_sweep(1, **NO_EVAL)).fetched()
    job = scene.job("r0")
    scene.cluster.start(job, ready=True)
    [pod] = scene.cluster.made[job].pods
    scene.cluster.set_state(job, pods=(replace(pod, gone_by=scene.cluster.now + 60),))
    scene.cluster.now += 60 + ENDED_LATE_S
    assert scene.plan().actions == ()
    scene.cluster.now += 1
    record, delete = scene.plan().actions
    assert (record.record.failure, delete.name) == ("nodeLost", job)
    scene.cluster.put_record("demo", job, record.record.to_json())
    scene.cluster.set_state(job, deleting=True)  # for as long as nobody hears of the pod
    scene.cluster.now += FENCE_S - 1
    assert scene.plan().actions == ()
    assert scene.state("r0").remedy == "waiting for its last pod to end"
    scene.cluster.now += 1
    [create] = scene.plan().actions
    assert create.request.attempt == 2


@pytest.mark.parametrize("retried", [True, False])
def test_a_cancelled_run_on_a_lost_node_is_fenced_no_longer_than_a_lost_one(retried: bool) -> None:
    scene = Scene(a_sweep(1, **NO_EVAL)).fetched()
    job = scene.job("r0")
    scene.cluster.start(job, ready=True)
    scene.control = Control(cancel=["*"])
    [record] = [one.record for one in scene.plan().actions if isinstance(one, RecordAttempt)]
    scene.cluster.put_record("demo", job, record.to_json())
    [pod] = scene.cluster.made[job].pods
    gone_by = scene.cluster.now + 60
    scene.cluster.set_state(job, deleting=True, pods=(replace(pod, gone_by=gone_by),))  # never heard of again
    scene.control = Control() if retried else scene.control
    scene.cluster.now = gone_by + ENDED_LATE_S + FENCE_S - 1
    assert (scene.plan().actions, scene.plan().status.finished) == ((), False)
    scene.cluster.now += 1
    assert len(scene.plan().actions) == retried
    assert scene.plan().status.finished is not retried


def test_runs_that_fail_for_the_same_missing_secret_halt_the_sweep() -> None:
    spec = {"haltAfter": 2, "parallelism": 2}
    scene = Scene(a_sweep(5, scheduling=spec, **NO_EVAL)).fetched()
    for name in scene.live("train"):
        held(scene, "CreateContainerConfigError", 'secret "nope" not found', name)
    scene.cluster.now += PATIENCE_S
    scene.turn()
    assert condition(scene, "Halted").reason == "SameFailure"
    assert scene.plan().actions == ()


def test_plan_cancels_all_but_what_is_done() -> None:
    scene = Scene(a_sweep(3, **NO_EVAL)).fetched().trained("r0")
    scene.control = Control(cancel=["*"])
    scene.turn()
    assert scene.live("train") == []
    assert scene.states() == {"r0": "done", "r1": "cancelled", "r2": "cancelled"}


def test_plan_leaves_jobs_of_removed_runs_alone_unless_pruned() -> None:
    scene = Scene(a_sweep(3, **NO_EVAL)).fetched()
    removed = scene.job("r2")
    scene.change(a_sweep(2, **NO_EVAL))
    assert scene.plan().actions == ()
    scene.control = Control(prune=True)
    scene.turn()
    assert removed not in scene.cluster.made
    assert scene.cluster.stored_records[removed]["evidence"] == "pruned: the sweep no longer has its runs"
    assert len(scene.live("train")) == 2


def test_plan_runs_only_what_is_new_in_a_changed_file() -> None:
    scene = Scene(a_sweep(2, **NO_EVAL)).fetched().trained()
    scene.change(a_sweep(3, **NO_EVAL))
    scene.turn()
    assert scene.live("train") == [scene.job("r2")]


def test_changes_tell_new_existing_and_changed_runs() -> None:
    old = expand(a_sweep(2))
    renewed = [
        {"name": "r0", "params": {"learning_rate": 1e-5}},
        {"name": "r1", "params": {"learning_rate": 3e-5}},
        {"name": "r9", "params": {"beta": 0}},
    ]
    new = expand(a_sweep(groups=[{"name": "g", "runs": renewed}]))
    told = changes(new, old)
    assert {run.name: told[run.id] for run in new} == {"r0": "=", "r1": "~", "r9": "+"}


def test_status_does_not_grow_with_failures() -> None:
    scene = Scene(a_sweep(40, retry={"userError": 0}, **NO_EVAL)).fetched()
    for index, name in enumerate(scene.live("train")):
        message = record_message(
            scene.cluster.made[name], status="failed", exit_code=64, error=f"{index} " * 300
        )
        scene.cluster.fail(name, 64, message=message)
    scene.turn()
    status = scene.plan().status
    assert status.counts["failed"] == 40
    assert len(status.failures) == 20
    assert max(len(failure.evidence) for failure in status.failures) == 300


def test_evaluation_flags_survive_the_trainers_parser() -> None:
    spec = {"tasks": [], "limit": 7, "perplexity": "none", "baselines": ["ptq"], "variants": ["adapter"]}
    scene = Scene(a_sweep(1, eval=spec)).fetched().trained()
    command, *rest = scene.args(scene.live("eval")[0])
    config, place = flags.parse(rest, EvalConfig, EvalPlace)
    assert command == "eval"
    assert config.lora_paths == [f"/data/dump/demo/{scene.runs[0].id}"]
    assert (config.tasks, config.limit, config.eval_teacher, config.eval_ptq) == ([], 7, False, True)
    assert (config.variants, config.quant_type, config.group_size) == (["adapter"], "int4", 128)
    assert (place.baselines_dir, place.run_id) == (
        "/data/dump/.baselines",
        scene.requests[scene.live("eval")[0]].request.run_id,
    )
