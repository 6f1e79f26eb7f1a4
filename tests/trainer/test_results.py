"""Records: what fits a termination message, and what a message may do to who reads it."""

from __future__ import annotations

import base64
import json
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import OWN_TASKS
from trainer.results import (
    RECORD_LIMIT,
    Progress,
    Record,
    TaskScore,
    TextScore,
    VariantResult,
    dump_record,
    in_words,
    load_record,
    parse_progress,
)
from trainer.tasks import own_tasks


def evaluation(variants: int) -> Record:
    draw = random.Random(1)
    tasks = ("hellaswag", "arc_easy", "arc_challenge", "winogrande", "mmlu")
    return Record(
        stage="eval",
        status="done",
        exit_code=0,
        variants=[
            VariantResult(
                variant="adapter",
                run_id=f"lmbda0_bs16_lr{number}e5-{draw.getrandbits(32):08x}",
                tasks={
                    task: TaskScore(
                        round(draw.random(), 5), round(draw.random() / 9, 5), 1000, draw.randrange(99), 7
                    )
                    for task in tasks
                },
                text=TextScore(300_000, *(round(draw.random(), 5) for _ in range(8))),
            )
            for number in range(variants)
        ],
    )


@pytest.mark.parametrize("variants", [1, 6, 10], ids=["one", "three adapters", "four and the baselines"])
def test_an_evaluation_survives_its_message(variants):
    record = evaluation(variants)
    message = dump_record(record)
    assert len(message) <= RECORD_LIMIT
    assert message.isascii()
    assert load_record(message) == record


def test_a_long_error_keeps_its_end_and_the_limit():
    record = Record(stage="train", status="failed", exit_code=70, error="\u00e9" * 9000 + "the end")
    message = dump_record(record)
    assert len(message) <= RECORD_LIMIT
    loaded = load_record(message)
    assert loaded is not None
    assert (loaded.error or "").endswith("the end")


def test_a_bomb_or_garbage_in_a_message_is_no_record():
    bomb = base64.b64encode(zlib.compress(b"[" + b" " * 10_000_000 + b"]", 9)).decode()
    base = {"v": 1, "stage": "eval", "status": "done", "exit_code": 0}
    for packed in (bomb, 7, "!!", base64.b64encode(b"no zlib").decode()):
        assert load_record(json.dumps({**base, "packed": packed})) is None
    assert load_record("[" * 100_000) is None


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_message_is_data(message):
    assert load_record(message) is None or isinstance(load_record(message), Record)


@given(
    st.builds(
        Progress,
        stage=st.sampled_from(["train", "eval"]),
        done=st.integers(0, 10**6),
        total=st.integers(0, 10**6),
        what=st.sampled_from(["steps", "lmbda0-1a2b3c4d merged: everyday", ""]),
        tokens_per_s=st.none() | st.integers(0, 10**6).map(float),
        seconds_left=st.none() | st.integers(0, 10**6).map(float),
    )
)
def test_a_progress_line_is_read_back(progress):
    assert parse_progress(progress.line()) == progress


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.34e9, "2.3 GB"), (5e12, "5.0 TB")]
)
def test_bytes_for_people(count, text):
    assert in_words(count) == text


def test_own_tasks_are_those_that_ship():
    assert set(own_tasks()) == OWN_TASKS
