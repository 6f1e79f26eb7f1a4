"""Watchdog, stop signal and record of an attempt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.attempt import Preempted, StopSignal, Watchdog, write_record
from trainer.durable import write_json, write_json_once
from trainer.launch import cause
from trainer.layout import TERMINATION_LOG_ENV
from trainer.results import Record, TaskScore, VariantResult, load_record

ROOT = Path(__file__).parents[2]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_watchdog_waits_for_the_longer_of_the_limit_and_twenty_median_steps():
    clock = Clock()
    dog = Watchdog(600, lambda what: None, clock)
    clock.now = 599
    assert not dog.stalled()
    clock.now = 601
    assert dog.stalled()
    for seconds in (10, 50, 60):
        dog.beat(seconds)
    assert dog.limit_s == 1000
    clock.now = 601 + 999
    assert not dog.stalled()
    dog.beat()
    clock.now += 1001
    assert dog.stalled()


def test_a_stalled_process_ends_with_77_and_its_record(tmp_path):
    code = (
        "import threading\n"
        "from trainer.setup import _watchdog\n"
        "from trainer.config import TrainConfig, TrainPlace\n"
        "_watchdog(TrainPlace(stall_minutes=0.001, run_id='r'), TrainConfig()).start()\n"
        "threading.Event().wait()\n"
    )
    log = tmp_path / "record"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, TERMINATION_LOG_ENV: str(log)}, check=False
    )
    assert ended.returncode == 77
    record = load_record(log.read_bytes())
    assert record is not None
    assert (record.exit_code, record.run_id, record.error) == (77, "r", "no progress for 0 s")


def test_a_signal_ends_at_once_until_it_is_deferred():
    stop = StopSignal()
    with pytest.raises(Preempted):
        stop._on_signal(15, None)
    stop = StopSignal()
    stop.defer()
    stop._on_signal(15, None)
    with pytest.raises(Preempted):
        stop.check()


def test_a_record_too_long_loses_its_results_not_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(TERMINATION_LOG_ENV, str(tmp_path / "record"))
    many = [
        VariantResult(variant="adapter", run_id=f"run-{i * i}", tasks={f"t{i**3}": TaskScore(1 / i, 0.1, i)})
        for i in range(1, 900)
    ]
    write_record(Record(stage="eval", status="done", exit_code=0, variants=many))
    record = load_record((tmp_path / "record").read_bytes())
    assert record is not None
    assert (record.status, record.variants) == ("done", [])
    assert "evaluate fewer adapters in one Job" in (record.error or "")


def test_an_unwritable_record_is_said_and_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(TERMINATION_LOG_ENV, str(tmp_path / "no" / "folder"))
    write_record(Record(stage="train", status="done", exit_code=0))
    assert "the record cannot be written" in capsys.readouterr().err


def test_the_first_writer_of_a_file_wins(tmp_path):
    write_json_once(tmp_path / "a.json", 1)
    write_json_once(tmp_path / "a.json", 2)
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    write_json(tmp_path / "a.json", 3)
    assert (tmp_path / "a.json").read_text() == "3\n"
    (tmp_path / "a.json").write_text("")
    write_json_once(tmp_path / "a.json", 4)
    assert (tmp_path / "a.json").read_text() == "4\n", "a damaged one is nobody's"


@pytest.mark.parametrize(
    ("codes", "rank"),
    [
        ({0: 0, 1: 0}, 0),
        ({0: 70, 1: 79}, 1),
        ({0: 75, 1: 78}, 1),
        ({0: 75, 1: 137}, 1),
        ({0: 70, 1: 75}, 0),
        ({0: 0, 1: 75}, 1),
        ({0: 75, 1: 75}, 0),
    ],
    ids=[
        "done is rank 0's",
        "out of memory over the broken collective it caused",
        "diverged over preempted",
        "killed over preempted",
        "our error over preempted",
        "a late signal over done",
        "both preempted",
    ],
)
def test_the_rank_that_is_the_cause_speaks_for_all(codes, rank):
    assert cause(codes) == rank
