"""What is evaluated is what was trained, or it is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from trainer import probe
from trainer.adapter import load_adapter, save_adapter
from trainer.config import TrainConfig
from trainer.student import Student, build_student

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

MakeModel = Callable[..., "PreTrainedModel"]


def _config(**fields: Any) -> TrainConfig:
    return TrainConfig(**{"group_size": 32, "lora_r": 4, "mixed_precision": "fp32", **fields})


def _student(make_model: MakeModel, config: TrainConfig) -> Student:
    dtype = "float32" if config.mixed_precision == "fp32" else "bfloat16"
    student = build_student(make_model("llama", dtype), config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in student.lora_parameters():
            part.add_(0.05 * torch.randn(part.shape, generator=generator))
    return student


@pytest.mark.parametrize("order", ["outside", "inside"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_adapter_read_back_computes_what_was_trained(
    make_model: MakeModel, tmp_path: Path, order: str, dtype: str
) -> None:
    config = _config(lora_order=order, mixed_precision=dtype)
    trained = _student(make_model, config)
    save_adapter(trained.lora_tensors(), tmp_path, config)
    taken = probe.prove(trained, tmp_path, config)

    fresh = build_student(
        make_model("llama", "float32" if dtype == "fp32" else "bfloat16"), _config(lora_r=1)
    )
    fresh.set_adapter(load_adapter(tmp_path), config.lora_order)
    found = probe.compare(taken, fresh, config)
    assert found.equal
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert (found.max_difference, found.changed) == (0, [])


def test_files_of_another_function_are_not_published(make_model: MakeModel, tmp_path: Path) -> None:
    config = _config()
    trained = _student(make_model, config)
    tensors = {name: tensor.clone() for name, tensor in trained.lora_tensors().items()}
    next(iter(tensors.values()))[0, 0] += 1e-3
    save_adapter(tensors, tmp_path, config)
    with pytest.raises(RuntimeError, match="do not compute what was trained"):
        probe.prove(trained, tmp_path, config)


def test_an_order_forgotten_is_told_from_noise(make_model: MakeModel) -> None:
    taken = probe.take(_student(make_model, _config(lora_order="inside")), _config())
    found = probe.compare(taken, _student(make_model, _config()), _config())
    assert not found.equal
    assert found.kl > 1e-4
    assert found.max_difference > 0.01


def test_changed_conditions_are_named(make_model: MakeModel) -> None:
    taken = probe.take(_student(make_model, _config()), _config())
    bf16 = _config(mixed_precision="bf16")
    found = probe.compare(taken, _student(make_model, bf16), bf16)
    assert not found.equal
    assert found.changed == ["dtype: fp32 → bf16"]
    assert 0 < found.kl < probe.TOLERANCE


def test_kl_is_that_of_the_likeliest_tokens_and_the_rest(make_model: MakeModel) -> None:
    one, other = _student(make_model, _config()), build_student(make_model("llama"), _config())
    found = probe.compare(probe.take(one, _config()), other, _config())
    log_p, log_q = (torch.log_softmax(probe._logits(student).double(), -1) for student in (one, other))
    top = log_p.topk(probe.TOP).indices
    mask = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, top, True)
    expected = 0.0
    for row in range(len(log_p)):
        p = torch.cat([log_p[row][mask[row]].exp(), log_p[row][~mask[row]].exp().sum()[None]])
        q = torch.cat([log_q[row][mask[row]].exp(), log_q[row][~mask[row]].exp().sum()[None]])
        expected += float((p * (p / q).log()).sum()) / len(log_p)
    assert found.kl == pytest.approx(expected, rel=1e-4)
    assert found.kl > 0
