"""Held-out KL while a run trains: what it is, and when it ends the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.fakes import TOY, result, toy_session
from tests.trainer.worlds import ALONE, played
from trainer import heldout
from trainer.config import TrainConfig
from trainer.data import DataError, Example, is_heldout
from trainer.distributed import World
from trainer.heldout import best_step, heldout_examples, is_over, measure
from trainer.layout import RunFolder
from trainer.train import train

EXAMPLES = [Example((1, 2), (3, 4, 5)), Example((6,), (7, 2)), Example((8, 1, 2), (9,))]


@pytest.fixture(autouse=True)
def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.publish.sample_completions", lambda session: [])


def _lines(*kls: float) -> list[dict[str, Any]]:
    return [{"step": 2 * number, "heldout": {"kl": kl}} for number, kl in enumerate(kls, 1)]


@pytest.mark.parametrize(
    ("kls", "patience", "best", "over"),
    [
        ((), 1, None, False),
        ((0.5,), 1, 2, False),
        ((0.5, 0.4), 1, 4, False),
        ((0.5, 0.6), 1, 2, True),
        ((0.5, 0.5), 1, 2, True),
        ((0.5, 0.6, 0.4), 2, 6, False),
        ((0.5, 0.6, 0.55), 2, 2, True),
        ((0.5, 0.6, 0.7, 0.8), 0, 2, False),
    ],
)
def test_when_it_is_over(kls: tuple[float, ...], patience: int, best: int | None, over: bool) -> None:
    assert best_step(_lines(*kls)) == best
    assert is_over(_lines(*kls), patience) is over


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_kl_and_perplexity_are_those_of_each_completion_token(tmp_path: Path, batch: int) -> None:
    session = toy_session(tmp_path, TOY.model_copy(update={"per_device_train_batch_size": batch}))
    session.heldout = EXAMPLES
    student: Any = session.student
    with torch.no_grad():
        student.parts["layer.lora_B"].normal_(generator=torch.Generator().manual_seed(2))
    kl, nll, tokens = 0.0, 0.0, 0
    for example in EXAMPLES:
        ids = torch.tensor([[*example.prompt, *example.completion]])
        rows = slice(len(example.prompt) - 1, ids.shape[1] - 1)
        log_p, log_s = (
            torch.log_softmax((student.hidden(ids, mode=mode)[0, rows] @ student.head(mode).T).double(), -1)
            for mode in ("teacher", "student")
        )
        kl += (log_p.exp() * (log_p - log_s)).sum().item()
        nll -= sum(log_s[place, token].item() for place, token in enumerate(example.completion))
        tokens += len(example.completion)
    found = measure(session)
    assert found["tokens"] == tokens == 6
    assert found["kl"] == pytest.approx(kl / tokens, rel=1e-5)
    assert found["ppl"] == pytest.approx(float(torch.tensor(nll / tokens).exp()), rel=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_it_is_to_the_bit_that_of_one_process(tmp_path: Path, size: int) -> None:
    """Five batches; any other order of their sums, or other batches, would round otherwise."""
    session = toy_session(tmp_path, TOY.model_copy(update={"per_device_train_batch_size": 2}))
    session.heldout = EXAMPLES * 3
    with torch.no_grad():
        student: Any = session.student
        student.parts["layer.lora_B"].normal_(generator=torch.Generator().manual_seed(2))

    def measured(world: World) -> dict[str, float]:
        session.world = world
        return measure(session)

    assert played(size, measured) == measured(ALONE)


def _config(**fields: Any) -> TrainConfig:
    return TOY.model_copy(
        update={"max_steps": 8, "eval_steps": 1, "early_stopping_patience": 2, "save_steps": 3, **fields}
    )


def _scripted(monkeypatch: pytest.MonkeyPatch, kls: list[float]) -> None:
    """Held-out KLs by step, whatever the model is."""
    monkeypatch.setattr(
        heldout,
        "measure",
        lambda session: {"kl": kls[len(session.evaluations)], "ppl": 2.0, "tokens": 6},
    )


def test_a_run_stops_early_and_publishes_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kls = [0.5, 0.3, 0.4, 0.35, 0.1, 0.1, 0.1, 0.1]
    _scripted(monkeypatch, kls)
    record = train(toy_session(tmp_path / "early", _config()))
    assert record is not None
    assert record.train is not None
    assert (record.train.step, record.train.max_steps) == (4, 8)
    about = json.loads(RunFolder(tmp_path / "early").run.read_text())
    assert about["adapter_step"] == 2
    assert [line["kl"] for line in about["heldout"]] == kls[:4]
    # The same run, looked at after two steps: no patience, so that nothing else differs.
    _scripted(monkeypatch, kls)
    session = toy_session(tmp_path / "two", _config(early_stopping_patience=0))
    seen: list[dict[str, torch.Tensor]] = []
    real = heldout.record

    def watching(session: Any, metrics: Any) -> None:
        real(session, metrics)
        seen.append({name: part.clone() for name, part in session.student.lora_tensors().items()})

    monkeypatch.setattr(heldout, "record", watching)
    train(session)
    from trainer.adapter import load_adapter

    published = load_adapter(RunFolder(tmp_path / "early").adapter).tensors
    assert all(torch.equal(published[name], tensor) for name, tensor in seen[1].items())
    assert not all(torch.equal(published[name], tensor) for name, tensor in seen[3].items())


@pytest.mark.parametrize("dies_after", [2, 3, 4])
def test_a_resumed_run_stops_where_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_after: int
) -> None:
    kls = [0.5, 0.3, 0.4, 0.2, 0.4, 0.35, 0.1, 0.1]
    _scripted(monkeypatch, kls)
    whole = tmp_path / "whole"
    train(toy_session(whole, _config(save_steps=1)))

    class Died(Exception):
        pass

    real = heldout.record

    def dying(session: Any, metrics: Any) -> None:
        if metrics["step"] > dies_after:
            raise Died
        real(session, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(heldout, "record", dying)
        with pytest.raises(Died):
            train(toy_session(tmp_path / "run", _config(save_steps=1)))
    train(toy_session(tmp_path / "run", _config(save_steps=1)))
    assert result(tmp_path / "run") == result(whole)
    assert result(whole)[2][-1]["step"] == 6


def test_held_out_rows_are_those_no_run_is_trained_on(tiny_tokenizer: Any) -> None:
    rows = [
        {"prompt": f"What is {number} plus one?", "completion": "A number. " * 8} for number in range(900)
    ]
    config = TrainConfig(dataset_name="x.jsonl", eval_steps=1, eval_rows=5, max_length=256)
    found = heldout_examples(rows, tiny_tokenizer, config)
    prompts = [tiny_tokenizer(row["prompt"])["input_ids"] for row in rows if is_heldout(row)]
    assert [list(example.prompt) for example in found] == prompts[:5]
    assert heldout_examples(rows, tiny_tokenizer, config.model_copy(update={"eval_steps": 0})) == []
    with pytest.raises(DataError, match="needs held-out rows"):
        heldout_examples([row for row in rows if not is_heldout(row)], tiny_tokenizer, config)


def test_patience_needs_evaluations() -> None:
    with pytest.raises(ValueError, match="eval_steps is 0"):
        TrainConfig(early_stopping_patience=2)
    make: Callable[..., TrainConfig] = TrainConfig
    assert make(early_stopping_patience=2, eval_steps=5).early_stopping_patience == 2
