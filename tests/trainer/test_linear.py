"""LoRA inside the quantiser, and bases kept as codes: each the function it says, with its exact gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.trainer.students import logits_of, perturb, small_config
from trainer.adapter import Adapter
from trainer.config import QuantType
from trainer.linear import LoraLinear, Mode, Switch
from trainer.quant import Packed, pack_nibbles, quantise_weight, unpack_nibbles
from trainer.student import Student, build_student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MakeModel = Callable[..., "PreTrainedModel"]
MODES: list[Mode] = ["teacher", "ptq", "student", "merged", "rollout"]


def _gradients(student: Student, ids_BT: Tensor) -> list[Tensor]:
    loss = (student.hidden(ids_BT) @ student.head().T).square().mean()
    return list(torch.autograd.grad(loss, student.lora_parameters()))


@pytest.fixture
def ids_BT() -> Tensor:
    return torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(3))


def test_inside_the_student_is_the_merged_model_bit_for_bit(make_model: MakeModel, ids_BT: Tensor) -> None:
    student = perturb(build_student(make_model("qwen3"), small_config(lora_order="inside", lora_alpha=6)))
    plain = make_model("qwen3")
    for name, linear in student.linears.items():
        with torch.no_grad():
            target = plain.get_submodule(name).weight
            target.copy_(quantise_weight(target + 1.5 * (linear.lora_B @ linear.lora_A), "int4", 32).weight)
    merged = logits_of(student, ids_BT, "merged")
    torch.testing.assert_close(merged, plain(ids_BT).logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits_of(student, ids_BT, "student"), merged)
    assert torch.equal(logits_of(student, ids_BT, "rollout"), merged)
    outside = perturb(build_student(make_model("qwen3"), small_config(lora_alpha=6)))
    assert torch.equal(logits_of(outside, ids_BT, "merged"), merged)
    assert (logits_of(outside, ids_BT, "student") - merged).abs().max() > 0.1


def _straight_through(linear: LoraLinear, x: Tensor, group_size: int) -> Tensor:
    """The published rule in plain autograd: the weight's own gradient passes the quantiser unchanged."""
    summed = linear.weight.double() + linear.scale * linear.lora_B.double() @ linear.lora_A.double()
    quantised = quantise_weight(summed.float(), "int4", group_size).weight.double()
    return x @ (summed + (quantised - summed).detach()).T


@pytest.mark.parametrize("packed", [False, True])
def test_inside_gradients_equal_a_straight_through_weight_in_float64(packed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    plain = nn.Linear(64, 24, bias=False)
    quantised = quantise_weight(plain.weight, "int4", 32)
    linear = LoraLinear(plain, quantised.weight, Switch("student", "inside"), None, 4, 1.7)
    with torch.no_grad():
        for part in (linear.lora_A, linear.lora_B):
            part.normal_(std=0.1, generator=generator)
    merged = quantise_weight(linear.plus_delta(linear.weight), "int4", 32)
    linear.made = Packed(merged, torch.float32) if packed else merged.weight
    x = torch.randn(2, 5, 64, generator=generator, requires_grad=True)
    exact = x.detach().double().requires_grad_(True)
    seed = torch.randn(2, 5, 24, generator=generator)

    out = linear(x)
    expected = _straight_through(linear, exact, 32)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected, [exact, linear.lora_A, linear.lora_B], seed.double())
    found = torch.autograd.grad(out, [x, linear.lora_A, linear.lora_B], seed)
    for ours, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), reference.double(), rtol=1e-4, atol=1e-5)
        assert reference.abs().max() > 0.01


def test_inside_follows_every_update(make_model: MakeModel, ids_BT: Tensor) -> None:
    student = perturb(build_student(make_model("llama"), small_config(lora_order="inside")))
    optimiser = torch.optim.AdamW(student.lora_parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = (student.hidden(ids_BT) @ student.head().T).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


def test_an_adapter_put_on_keeps_its_order(make_model: MakeModel, ids_BT: Tensor) -> None:
    trained = perturb(build_student(make_model("llama"), small_config(lora_order="inside")))
    tensors = {name: tensor.clone() for name, tensor in trained.lora_tensors().items()}
    worn = build_student(make_model("llama"), small_config(lora_r=1))
    worn.set_adapter(Adapter(tensors, 4, 8.0, {}), "inside")
    assert torch.equal(logits_of(worn, ids_BT, "student"), logits_of(trained, ids_BT, "student"))
    worn.set_adapter(Adapter(tensors, 4, 8.0, {}))
    assert not torch.equal(logits_of(worn, ids_BT, "student"), logits_of(trained, ids_BT, "student"))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("order", ["outside", "inside"])
@pytest.mark.parametrize("quant_type", ["int4", "int4_sym", "none"])
def test_small_computes_what_fast_does_bit_for_bit(
    make_model: MakeModel, ids_BT: Tensor, quant_type: QuantType, order: str, dtype: str, checkpointing: bool
) -> None:
    students = [
        perturb(
            build_student(
                make_model("llama", dtype),
                small_config(
                    quant_type=quant_type,
                    lora_order=order,
                    base_memory=memory,
                    quantize_lm_head=True,
                    gradient_checkpointing=checkpointing,
                ),
            )
        )
        for memory in ("fast", "small")
    ]
    fast, small = (_gradients(student, ids_BT) for student in students)
    assert all(torch.equal(one, other) for one, other in zip(fast, small, strict=True))
    assert any(gradient.abs().max() > 1e-6 for gradient in fast)
    for mode in MODES:
        assert torch.equal(logits_of(students[0], ids_BT, mode), logits_of(students[1], ids_BT, mode)), mode


def test_small_keeps_five_bits_a_weight_and_no_rollout_copy(make_model: MakeModel, ids_BT: Tensor) -> None:
    student = build_student(make_model("llama", "bfloat16"), small_config(base_memory="small"))
    for linear in student.linears.values():
        assert isinstance(linear.quantised, Packed)
        # 4 bits, and two bf16 for each 32 weights.
        assert linear.quantised.nbytes == linear.weight.numel() * (4 + 2 * 16 / 32) / 8
    logits_of(student, ids_BT, "rollout")
    assert all(linear.made is None for linear in student.linears.values())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-8, 7), min_size=2, max_size=64).filter(lambda codes: len(codes) % 2 == 0))
def test_nibbles_are_a_bijection(codes: list[int]) -> None:
    wanted = torch.tensor([codes, codes[::-1]], dtype=torch.int8)
    packed = pack_nibbles(wanted)
    assert packed.shape == (2, len(codes) // 2)
    assert torch.equal(unpack_nibbles(packed), wanted)
