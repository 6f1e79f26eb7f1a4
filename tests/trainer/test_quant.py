"""Q(W) against torchao's public path, torch's own int4 kernel, bitsandbytes, and the rules worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.config import Dtype, QuantType
from trainer.quant import CodesHash, Quantised, check_divides, codes_hash, quantise_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = [torch.bfloat16, torch.float32]


def _weight(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.05 * torch.randn(rows, columns, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 64, 96, 128])
def test_int4_with_float32_parameters_equals_torchaos_qat_bit_for_bit(
    group_size: int, dtype: torch.dtype
) -> None:
    ao, qat = pytest.importorskip("torchao.quantization"), pytest.importorskip("torchao.quantization.qat")
    weight = _weight(256, 1152, dtype)
    model = nn.Sequential(nn.Linear(1152, 256, bias=False)).to(dtype)
    with torch.no_grad():
        model[0].weight.copy_(weight)
    ao.quantize_(model, qat.QATConfig(ao.Int4WeightOnlyConfig(group_size=group_size), step="prepare"))
    expected = model[0].weight_fake_quantizer(model[0].weight).detach()

    ours = quantise_weight(weight, "int4", group_size, "fp32")

    assert ours.weight.dtype == dtype
    assert torch.equal(ours.weight, expected)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_int4_with_bf16_parameters_is_what_torchs_int4_kernel_multiplies_by(group_size: int) -> None:
    rows, columns = 128, 256
    ours = quantise_weight(_weight(rows, columns, torch.bfloat16), "int4", group_size, "bf16")
    assert ours.codes is not None
    assert ours.scale is not None
    assert ours.zero is not None
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu((ours.codes + 8).int(), 1)
    parameters = torch.stack([ours.scale.T, ours.zero.T], dim=-1).contiguous()

    identity = torch.eye(columns, dtype=torch.bfloat16)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu(identity, packed, group_size, parameters)

    assert torch.equal(product.T, ours.weight)


@pytest.mark.parametrize("qparams_dtype", ["bf16", "fp32"])
def test_int4_codes_do_not_depend_on_the_dtype_of_the_parameters(qparams_dtype: Dtype) -> None:
    """Scale and zero point are rounded after the codes are fixed; codes by the rule in float64 numpy."""
    weight = _weight(16, 128)
    groups = weight.numpy().astype(np.float64).reshape(16, 4, 32)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    exact = (groups - low) / ((high - low) / 15)

    ours = quantise_weight(weight, "int4", 32, qparams_dtype)

    assert ours.codes is not None
    codes = ours.codes.numpy().reshape(16, 4, 32).astype(np.float64) + 8
    assert codes.min() == 0
    assert codes.max() == 15
    assert np.abs(codes - exact).max() <= 0.5 + 1e-5, "every weight goes to its nearest code"


def test_int4_sym_takes_codes_by_the_stored_scale() -> None:
    weight = _weight(8, 64, torch.bfloat16)
    ours = quantise_weight(weight, "int4_sym", 32)
    assert ours.codes is not None
    assert ours.scale is not None
    assert ours.zero is None
    groups = weight.double().reshape(8, 2, 32)
    scale = (groups.abs().amax(-1) / 7.5).bfloat16()
    assert torch.equal(ours.scale, scale)
    expected = torch.round(groups / scale.double()[..., None]).clamp(-8, 7)
    assert torch.equal(ours.codes.double().reshape(8, 2, 32), expected)
    values = (expected * scale.double()[..., None]).reshape(8, 64)
    assert torch.equal(ours.weight, values.bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bnb_types_are_bitsandbytes_own(kind: str, dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = _weight(96, 192, dtype)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind)
    expected = functional.dequantize_4bit(codes, state)

    ours = quantise_weight(weight, "bnb_nf4" if kind == "nf4" else "bnb_fp4")

    assert ours.weight.dtype == dtype
    assert torch.equal(ours.weight, expected)
    assert ours.codes is not None
    assert torch.equal(ours.codes, codes)


@pytest.mark.parametrize(
    ("quant_type", "qparams_dtype"),
    [("int4", "fp32"), ("int4", "bf16"), ("bnb_nf4", "bf16"), ("bnb_fp4", "bf16"), ("none", "bf16")],
)
def test_quantising_a_quantised_float32_weight_changes_nothing(
    quant_type: QuantType, qparams_dtype: Dtype
) -> None:
    """Not so for int4_sym (the largest weight may land on code 7, and the scale shrinks)."""
    once = quantise_weight(_weight(32, 256), quant_type, 64, qparams_dtype)
    twice = quantise_weight(once.weight, quant_type, 64, qparams_dtype)
    torch.testing.assert_close(twice.weight, once.weight, rtol=1e-6, atol=1e-7)
    # fp4 has a code for -0 beside that for 0.
    if once.codes is not None and quant_type != "bnb_fp4":
        assert twice.codes is not None
        assert torch.equal(twice.codes, once.codes)


def test_none_is_the_weight_itself_without_a_copy() -> None:
    weight = _weight(4, 8)
    assert quantise_weight(weight, "none").weight.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("quant_type", ["int4", "int4_sym"])
@pytest.mark.parametrize("value", [0.0, 0.5, -0.25])
def test_constant_groups_stay_finite_and_close(quant_type: QuantType, value: float) -> None:
    ours = quantise_weight(torch.full((2, 64), value), quant_type, 32)
    torch.testing.assert_close(ours.weight, torch.full((2, 64), value), rtol=0.08, atol=1e-5)


def test_weight_with_a_bad_width_is_refused() -> None:
    with pytest.raises(ValueError, match="divide the width 96 of weight, got 64; choose one of 8, 12, 16"):
        quantise_weight(_weight(2, 96), "int4", 64)


def test_check_divides_names_layers_and_sizes_that_work_for_all(
    make_model: Callable[..., PreTrainedModel],
) -> None:
    model = make_model("llama", hidden_size=96, head_dim=24, intermediate_size=160)
    check_divides(model, 32)
    with pytest.raises(ValueError, match="group_size") as caught:
        check_divides(model, 64)
    faults = str(caught.value).splitlines()
    assert faults == [
        "group_size: must divide the width 96 of model.layers.0.self_attn.q_proj, got 64; "
        "choose one of 8, 16, 32",
        "group_size: must divide the width 160 of model.layers.0.mlp.down_proj, got 64; "
        "choose one of 8, 16, 32",
    ]


def test_check_divides_looks_at_the_head_only_when_it_is_quantised() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.lm_head = nn.Linear(64, 8), nn.Linear(48, 8)

        def get_output_embeddings(self) -> nn.Linear:
            return self.lm_head

    check_divides(Decoder(), 32)
    with pytest.raises(ValueError, match=r"width 48 of lm_head, got 32; choose one of 8, 16$"):
        check_divides(Decoder(), 32, lm_head=True)


def test_codes_hash_is_pinned_and_tells_bases_apart() -> None:
    """Pinned: a changed hash would disown every adapter trained before."""
    weight = torch.linspace(-1, 1, 256).reshape(2, 128)

    def of(name: str = "q", group: int = 64, kind: QuantType = "int4", qparams: Dtype = "bf16") -> str:
        return codes_hash({name: quantise_weight(weight, kind, group, qparams)})

    assert of() == of()
    assert of()[:16] == "a61085b9e9cf13d6"
    others = [of(name="k"), of(group=32), of(kind="int4_sym"), of(qparams="fp32"), of(kind="none")]
    assert len({of(), *others}) == 6


def test_codes_hash_accumulates_layer_by_layer() -> None:
    layers: dict[str, Quantised] = {
        name: quantise_weight(_weight(4, 64, seed=seed), "int4", 32) for seed, name in enumerate("ab")
    }
    accumulated = CodesHash()
    for name, quantised in layers.items():
        accumulated.add(name, quantised)
    assert accumulated.hexdigest() == codes_hash(layers)
    assert codes_hash({"a": layers["b"], "b": layers["a"]}) != codes_hash(layers)
