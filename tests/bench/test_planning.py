"""A sweep played to its end: the records that fill the controller's memory are those it would write."""

from __future__ import annotations

from collections import Counter

from bench.fake_kubelet import FakePod, done_record
from bench.planning import Played, measure, records_of, sweep_object
from orchestrator.controller.status import run_states
from trainer.results import load_record


def test_every_run_is_trained_and_measured() -> None:
    played = Played.of(sweep_object("demo", 10))
    played.until_training()
    played.start_all()
    played.end_all()
    assert {state.state for state in run_states(played.sweep, played.runs, played.observed, played.now)} == {
        "done"
    }
    records = list(records_of(sweep_object("demo", 10), "uid"))
    stages = Counter((record.stage, record.state) for record in records)
    assert stages == {
        ("fetch", "done"): 2,
        ("train", "done"): 10,
        ("baseline", "done"): 1,
        ("eval", "done"): 10,
    }
    measured = [
        one.run_id for record in records if record.record for one in record.record.variants if one.run_id
    ]
    assert Counter(measured) == {run.id: 2 for run in played.runs}


def test_plans_are_measured_in_three_worlds() -> None:
    assert [figure.what for figure in measure(10)] == [
        "plan of 10 runs, all to be started",
        "plan of 10 runs, all training",
        "plan of 10 runs, all done (23 records)",
    ]


def test_a_fake_trainer_reports_the_adapters_in_its_arguments() -> None:
    args = (
        "eval",
        "--lora-paths",
        "/data/dump/demo/a-00000001",
        "--output-dir",
        "/data/dump/demo/eval-00000002",
    )
    record = load_record(done_record(FakePod("pod", "demo", "eval", "eval-00000002", args)))
    assert record is not None
    assert (record.status, record.run_id) == ("done", "eval-00000002")
    assert [(one.variant, one.run_id) for one in record.variants] == [
        ("adapter", "a-00000001"),
        ("merged", "a-00000001"),
    ]
