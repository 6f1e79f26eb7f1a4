"""The adapter's files: PEFT reads ours, we read PEFT's, and what plain LoRA cannot say is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from trainer.adapter import load_adapter, save_adapter
from trainer.config import TrainConfig
from trainer.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from trainer.student import Student, build_student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MakeModel = Callable[..., "PreTrainedModel"]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _config(**fields: Any) -> TrainConfig:
    return TrainConfig(**{"group_size": 32, "lora_r": 4, "mixed_precision": "fp32", **fields})


def _trained(model: PreTrainedModel, config: TrainConfig) -> Student:
    """A student whose adapter does something."""
    student = build_student(model, config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in student.lora_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return student


def _fold(model: PreTrainedModel, student: Student) -> PreTrainedModel:
    """An untouched model of the same seed, with Q(W) for W: the base the adapter belongs to."""
    with torch.no_grad():
        for name in student.linears:
            model.get_submodule(name).weight.copy_(student.weight(name, "ptq"))
    return model


@pytest.fixture
def ids_BT() -> Tensor:
    return torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("lora_alpha", [0, 5])
def test_peft_on_the_folded_base_computes_the_student(
    make_model: MakeModel, ids_BT: Tensor, tmp_path: Path, kind: str, lora_alpha: int
) -> None:
    peft = pytest.importorskip("peft")
    config = _config(lora_alpha=lora_alpha)
    student = _trained(make_model(kind), config)
    save_adapter(student.lora_tensors(), tmp_path, config)
    theirs = peft.PeftModel.from_pretrained(_fold(make_model(kind), student), tmp_path, is_trainable=True)
    theirs.eval()

    ours_BTV, theirs_BTV = student.model(ids_BT).logits, theirs(ids_BT).logits
    torch.testing.assert_close(ours_BTV, theirs_BTV, rtol=1e-5, atol=1e-5)
    with student.mode("ptq"):
        assert (student.model(ids_BT).logits - theirs_BTV).abs().max() > 0.1, "the adapter must matter here"

    ours_BTV.square().mean().backward()
    theirs_BTV.square().mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(gradients) == len(student.lora_parameters())
    for name, linear in student.linears.items():
        for part in ("lora_A", "lora_B"):
            expected = gradients[f"base_model.model.{name}.{part}.default.weight"]
            actual = getattr(linear, part).grad
            assert actual.dtype == torch.float32
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_save_adapter_writes_the_same_bytes_for_the_same_tensors(
    make_model: MakeModel, tmp_path: Path
) -> None:
    config = _config()
    tensors = _trained(make_model("llama"), config).lora_tensors()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    save_adapter(tensors, tmp_path / "a", config)
    save_adapter(dict(reversed(tensors.items())), tmp_path / "b", config)
    for file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [ADAPTER_CONFIG, ADAPTER_WEIGHTS]


def test_load_adapter_gives_back_what_was_saved(make_model: MakeModel, tmp_path: Path) -> None:
    config = _config(lora_alpha=6)
    tensors = _trained(make_model("llama"), config).lora_tensors()
    save_adapter(tensors, tmp_path, config)

    adapter = load_adapter(tmp_path)

    assert (adapter.r, adapter.alpha, adapter.scale) == (4, 6, 1.5)
    assert adapter.meta["base_model_name_or_path"] == config.model_name
    assert adapter.meta["target_modules"] == sorted(TARGETS)
    assert adapter.tensors.keys() == tensors.keys()
    assert all(torch.equal(adapter.tensors[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"r": 4, "lora_alpha": 12, "target_modules": TARGETS}, id="plain"),
        pytest.param({"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]}, id="two modules"),
        pytest.param({"r": 9, "lora_alpha": 6, "target_modules": TARGETS, "use_rslora": True}, id="rsLoRA"),
        pytest.param(
            {
                "r": 4,
                "lora_alpha": 12,
                "target_modules": TARGETS,
                "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.up_proj": 6},
                "alpha_pattern": {"^model.layers.0.*.k_proj": 3, "down_proj": 8},
            },
            id="own ranks and alphas",
        ),
    ],
)
def test_load_adapter_reads_what_peft_writes(
    make_model: MakeModel, ids_BT: Tensor, tmp_path: Path, fields: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(make_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", **fields))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    theirs.eval().save_pretrained(tmp_path)

    student = build_student(make_model("llama"), _config(quant_type="none"))
    student.set_adapter(load_adapter(tmp_path))

    with torch.no_grad():
        expected, actual = theirs(ids_BT).logits, student.model(ids_BT).logits
        with student.mode("teacher"):
            without = student.model(ids_BT).logits
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)
    assert (expected - without).abs().max() > 0.01


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> Path:
    config = _config()
    save_adapter(_trained(make_model("llama"), config).lora_tensors(), tmp_path, config)
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora is not supported, got True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported, got ['lm_head']"),
        ({"bias": "all"}, "bias is not supported, got 'all'"),
        ({"peft_type": "IA3"}, "peft_type is not supported, got 'IA3'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is not supported, got True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights changes the base, got 'pissa'"),
        ({"r": 0}, "r must be a positive number, got 0"),
        ({"lora_alpha": None}, "lora_alpha must be a positive number, got None"),
    ],
)
def test_load_adapter_refuses_what_plain_lora_cannot_say(
    saved: Path, fields: dict[str, Any], message: str
) -> None:
    file = saved / ADAPTER_CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    with pytest.raises(ValueError, match=r"adapter_config\.json: ") as caught:
        load_adapter(saved)
    assert message in str(caught.value)


def test_load_adapter_names_every_fault_at_once(saved: Path) -> None:
    file = saved / ADAPTER_CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": True, "bias": "all"}))
    with pytest.raises(ValueError, match="use_dora") as caught:
        load_adapter(saved)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("kept", [[], [ADAPTER_CONFIG], [ADAPTER_WEIGHTS]])
def test_load_adapter_says_which_file_is_missing(saved: Path, kept: list[str]) -> None:
    gone = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name not in kept]
    for name in gone:
        (saved / name).unlink()
    with pytest.raises(ValueError, match=f"not a PEFT adapter, {' and '.join(gone)} missing"):
        load_adapter(saved)


@pytest.mark.parametrize("cut", [0, 5, 1000, -1])
def test_load_adapter_refuses_a_truncated_file(saved: Path, cut: int) -> None:
    file = saved / ADAPTER_WEIGHTS
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_adapter(saved)


@pytest.mark.parametrize("text", ["", "[1", "7", "[]"])
def test_load_adapter_refuses_a_config_that_is_no_object(saved: Path, text: str) -> None:
    (saved / ADAPTER_CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config\.json: not a JSON object"):
        load_adapter(saved)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param({}, "holds no LoRA matrices", id="empty"),
        pytest.param({"base_model.model.x.lora_A.weight": (2, 8)}, "A and B of x", id="A alone"),
        pytest.param(
            {"base_model.model.x.lora_A.weight": (2, 8), "base_model.model.x.lora_B.weight": (8, 3)},
            "A and B of x do not belong together",
            id="unequal ranks",
        ),
        pytest.param({"base_model.model.x.lora_embedding_A": (2, 8)}, "not a LoRA matrix", id="embedding"),
        pytest.param({"base_model.model.lm_head.weight": (2, 8)}, "not a LoRA matrix", id="whole weight"),
    ],
)
def test_load_adapter_refuses_tensors_that_are_no_lora_pairs(
    saved: Path, tensors: dict[str, tuple[int, int]], message: str
) -> None:
    from safetensors.torch import save_file

    save_file({key: torch.zeros(shape) for key, shape in tensors.items()}, saved / ADAPTER_WEIGHTS)
    with pytest.raises(ValueError, match=message):
        load_adapter(saved)
