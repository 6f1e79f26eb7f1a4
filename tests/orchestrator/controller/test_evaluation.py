"""Which adapters are measured together, when, and where the baselines are measured."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.controller.observed import Control, EvalRequest
from orchestrator.controller.status import run_states
from tests.orchestrator.controller.scene import Scene, a_sweep
from tests.orchestrator.fakes import done_record
from trainer import flags
from trainer.config import EvalConfig, EvalPlace, FetchConfig


def scene_of(count: int, per_job: int, **spec: Any) -> Scene:
    return Scene(a_sweep(count, eval={"adaptersPerJob": per_job}, **spec)).fetched()


def measured_runs(scene: Scene) -> list[list[str]]:
    """Names of the runs that each live eval Job measures."""
    names = {run.id: run.name for run in scene.runs}
    return [[names[run] for run in scene.requests[job].runs] for job in scene.live("eval")]


def test_one_job_measures_all_adapters_and_the_baselines_when_they_fit() -> None:
    scene = scene_of(3, per_job=3).trained("r0").trained("r1")
    assert (scene.live("baseline"), scene.live("eval")) == ([], [])
    scene.trained("r2")
    assert (scene.live("baseline"), measured_runs(scene)) == ([], [["r0", "r1", "r2"]])
    scene.measured()
    assert scene.plan().actions == ()
    assert set(scene.states().values()) == {"done"}


def test_the_baselines_go_first_when_one_job_cannot_hold_all_adapters() -> None:
    scene = scene_of(3, per_job=1).trained("r1")
    assert (len(scene.live("baseline")), scene.live("eval")) == (1, [])
    scene.trained("r0")
    assert (len(scene.live("baseline")), scene.live("eval")) == (1, [])
    scene.measured("baseline")
    assert measured_runs(scene) == [["r1"], ["r0"]]
    scene.measured().trained("r2")
    assert (scene.live("baseline"), measured_runs(scene)) == ([], [["r2"]])


def test_a_baseline_measures_no_adapter_on_the_base_of_the_runs() -> None:
    scene = scene_of(2, per_job=1, params={"quant_type": "bnb_nf4"}).trained("r0")
    config, place = flags.parse(scene.args(scene.live("baseline")[0])[1:], EvalConfig, EvalPlace)
    assert (config.lora_paths, config.quant_type) == ([], "bnb_nf4")
    assert (config.eval_teacher, config.eval_ptq) == (True, True)
    assert place.baselines_dir == "/data/dump/.baselines"


@pytest.mark.parametrize(
    ("of_a_run", "asked", "gpus", "nproc"),
    [(1, 1, 1, 1), (8, 1, 1, 1), (1, 4, 4, 4), (8, 8, 8, 8), (0, 4, 0, 1)],
    ids=["as trained", "one by default", "more than a run", "as many", "on the CPU"],
)
def test_an_evaluation_has_the_gpus_it_asks_for_and_a_process_for_each(
    of_a_run: int, asked: int, gpus: int, nproc: int
) -> None:
    scene = Scene(a_sweep(2, eval={"gpus": asked}, resources={"gpus": of_a_run})).fetched().trained("r0")
    first = scene.requests[scene.live("baseline")[0]].request
    scene.measured("baseline")
    for request in (first, scene.requests[scene.live("eval")[0]].request):
        _, place = flags.parse(request.args[1:], EvalConfig, EvalPlace)
        assert (request.resources.gpus, place.nproc) == (gpus, nproc)


def test_adapters_fill_jobs_in_the_order_in_which_they_come() -> None:
    scene = scene_of(5, per_job=2).trained("r3", "r0").measured("baseline")
    assert measured_runs(scene) == [["r3", "r0"]]
    scene.trained("r4")
    assert measured_runs(scene) == [["r3", "r0"]]
    scene.trained("r2")
    assert measured_runs(scene) == [["r3", "r0"], ["r4", "r2"]]
    scene.trained("r1")
    assert measured_runs(scene)[-1] == ["r1"]


def test_a_run_that_fails_is_not_waited_for() -> None:
    scene = scene_of(2, per_job=2).trained("r0")
    assert scene.live("eval") == []
    scene.cluster.fail(scene.job("r1"), 64)
    scene.turn()
    assert measured_runs(scene) == [["r0"]]


def test_a_run_that_cannot_be_fetched_for_is_not_waited_for() -> None:
    runs = [{"name": "a"}, {"name": "b", "params": {"dataset_name": "no/data"}}]
    scene = Scene(a_sweep(groups=[{"name": "g", "runs": runs}], eval={"adaptersPerJob": 2}))
    scene.turn()
    for name in scene.live("fetch"):
        if "no/data" in scene.args(name):
            scene.cluster.fail(name, 64)
        else:
            scene.cluster.finish(name)
    scene.turn()
    scene.trained()
    assert measured_runs(scene) == [["a"]]


def test_the_text_is_fetched_before_anything_is_measured() -> None:
    scene = Scene(a_sweep(1))
    scene.turn()
    model, text = scene.live("fetch")
    [fetch] = flags.parse(scene.args(text)[1:], FetchConfig)
    assert (fetch.model_name, fetch.dataset_name) == (None, "wikitext")
    scene.cluster.finish(model)
    scene.turn()
    scene.trained()
    assert scene.live("eval") == []
    scene.cluster.finish(text)
    scene.turn()
    assert measured_runs(scene) == [["r0"]]


def test_a_text_that_cannot_be_fetched_fails_what_waits_for_it() -> None:
    scene = Scene(a_sweep(1))
    scene.turn()
    model, text = scene.live("fetch")
    scene.cluster.finish(model)
    scene.cluster.fail(text, 64)
    scene.turn()
    scene.trained()
    assert (scene.state("r0").state, scene.state("r0").stage) == ("failed", "fetch")
    assert scene.plan().status.finished


def test_a_text_and_tasks_that_are_here_are_not_fetched() -> None:
    scene = Scene(a_sweep(1, eval={"perplexity": "pydoc_topics", "tasks": ["everyday"]}))
    scene.turn()
    assert len(scene.live("fetch")) == 1
    scene = Scene(a_sweep(1, eval={"perplexity": "none", "taskData": "/data/tasks"}))
    scene.turn()
    assert len(scene.live("fetch")) == 1


def test_a_cancelled_run_is_neither_waited_for_nor_measured() -> None:
    scene = scene_of(3, per_job=3).trained("r0", "r1")
    scene.control = Control(cancel=["r1", "r2"])
    scene.turn()
    assert measured_runs(scene) == [["r0"]]


def test_adapters_of_different_bases_are_not_measured_together() -> None:
    runs = [
        {"name": "a"},
        {"name": "b", "params": {"quant_type": "bnb_nf4"}},
        {"name": "c", "params": {"beta": 0}},
    ]
    scene = Scene(a_sweep(groups=[{"name": "g", "runs": runs}], eval={"adaptersPerJob": 4})).fetched()
    scene.trained()
    assert measured_runs(scene) == [["a", "c"], ["b"]]
    assert scene.live("baseline") == []


def test_an_evaluation_is_tried_again_with_the_same_adapters() -> None:
    scene = scene_of(2, per_job=2).trained()
    first = scene.requests[scene.live("eval")[0]]
    scene.cluster.fail(scene.live("eval")[0], 75)
    scene.turn()
    again = scene.requests[scene.live("eval")[0]]
    assert (again.request.attempt, again.runs, again.request.args) == (2, first.runs, first.request.args)


def test_an_evaluation_that_fails_for_good_fails_its_runs_and_keeps_the_evidence() -> None:
    scene = scene_of(2, per_job=2).trained()
    scene.cluster.fail(scene.live("eval")[0], 64)
    scene.turn()
    state = scene.state("r0")
    assert (state.state, state.stage, state.failure) == ("failed", "eval", "userError")
    assert scene.plan().status.finished


def test_baselines_that_fail_for_good_fail_what_waits_for_them() -> None:
    scene = scene_of(2, per_job=1).trained("r0")
    scene.cluster.fail(scene.live("baseline")[0], 64)
    scene.turn()
    assert (scene.state("r0").state, scene.state("r0").stage) == ("failed", "baseline")


def test_adapters_that_come_later_are_measured_without_measuring_baselines_again() -> None:
    scene = scene_of(2, per_job=2).trained().measured()
    scene.change(a_sweep(5, eval={"adaptersPerJob": 2}))
    scene.turn()
    scene.trained()
    assert (scene.live("baseline"), measured_runs(scene)) == ([], [["r2", "r3"], ["r4"]])


def test_an_adapter_that_is_measured_is_not_taken_again_to_fill_a_job() -> None:
    scene = scene_of(3, per_job=2).trained().measured("baseline").measured()
    scene.change(a_sweep(4, eval={"adaptersPerJob": 2}))
    scene.turn()
    scene.trained()
    assert measured_runs(scene) == [["r3"]]


def test_a_later_adapter_waits_for_the_baselines_of_the_first_job() -> None:
    scene = scene_of(2, per_job=2).trained()
    first = measured_runs(scene)
    scene.change(a_sweep(3, eval={"adaptersPerJob": 2}))
    scene.turn()
    scene.trained()
    assert (scene.live("baseline"), measured_runs(scene)) == ([], first)
    scene.measured()
    assert (scene.live("baseline"), measured_runs(scene)) == ([], [["r2"]])


def test_the_baselines_go_first_when_all_adapters_come_at_once_and_do_not_fit() -> None:
    scene = scene_of(3, per_job=2).trained()
    assert (len(scene.live("baseline")), scene.live("eval")) == (1, [])


def test_a_request_measures_every_adapter_again_by_its_own_tasks() -> None:
    scene = scene_of(2, per_job=2).trained().measured()
    scene.control = Control(evals=[EvalRequest(tasks=["winogrande"], evalTeacher=False)])
    scene.turn()
    [fetch] = flags.parse(scene.args(scene.live("fetch")[0])[1:], FetchConfig)
    assert fetch.tasks == ["winogrande"], "rows must come to the volume: evaluations have no way out"
    scene.fetched()
    [config] = flags.parse(scene.args(scene.live("eval")[0])[1:], EvalConfig, EvalPlace)[:1]
    assert (config.tasks, config.eval_teacher, config.eval_ptq) == (["winogrande"], False, True)
    assert measured_runs(scene) == [["r0", "r1"]]
    scene.measured()
    assert scene.plan().actions == ()


def test_a_request_for_what_is_measured_already_does_nothing() -> None:
    scene = scene_of(2, per_job=2).trained().measured()
    scene.control = Control(evals=[EvalRequest(), EvalRequest(evalTeacher=False)])
    assert scene.plan().actions == ()


def test_without_baselines_nothing_goes_first() -> None:
    spec = {"adaptersPerJob": 1, "baselines": []}
    scene = Scene(a_sweep(3, eval=spec)).fetched().trained("r0")
    assert (scene.live("baseline"), measured_runs(scene)) == ([], [["r0"]])


def test_cancelling_all_runs_of_an_evaluation_ends_it() -> None:
    scene = scene_of(2, per_job=2).trained()
    name = scene.live("eval")[0]
    scene.control = Control(cancel=["r0"])
    assert scene.plan().actions == ()
    scene.control = Control(cancel=["r0", "r1"])
    scene.turn()
    assert name not in scene.cluster.made
    assert scene.live("eval") == []


def test_states_follow_a_run_from_its_queue_to_its_results() -> None:
    scene = Scene(a_sweep(1))
    assert scene.states() == {"r0": "pending"}
    scene.fetched()
    assert scene.states() == {"r0": "pending"}
    scene.cluster.start(scene.job("r0"))
    assert scene.states() == {"r0": "running"}
    scene.cluster.finish(scene.job("r0"))
    assert scene.states() == {"r0": "trained"}
    scene.turn()
    assert scene.states() == {"r0": "evaluating"}
    scene.measured()
    assert scene.states() == {"r0": "done"}
    [state] = run_states(scene.sweep, scene.runs, scene.observed, scene.cluster.now)
    assert (state.stage, state.attempts, state.record.state) == ("eval", 1, "done")


def test_status_names_the_run_with_the_lowest_kl() -> None:
    scene = scene_of(3, per_job=3).trained()
    name = scene.live("eval")[0]
    variants = [
        {"variant": form, "run_id": run.id, "text": [100, 2.0, 0.1, kl, 0.01]}
        for form, shift in (("adapter", 0.0), ("merged", -1.0))
        for run, kl in zip(scene.runs, (0.3 + shift, 0.1 + shift, 0.2 + shift), strict=True)
    ]
    message = done_record(scene.cluster.made[name], variants=variants)
    scene.cluster.finish(name, message=message)
    scene.turn()
    best = scene.plan().status.best
    assert (best.run, best.kl, best.klStderr) == (scene.runs[1].id, 0.1, 0.01)
