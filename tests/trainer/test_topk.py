"""The teacher's top K: a lower bound of the whole loss, its gradient, and files that change no bit."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer import train as loop
from trainer.attempt import StopSignal
from trainer.config import TrainConfig, TrainPlace
from trainer.data import Example
from trainer.distributed import World
from trainer.durable import write_bytes_once
from trainer.flags import UsageError
from trainer.layout import ADAPTER_WEIGHTS, RunFolder
from trainer.losses import generalized_jsd
from trainer.session import Session
from trainer.setup import prepare
from trainer.teacher_topk import ERROR
from trainer.topk import fused_topk_jsd, take_topk

BETAS, TEMPERATURES = [0.0, 0.3, 1.0], [1.0, 2.0]
N, H, V = 7, 8, 37
WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and head of a student, and a teacher's logits."""
    drawn = torch.Generator().manual_seed(0)
    shapes = ((N, H), (V, H), (N, V))
    hidden_NH, head_VH, teacher_NV = (torch.randn(shape, generator=drawn) for shape in shapes)
    return hidden_NH.requires_grad_(), head_VH, 2 * teacher_NV


def _merged(logits_NV: Tensor, ids_NK: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of K tokens and of all others as one, float64: the definition."""
    p_NV = torch.softmax(logits_NV.double() / temperature, -1)
    top_NK = p_NV.gather(1, ids_NK)
    return torch.cat([top_NK, 1 - top_NK.sum(-1, keepdim=True)], 1).log()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_it_is_the_divergence_on_k_plus_one_symbols_and_so_is_its_gradient(
    beta: float, temperature: float, case: tuple[Tensor, Tensor, Tensor]
) -> None:
    hidden_NH, head_VH, teacher_NV = case
    top = take_topk(teacher_NV, 5, temperature)
    expected = generalized_jsd(
        _merged(hidden_NH @ head_VH.T, top.ids_NK, temperature),
        _merged(teacher_NV, top.ids_NK, temperature),
        beta,
    ).sum()
    (wanted,) = torch.autograd.grad(expected, hidden_NH)
    loss = fused_topk_jsd(hidden_NH, head_VH, top, beta, temperature)
    (found,) = torch.autograd.grad(loss, hidden_NH)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_it_grows_with_k_up_to_the_whole_loss(
    beta: float, temperature: float, case: tuple[Tensor, Tensor, Tensor]
) -> None:
    hidden_NH, head_VH, teacher_NV = case
    losses = [
        fused_topk_jsd(hidden_NH, head_VH, take_topk(teacher_NV, k, temperature), beta, temperature).item()
        for k in (1, 2, 5, 20, V - 1, V)
    ]
    whole = generalized_jsd(hidden_NH @ head_VH.T, teacher_NV, beta, temperature).sum()
    assert losses == sorted(losses)
    assert losses[0] < 0.7 * losses[-1]
    assert losses[-1] == pytest.approx(whole.item(), rel=1e-5)
    (wanted,) = torch.autograd.grad(whole, hidden_NH)
    all_of_it = fused_topk_jsd(hidden_NH, head_VH, take_topk(teacher_NV, V, temperature), beta, temperature)
    torch.testing.assert_close(torch.autograd.grad(all_of_it, hidden_NH)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_a_sure_teacher_or_student_leaves_a_rest_without_digits(beta: float) -> None:
    """1 - sum would be 0 or worse here; the rest is a sum of its own."""
    head_VH = torch.eye(V)
    for sure_N, other_N in ((60.0, 0.0), (0.0, 60.0), (200.0, 200.0)):
        student = torch.zeros(1, V)
        student[0, 3] = sure_N
        teacher = torch.zeros(1, V)
        teacher[0, 3] = other_N
        loss = fused_topk_jsd(student.requires_grad_(), head_VH, take_topk(teacher, 2, 1.0), beta)
        whole = generalized_jsd(student, teacher, beta).sum()
        assert loss.item() <= whole.item() * (1 + 1e-5) + 1e-6
        assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_only_the_datas_own_completions_have_a_cache() -> None:
    for wrong in ({"lmbda": 1.0}, {"lmbda": 0.5}, {"lmbda": 0.0, "seq_kd": True}):
        with pytest.raises(ValueError, match="set lmbda 0 without seq_kd, or leave teacher_topk at 0"):
            TrainConfig(teacher_topk=64, **wrong)  # type: ignore[arg-type]
    assert TrainConfig(teacher_topk=64, lmbda=0.0).teacher_topk == 64


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, make_tiny_folder: Callable[[Path], Path]) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def session_of(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Session, list[int]]]:
    """A session at λ = 0 on a volume, and the rows of each forward of its teacher."""
    monkeypatch.setattr("trainer.publish.sample_completions", lambda session: [])

    def make(dump: Path, name: str, **changes: Any) -> tuple[Session, list[int]]:
        settings: dict[str, Any] = {
            "model_name": str(tiny_folder),
            "dataset_name": str(tiny_folder / "rows.jsonl"),
            "mixed_precision": "fp32",
            "group_size": 32,
            "lora_r": 4,
            "lmbda": 0.0,
            "beta": 0.0,
            "max_length": 64,
            "max_steps": 4,
            "save_steps": 2,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "teacher_topk": 8,
        }
        place = TrainPlace(output_dir=str(dump / "sweep" / name))
        session = prepare(TrainConfig(**{**settings, **changes}), place, WORLD, StopSignal())
        rows: list[int] = []
        real = session.student.hidden

        def hidden(ids_BT: Tensor, *asked: Any, mode: Any = "student", **inputs: Any) -> Tensor:
            if mode == "teacher":
                rows.append(len(ids_BT))
            return real(ids_BT, *asked, mode=mode, **inputs)

        session.student.hidden = hidden  # type: ignore[method-assign]
        return session, rows

    return make


def _result(dump: Path, name: str) -> tuple[bytes, list[dict[str, Any]]]:
    folder = RunFolder(dump / "sweep" / name)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for line in lines:
        for timed in ("seconds", "tokens_per_s", "time"):
            del line[timed]
    return (folder.adapter / ADAPTER_WEIGHTS).read_bytes(), lines


def test_the_second_run_reads_what_the_first_computed_and_changes_no_bit(
    session_of: Callable[..., tuple[Session, list[int]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, forwards = session_of(tmp_path / "a", "one")
    loop.train(first)
    # Each of 4 x 4 rows alone, and the first micro-batch once for the error.
    assert sorted(forwards) == [1] * 16 + [2]
    (folder,) = (tmp_path / "a" / ".teacher").iterdir()
    os.utime(folder, (0, 0))
    second, forwards = session_of(tmp_path / "a", "two")
    loop.train(second)
    assert folder.stat().st_mtime > 0, "gc must see that a run which only reads has used it"
    assert forwards == [2], "the error's alone"
    elsewhere, forwards = session_of(tmp_path / "b", "one")
    loop.train(elsewhere)
    assert len(forwards) == 17
    assert _result(tmp_path / "a", "one") == _result(tmp_path / "a", "two") == _result(tmp_path / "b", "one")
    about = json.loads(RunFolder(tmp_path / "a" / "sweep" / "two").run.read_text())
    assert 0 < about[ERROR] < 1
    assert about[ERROR] == _result(tmp_path / "a", "one")[1][0][ERROR]
    assert f"8 tokens see {100 * (1 - about[ERROR]):.2f} % of the loss" in caplog.text
    # Another batch has the same rows: what is kept does not depend on it.
    other, forwards = session_of(
        tmp_path / "a", "three", per_device_train_batch_size=4, gradient_accumulation_steps=1, beta=1.0
    )
    loop.train(other)
    assert forwards == [4]


def test_all_tokens_are_the_whole_loss(
    session_of: Callable[..., tuple[Session, list[int]]], tmp_path: Path
) -> None:
    whole, _ = session_of(tmp_path, "whole", teacher_topk=0)
    vocabulary = len(whole.student.head("teacher"))
    loop.train(whole)
    topk, _ = session_of(tmp_path, "topk", teacher_topk=vocabulary)
    loop.train(topk)
    for one, other in zip(_result(tmp_path, "topk")[1], _result(tmp_path, "whole")[1], strict=True):
        assert abs(one.pop(ERROR, 0.0)) < 1e-5
        assert one == pytest.approx(other, rel=1e-4)
    with pytest.raises(UsageError, match=f"the vocabulary has {vocabulary} tokens, got {vocabulary + 1}"):
        session_of(tmp_path, "more", teacher_topk=vocabulary + 1)


@pytest.mark.parametrize("dies_in_step", [1, 3])
def test_a_run_that_died_goes_on_to_the_same_bytes(
    dies_in_step: int,
    session_of: Callable[..., tuple[Session, list[int]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, _ = session_of(tmp_path / "a", "run")
    loop.train(session)
    real = loop._accumulate

    def dying(session: Any, step: int, *rest: Any) -> Any:
        if step == dies_in_step:
            raise KeyboardInterrupt
        return real(session, step, *rest)

    monkeypatch.setattr(loop, "_accumulate", dying)
    session, _ = session_of(tmp_path / "b", "run")
    with pytest.raises(KeyboardInterrupt):
        loop.train(session)
    monkeypatch.setattr(loop, "_accumulate", real)
    session, forwards = session_of(tmp_path / "b", "run")
    loop.train(session)
    assert _result(tmp_path / "a", "run") == _result(tmp_path / "b", "run")
    if dies_in_step == 3:
        assert 2 not in forwards, "the error was measured before the checkpoint"
    about = json.loads(RunFolder(tmp_path / "b" / "sweep" / "run").run.read_text())
    assert about[ERROR] == _result(tmp_path / "a", "run")[1][0][ERROR]


EXAMPLE = Example((5, 6, 7), (8, 9, 10))


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_file_is_written_again(
    damage: bytes | None, session_of: Callable[..., tuple[Session, list[int]]], tmp_path: Path
) -> None:
    session, forwards = session_of(tmp_path, "run")
    assert session.topk is not None
    kept = session.topk.of(EXAMPLE)
    (path,) = (tmp_path / ".teacher").rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] if damage is None else damage)
    again = session.topk.of(EXAMPLE)
    assert path.read_bytes() == whole
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert forwards == [1, 1]
    assert kept.log_p_NE.exp().sum(-1).tolist() == pytest.approx([1.0] * 3, rel=1e-5)


@pytest.mark.parametrize(
    "changes", [{"teacher_topk": 4}, {"loss_temperature": 2.0}, {"mixed_precision": "bf16"}]
)
def test_what_a_file_depends_on_is_in_its_name(
    changes: dict[str, Any], session_of: Callable[..., tuple[Session, list[int]]], tmp_path: Path
) -> None:
    for settings in ({}, changes, {"temperature": 0.5, "seed": 1, "quant_type": "none"}):
        session, _ = session_of(tmp_path, f"run-{len(settings)}", **settings)
        assert session.topk is not None
        for completion in ((8, 9, 10), (8, 9, 11)):
            session.topk.of(Example((5, 6, 7), completion))
    # Sampling, seed and quantisation change nothing of a teacher.
    assert len(list((tmp_path / ".teacher").rglob("*.safetensors"))) == 4


def test_the_first_of_two_writers_stands(
    session_of: Callable[..., tuple[Session, list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = session_of(tmp_path, "run")
    assert session.topk is not None
    topk, real = session.topk, session.topk._compute
    topk.of(EXAMPLE)
    (path,) = (tmp_path / ".teacher").rglob("*.safetensors")
    first = path.read_bytes()
    path.unlink()

    def slow(example: Example) -> Any:
        computed = real(example)
        write_bytes_once(path, first, lambda path: False)  # another run was faster
        return computed._replace(log_p_NE=computed.log_p_NE - 1)

    monkeypatch.setattr(topk, "_compute", slow)
    found = topk.of(EXAMPLE)
    assert path.read_bytes() == first
    assert found.log_p_NE.exp().sum(-1).tolist() == pytest.approx([1.0] * 3, rel=1e-5)
