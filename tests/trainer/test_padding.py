"""Batches padded on the right go without a mask: the twin is the same batch with its mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import SHAPE
from tests.trainer.students import perturb, small_config
from trainer.data import Batch, collate
from trainer.linear import Mode
from trainer.student import Student, build_student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MakeModel = Callable[..., "PreTrainedModel"]
MODES: list[Mode] = ["teacher", "ptq", "student", "merged", "rollout"]
LENGTHS = [19, 12, 7]
WINDOW = {
    "use_sliding_window": True,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
# Experts are routed token by token, Gemma looks through windows, OPT counts positions by the mask.
OTHERS: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 4, "layer_types": WINDOW["layer_types"]},
    "mixtral": {"sliding_window": None, "num_local_experts": 4},
    "opt": {"ffn_dim": 256, "word_embed_proj_dim": 128},
}


@pytest.fixture
def batch() -> Batch:
    drawn = torch.Generator().manual_seed(5)
    rows = [torch.randint(0, 256, (length,), generator=drawn).tolist() for length in LENGTHS]
    return collate([(row[:3], row[3:]) for row in rows], 258, torch.device("cpu"))


@pytest.fixture
def mask_BT() -> Tensor:
    return (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()


def _other(kind: str) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**SHAPE, **OTHERS[kind]})
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return model


@pytest.fixture(
    params=[
        ("llama", {}, {}),
        ("qwen3", {}, {}),
        ("qwen3", WINDOW, {}),
        ("llama", {}, {"gradient_checkpointing": True}),
        ("llama", {}, {"lora_order": "inside"}),
        *((kind, {}, {}) for kind in OTHERS),
    ],
    ids=str,
)
def student(request: pytest.FixtureRequest, make_model: MakeModel) -> Student:
    kind, shape, settings = request.param
    model = _other(kind) if kind in OTHERS else make_model(kind, **shape)
    return perturb(build_student(model, small_config(**settings)))


@pytest.mark.parametrize("mode", MODES)
def test_what_is_predicted_is_what_it_is_with_the_mask(
    student: Student, batch: Batch, mask_BT: Tensor, mode: Mode
) -> None:
    with torch.no_grad():
        masked = student.hidden(batch.ids_BT, mask_BT, mode=mode)[batch.predicts_BT]
        bare = student.hidden(batch.ids_BT, mode=mode)[batch.predicts_BT]
    torch.testing.assert_close(bare, masked, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_with_the_mask(student: Student, batch: Batch, mask_BT: Tensor) -> None:
    def gradients(mask: Tensor | None) -> list[Tensor]:
        hidden_NH = student.hidden(batch.ids_BT, mask)[batch.predicts_BT]
        loss = (hidden_NH @ student.head().T).square().mean()
        return list(torch.autograd.grad(loss, student.lora_parameters()))

    for bare, masked in zip(gradients(None), gradients(mask_BT), strict=True):
        torch.testing.assert_close(bare, masked, rtol=1e-4, atol=1e-5 * float(masked.abs().max()))


def test_attention_takes_its_causal_kernels_over_grouped_heads(
    make_model: MakeModel, batch: Batch, mask_BT: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[bool, bool, int]] = []
    real = F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **asked: Any) -> Tensor:
        calls.append((asked["attn_mask"] is None, asked["is_causal"], key.shape[1]))
        return real(query, key, value, **asked)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    student = build_student(make_model("llama"), small_config())
    student.hidden(batch.ids_BT)
    assert calls == [(True, True, SHAPE["num_key_value_heads"])] * 2
    calls.clear()
    student.hidden(batch.ids_BT, mask_BT)
    assert calls == [(False, False, SHAPE["num_attention_heads"])] * 2, "the twin is another path"


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"is_causal": False}, True),
        ({"use_bidirectional_attention": True}, True),
        ({"use_bidirectional_attention": "all"}, True),
        ({"use_bidirectional_attention": "vision"}, False),
        ({"is_causal": True, "use_bidirectional_attention": False}, False),
    ],
    ids=str,
)
def test_a_model_that_looks_ahead_is_refused(
    make_model: MakeModel, fields: dict[str, Any], refused: bool
) -> None:
    model = make_model("llama")
    for name, value in fields.items():
        setattr(model.config, name, value)
    if refused:
        with pytest.raises(ValueError, match="attention must be causal"):
            build_student(model, small_config())
    else:
        build_student(model, small_config())
