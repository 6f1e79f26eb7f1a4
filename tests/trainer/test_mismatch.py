"""Policy against student: the gap from full logits by hand, its noise, and a policy that is another."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.students import perturb, small_config
from trainer import decoder, plain
from trainer import train as loop
from trainer.attempt import StopSignal
from trainer.config import TrainConfig, TrainPlace
from trainer.counters import Stream
from trainer.data import Example, Item
from trainer.distributed import World
from trainer.layout import RunFolder
from trainer.mismatch import GAP, NOISE, TOKENS, Mismatch
from trainer.noise import Draw, Sampler, Trace
from trainer.rollout import Rollouts
from trainer.setup import prepare
from trainer.student import Student, build_student

WORLD = World(0, 1, torch.device("cpu"))
PROMPTS = [(10, 20, 30), (40,), (50, 60, 70, 80, 90)]
# Ends are ruled out for two tokens and sampling is cooler: the policy's own probabilities know neither.
SAMPLER = Sampler(1, Stream.ROLLOUT, 0.7, 12, 2, frozenset(range(200, 259)))


@pytest.fixture(params=[{}, {"gradient_checkpointing": True}, {"lora_order": "inside"}], ids=str)
def student(request: pytest.FixtureRequest, tiny_llama: Any) -> Student:
    return perturb(build_student(tiny_llama, small_config(**request.param)))


def _sampled(student: Student, engine: Any = "native") -> list[Item]:
    trace = Trace()
    draws = [Draw(3, number) for number in range(len(PROMPTS))]
    written = Rollouts(student, engine).sample(PROMPTS, draws, SAMPLER, "rollout", lambda: None, trace)
    return [
        Item(number, Example(PROMPTS[number], (1,)), True, tuple(ids), log_probs)
        for number, (ids, log_probs) in enumerate(zip(written, trace.log_probs(written), strict=True))
    ]


def _by_hand(student: Student, item: Item, mode: Any) -> list[float]:
    ids = torch.tensor([[*item.example.prompt, *item.completion]])
    with torch.no_grad():
        logits = student.hidden(ids, mode=mode)[0] @ student.head(mode).T
    log_p = torch.log_softmax(logits.double(), -1)[len(item.example.prompt) - 1 : -1]
    return [float(row[token]) for row, token in zip(log_p, item.completion, strict=True)]


@pytest.mark.parametrize("engine", ["native", "plain"])
def test_a_trace_holds_each_sampled_tokens_untempered_log_probability(student: Student, engine: Any) -> None:
    items = _sampled(student, engine)
    assert len({len(item.completion) for item in items}) > 1, "one of them ends before the others"
    for item in items:
        assert item.log_probs == pytest.approx(_by_hand(student, item, "rollout"), abs=1e-5)


def test_a_batch_that_is_decoded_again_leaves_no_trace_of_the_first(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _sampled(student, "plain")
    real = decoder.decode

    def wrong(*asked: Any) -> list[list[int]]:
        return [[(token + 1) % 200 for token in ids] for ids in real(*asked)]

    monkeypatch.setattr(decoder, "decode", wrong)
    assert _sampled(student, "auto") == expected


def test_tracing_changes_no_token(student: Student) -> None:
    draws = [Draw(3, number) for number in range(len(PROMPTS))]
    for decode in (decoder.decode, plain.decode):
        with_trace = decode(student, PROMPTS, draws, SAMPLER, "rollout", lambda: None, Trace())
        assert with_trace == decode(student, PROMPTS, draws, SAMPLER, "rollout", lambda: None)


def _states(student: Student, items: Sequence[Item]) -> torch.Tensor:
    from trainer.data import collate

    batch = collate([(item.example.prompt, item.completion) for item in items], 0, WORLD.device)
    return student.hidden(batch.ids_BT, mode="student")[batch.predicts_BT]


def test_the_gap_is_the_mean_over_sampled_tokens_alone(student: Student) -> None:
    first, second, third = _sampled(student)
    from_data = Item(9, Example((7, 8), (9, 9, 9)), False, (9, 9, 9))
    shifted = Item(1, second.example, True, second.completion, tuple(p + 0.25 for p in second.log_probs))
    part = [first, from_data, shifted, third]
    found = Mismatch()
    found.measure(student, part, _states(student, part))
    line = found.line(WORLD)
    tokens = [len(item.completion) for item in (first, second, third)]
    assert line[GAP] == pytest.approx(0.25 * tokens[1] / sum(tokens), abs=1e-5)
    assert 0 < line[NOISE] < 1e-5
    assert found.noise == line[NOISE]
    found.measure(student, part, _states(student, part))
    assert found.line(WORLD).keys() == {GAP}, "noise is measured once"
    assert found.line(WORLD) == {}, "a step without rollouts has no gap"


def test_noise_is_the_student_against_itself_whatever_the_policy_says(student: Student) -> None:
    """Token by token over a cache; the numbers of the policy, or of LoRA in it, do not enter."""
    part = [replace(item, log_probs=tuple(-1.0 for _ in item.log_probs)) for item in _sampled(student)]
    found = Mismatch()
    found.measure(student, part, _states(student, part))
    line = found.line(WORLD)
    assert line[GAP] > 1
    assert 0 < line[NOISE] < 1e-5
    wrong = Mismatch()
    states = _states(student, part)
    wrong.measure(student, part, states.roll(1, dims=0))
    assert wrong.line(WORLD)[NOISE] > 0.1, "it compares the places it says"


def test_a_long_rollout_is_looked_at_from_end_to_end(student: Student) -> None:
    tokens = tuple(range(3 * TOKENS - 5))
    by_hand = _by_hand(student, Item(0, Example((5,), (1,)), True, tokens), "student")
    # Wrong at the last of every third token, and at none between.
    log_probs = tuple(p + (0.5 if n % 3 == 0 else 7.0) for n, p in enumerate(by_hand))
    found = Mismatch()
    item = Item(0, Example((5,), (1,)), True, tokens, log_probs)
    found.measure(student, [item], _states(student, [item]))
    assert len(found._gaps) == TOKENS - 1
    assert found.line(WORLD)[GAP] == pytest.approx(0.5, abs=1e-4)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, make_tiny_folder: Callable[[Path], Path]) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("model"))


def _run(tiny_folder: Path, folder: Path, stale: bool) -> list[dict[str, Any]]:
    """Two steps; stale: rollouts go on being written by ptq, as if LoRA never reached the policy."""
    config = TrainConfig(
        model_name=str(tiny_folder),
        dataset_name=str(tiny_folder / "rows.jsonl"),
        mixed_precision="fp32",
        group_size=32,
        lora_r=4,
        lmbda=1.0,
        max_length=64,
        max_new_tokens=6,
        min_new_tokens=0,
        max_steps=3,
        learning_rate=1e-2,
        warmup_ratio=0.0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    session = prepare(config, TrainPlace(output_dir=str(folder)), WORLD, StopSignal())
    real = session.rollouts.sample

    def sample(prompts: Any, draws: Any, sampler: Any, mode: Any, *rest: Any) -> Any:
        return real(prompts, draws, sampler, "ptq" if stale and mode == "rollout" else mode, *rest)

    session.rollouts.sample = sample  # type: ignore[method-assign]
    loop.train(session)
    about = json.loads(RunFolder(folder).run.read_text())
    lines = [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]
    assert about[NOISE] == lines[0][NOISE]
    return lines


def test_a_policy_that_is_not_the_student_stands_out(tiny_folder: Path, tmp_path: Path) -> None:
    good, stale = (_run(tiny_folder, tmp_path / str(flag), flag) for flag in (False, True))
    assert [NOISE in line for line in good] == [True, False, False]
    assert all(line[GAP] < 1e-5 for line in good)
    assert stale[0][GAP] < 1e-5, "LoRA is nothing before the first step"
    assert all(line[GAP] > 1e-3 for line in stale[1:])
