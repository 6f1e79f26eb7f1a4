"""One model in five modes: each mode is the function it says, and none leaks into another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from tests.trainer.students import logits_of, perturb, small_config
from trainer.adapter import Adapter
from trainer.linear import Mode
from trainer.losses import fused_jsd
from trainer.quant import quantise_weight
from trainer.student import build_student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MakeModel = Callable[..., "PreTrainedModel"]
KINDS = ["qwen3", "llama"]
MODES: list[Mode] = ["teacher", "ptq", "student", "merged", "rollout"]


@pytest.fixture
def ids_BT() -> Tensor:
    return torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_teacher_is_the_untouched_model_bit_for_bit(
    make_model: MakeModel, ids_BT: Tensor, kind: str, tied: bool, dtype: str
) -> None:
    expected = make_model(kind, dtype, tie_word_embeddings=tied)(ids_BT).logits

    student = build_student(
        make_model(kind, dtype, tie_word_embeddings=tied), small_config(quantize_lm_head=True)
    )
    perturb(student)

    assert torch.equal(logits_of(student, ids_BT, "teacher"), expected)
    hidden = student.hidden(ids_BT, mode="teacher")
    torch.testing.assert_close(hidden @ student.head("teacher").T, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_student_is_ptq(make_model: MakeModel, ids_BT: Tensor, kind: str) -> None:
    student = build_student(make_model(kind), small_config())
    ptq = logits_of(student, ids_BT, "ptq")
    assert torch.equal(logits_of(student, ids_BT, "student"), ptq)
    assert (ptq - logits_of(student, ids_BT, "teacher")).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_ptq_and_merged_are_plain_models_of_weights_made_by_hand(
    make_model: MakeModel, ids_BT: Tensor, kind: str
) -> None:
    config = small_config(lora_alpha=6)
    student = perturb(build_student(make_model(kind), config))
    for mode in ("ptq", "merged"):
        plain = make_model(kind)
        for name, linear in student.linears.items():
            target = plain.get_submodule(name).weight
            delta = 1.5 * (linear.lora_B @ linear.lora_A) if mode == "merged" else 0
            with torch.no_grad():
                target.copy_(quantise_weight(target + delta, "int4", 32).weight)
        torch.testing.assert_close(
            logits_of(student, ids_BT, mode), plain(ids_BT).logits, rtol=1e-5, atol=1e-5
        )
        assert torch.equal(student.weight(name, mode), target)


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_is_the_student_with_lora_merged(make_model: MakeModel, ids_BT: Tensor, kind: str) -> None:
    student = perturb(build_student(make_model(kind), small_config()))
    expected = logits_of(student, ids_BT, "student")
    torch.testing.assert_close(logits_of(student, ids_BT, "rollout"), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits_of(student, ids_BT, "merged")).abs().max() > 0.1


@pytest.mark.parametrize("mode", ["rollout", "merged"])
def test_dense_weights_follow_the_adapter_into_one_buffer(
    make_model: MakeModel, ids_BT: Tensor, mode: Mode
) -> None:
    student = perturb(build_student(make_model("llama"), small_config()))
    before = logits_of(student, ids_BT, mode)
    linear = next(iter(student.linears.values()))
    buffer = linear.filled().data_ptr()

    optimiser = torch.optim.AdamW(student.lora_parameters(), lr=0.05)
    student.model(ids_BT).logits.square().mean().backward()
    optimiser.step()
    after = logits_of(student, ids_BT, mode)

    assert (after - before).abs().max() > 0.1
    if mode == "rollout":
        expected = logits_of(student, ids_BT, "student")
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert linear.filled().data_ptr() == buffer
    student.free_merged()
    assert linear.made is None
    assert torch.equal(logits_of(student, ids_BT, mode), after)


def test_dense_weights_made_in_inference_mode_can_be_made_again_outside(
    make_model: MakeModel, ids_BT: Tensor
) -> None:
    student = perturb(build_student(make_model("llama"), small_config()))
    with torch.inference_mode(), student.mode("rollout"):
        student.model(ids_BT)
    perturb(student, seed=8)
    expected = logits_of(student, ids_BT, "student")
    torch.testing.assert_close(logits_of(student, ids_BT, "rollout"), expected, rtol=1e-4, atol=1e-4)


def test_modes_nest_and_end_even_after_an_error(make_model: MakeModel, ids_BT: Tensor) -> None:
    student = perturb(build_student(make_model("llama"), small_config()))
    expected = {mode: logits_of(student, ids_BT, mode) for mode in MODES}
    with pytest.raises(RuntimeError, match="inside"), student.mode("teacher"):  # noqa: PT012
        assert torch.equal(logits_of(student, ids_BT, "ptq"), expected["ptq"])
        assert torch.equal(student.model(ids_BT).logits, expected["teacher"])
        raise RuntimeError("inside")
    assert torch.equal(student.model(ids_BT).logits, expected["student"])


@pytest.mark.parametrize("mode", ["teacher", "rollout"])
def test_modes_decode_with_the_cache_as_without(make_model: MakeModel, ids_BT: Tensor, mode: Mode) -> None:
    """Bug 16: gradient checkpointing turned the cache off, and decoding became quadratic."""
    student = perturb(build_student(make_model("qwen3"), small_config(gradient_checkpointing=True)))
    whole = logits_of(student, ids_BT, mode)
    with torch.no_grad(), student.mode(mode):
        first = student.model(ids_BT[:, :-1], use_cache=True)
        assert first.past_key_values.get_seq_length() == ids_BT.shape[1] - 1
        last = student.model(ids_BT[:, -1:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(last.logits[:, -1], whole[:, -1], rtol=1e-4, atol=1e-4)


def test_only_lora_is_trained_and_in_float32(make_model: MakeModel, ids_BT: Tensor) -> None:
    student = perturb(build_student(make_model("qwen3", "bfloat16"), small_config()))
    trained = {id(parameter) for parameter in student.lora_parameters()}
    assert len(trained) == 2 * 2 * 7
    assert {id(p) for p in student.model.parameters() if p.requires_grad} == trained
    student.hidden(ids_BT).float().square().mean().backward()
    for parameter in student.lora_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0


def test_hidden_carries_a_gradient_for_the_student_alone(make_model: MakeModel, ids_BT: Tensor) -> None:
    student = build_student(make_model("llama"), small_config(gradient_checkpointing=True))
    assert student.hidden(ids_BT).requires_grad
    assert not any(student.hidden(ids_BT, mode=mode).requires_grad for mode in MODES if mode != "student")


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_is_what_the_head_reads(make_model: MakeModel, ids_BT: Tensor, kind: str) -> None:
    student = perturb(build_student(make_model(kind), small_config(quantize_lm_head=True)))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :3] = 0
    for mode in MODES:
        with torch.no_grad(), student.mode(mode):
            expected = student.model(ids_BT, attention_mask=mask_BT).logits
        logits = student.hidden(ids_BT, mask_BT, mode=mode) @ student.head(mode).T
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_recomputed_activations_are_the_students(make_model: MakeModel, ids_BT: Tensor) -> None:
    """The teacher's pass between forward and backward must not change what backward recomputes."""
    gradients: list[list[Tensor]] = []
    for checkpointing in (False, True):
        config = small_config(gradient_checkpointing=checkpointing)
        student = perturb(build_student(make_model("qwen3"), config))
        hidden = student.hidden(ids_BT).flatten(0, 1)
        teacher = student.hidden(ids_BT, mode="teacher").flatten(0, 1)
        fused_jsd(hidden, student.head(), teacher, student.head("teacher"), beta=0.5).backward()
        gradients.append([p.grad.clone() for p in student.lora_parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == 28
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("quantize_lm_head", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_quantised_only_when_asked_and_the_embedding_never(
    make_model: MakeModel, ids_BT: Tensor, tied: bool, quantize_lm_head: bool
) -> None:
    original = make_model("qwen3", tie_word_embeddings=tied)
    head, embedding = original.lm_head.weight.clone(), original.model.embed_tokens.weight.clone()
    student = build_student(
        make_model("qwen3", tie_word_embeddings=tied), small_config(quantize_lm_head=quantize_lm_head)
    )
    expected = quantise_weight(head, "int4", 32).weight if quantize_lm_head else head
    assert torch.equal(student.head("student"), expected)
    assert torch.equal(student.head("ptq"), expected)
    assert torch.equal(student.head("teacher"), head)
    assert torch.equal(student.model.get_input_embeddings().weight, embedding)


def test_codes_hash_names_the_base(make_model: MakeModel) -> None:
    def of(seed: int = 0, **fields: Any) -> str:
        return build_student(make_model("llama", seed=seed), small_config(**fields)).codes_sha256

    assert of() == of()
    assert of(seed=1) != of(), "another teacher is another base"
    assert of(lora_r=8, learning_rate=0.1) == of(), "training is no part of the base"
    same = [
        of(),
        of(group_size=64),
        of(quant_type="int4_sym"),
        of(qparams_dtype="fp32"),
        of(quantize_lm_head=True),
        of(quant_type="none"),
    ]
    assert len(set(same)) == len(same)


def test_lora_starts_from_the_seed_alone(make_model: MakeModel) -> None:
    def start(seed: int) -> dict[str, Tensor]:
        return build_student(make_model("llama"), small_config(seed=seed)).lora_tensors()

    torch.manual_seed(0)
    first = start(1)
    torch.manual_seed(99)
    again, other = start(1), start(2)
    for name, tensor in first.items():
        assert torch.equal(again[name], tensor)
        if name.endswith("lora_B"):
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert bound * 0.9 < tensor.abs().max() <= bound
            assert not torch.equal(other[name], tensor)
    starts = [tensor for name, tensor in first.items() if name.endswith("q_proj.lora_A")]
    assert not torch.equal(*starts), "layers start apart"


def test_w_is_shared_not_copied(make_model: MakeModel) -> None:
    model = make_model("llama")
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    student = build_student(model, small_config())
    for name, linear in student.linears.items():
        assert linear.weight.data_ptr() == before[f"{name}.weight"]
        assert linear.made is None
    none = build_student(make_model("llama"), small_config(quant_type="none"))
    assert all(linear.base.data_ptr() == linear.weight.data_ptr() for linear in none.linears.values())


def test_student_keeps_x_once_for_its_three_products(make_model: MakeModel) -> None:
    """PEFT keeps a float32 copy of x per adapter; here backward keeps x itself and rank-sized tensors."""
    student = build_student(make_model("llama", "bfloat16"), small_config())
    linear = next(iter(student.linears.values()))
    x = torch.randn(64, linear.in_features, dtype=torch.bfloat16, requires_grad=True)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear(x)
    activations = [t for t in kept.values() if 64 in t.shape and t.shape != linear.base.shape]
    sizes = sorted(t.numel() for t in activations)
    assert sizes == [64 * 4, 64 * linear.in_features]


def test_rotary_frequencies_stay_in_float32(make_model: MakeModel) -> None:
    """model.bfloat16() rounds them, and is then another model: nothing here may cast a whole model."""
    student = build_student(make_model("qwen3", "bfloat16"), small_config())
    assert student.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert student.model.lm_head.weight.dtype == torch.bfloat16


def test_load_lora_restores_in_place(make_model: MakeModel, ids_BT: Tensor) -> None:
    student = perturb(build_student(make_model("llama"), small_config()))
    saved = {name: tensor.clone() for name, tensor in student.lora_tensors().items()}
    expected = {mode: logits_of(student, ids_BT, mode) for mode in MODES}
    parameters = student.lora_parameters()
    perturb(student, seed=8)
    logits_of(student, ids_BT, "rollout")

    student.load_lora(saved)

    assert all(new is old for new, old in zip(student.lora_parameters(), parameters, strict=True))
    for mode in MODES:
        assert torch.equal(logits_of(student, ids_BT, mode), expected[mode])


def test_load_lora_and_set_adapter_name_every_misfit(make_model: MakeModel) -> None:
    student = build_student(make_model("llama"), small_config())
    tensors = student.lora_tensors()
    wrong = {**tensors, "model.layers.9.mlp.up_proj.lora_A": torch.zeros(4, 128)}
    wrong["model.layers.0.mlp.up_proj.lora_A"] = torch.zeros(4, 64)
    no_linear = "adapter: the model has no such linear, got model.layers.9.mlp.up_proj.lora_A"
    bad_shape = "adapter: model.layers.0.mlp.up_proj.lora_A must have shape (4, 128), got (4, 64)"

    with pytest.raises(ValueError, match="adapter") as caught:
        student.set_adapter(Adapter(wrong, r=4, alpha=8, meta={}))
    assert no_linear in str(caught.value)
    assert bad_shape in str(caught.value)

    del wrong["model.layers.1.self_attn.q_proj.lora_B"]
    with pytest.raises(ValueError, match="adapter") as caught:
        student.load_lora(wrong)
    assert no_linear in str(caught.value)
    assert bad_shape in str(caught.value)
    assert "adapter: model.layers.1.self_attn.q_proj.lora_B is missing" in str(caught.value)


def test_set_adapter_replaces_rank_scale_and_dense_weights(make_model: MakeModel, ids_BT: Tensor) -> None:
    trained = perturb(build_student(make_model("llama"), small_config(lora_r=6, lora_alpha=9)))
    expected = {mode: logits_of(trained, ids_BT, mode) for mode in MODES}
    student = perturb(build_student(make_model("llama"), small_config(lora_r=2)), seed=1)
    for mode in MODES:
        logits_of(student, ids_BT, mode)

    adapter = Adapter(trained.lora_tensors(), r=6, alpha=9, meta={})
    student.set_adapter(adapter)

    for mode in MODES:
        assert torch.equal(logits_of(student, ids_BT, mode), expected[mode])
    perturb(student)
    assert torch.equal(logits_of(trained, ids_BT, "student"), expected["student"]), "no shared memory"


def test_build_student_refuses_a_group_that_does_not_divide(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj, got 96; choose one of"):
        build_student(make_model("qwen3"), small_config(group_size=96))
    build_student(make_model("qwen3"), small_config(group_size=96, quant_type="none"))


@pytest.mark.parametrize("quant_type", ["int4", "int4_sym", "bnb_nf4", "bnb_fp4"])
def test_every_quant_type_trains_towards_its_teacher(
    make_model: MakeModel, ids_BT: Tensor, quant_type: str
) -> None:
    student = build_student(make_model("llama"), small_config(quant_type=quant_type))
    teacher = student.hidden(ids_BT, mode="teacher").flatten(0, 1)
    optimiser = torch.optim.AdamW(student.lora_parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        hidden = student.hidden(ids_BT).flatten(0, 1)
        loss = fused_jsd(hidden, student.head(), teacher, student.head("teacher"), beta=0)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_small_memory_keeps_rollout_weights_for_all_tokens_of_a_batch(make_model):
    """Each token is computed in a block of its own within that of the rollouts."""
    student = build_student(make_model("llama"), small_config(base_memory="small"))
    with student.mode("rollout"):
        made = [linear.made for linear in student.linears.values()]
        student.hidden(torch.tensor([[1, 2]]), mode="rollout")
        assert all(linear.made is old for linear, old in zip(student.linears.values(), made, strict=True))
    assert all(linear.made is None for linear in student.linears.values())
