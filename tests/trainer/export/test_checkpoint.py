"""Hugging Face's own loaders give the trained function back: bf16, packed, with PEFT on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.export.checkpoint import pack, unpack
from trainer.layout import EXPORT_ADAPTER
from trainer.linear import Mode
from trainer.student import Student

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@torch.no_grad()
def _logits(student: Student, ids_BT: Tensor, mode: Mode) -> Tensor:
    with student.mode(mode):
        logits: Tensor = student.model(ids_BT).logits
    return logits


def _load(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.parametrize(
    ("kind", "dtype", "fields"),
    [
        ("llama", "bf16", {}),
        ("llama", "fp32", {}),
        ("qwen3", "bf16", {"quantize_lm_head": True}),
        # bitsandbytes takes seconds to import.
        pytest.param("qwen3", "bf16", {"quant_type": "bnb_nf4"}, marks=pytest.mark.slow),
    ],
)
def test_bf16_is_the_merged_function_bit_for_bit(
    make_run: Any,
    export_run: Callable[..., Path],
    ids_BT: Tensor,
    kind: str,
    dtype: str,
    fields: dict[str, Any],
) -> None:
    run, student = make_run(kind, "inside", mixed_precision=dtype, **fields)
    model = _load(export_run(run, "bf16"), DTYPES[dtype])
    for name in student.linears:
        assert torch.equal(model.get_submodule(name).weight, student.weight(name, "merged")), name
    with torch.no_grad():
        assert torch.equal(model(ids_BT).logits, _logits(student, ids_BT, "merged"))


def test_peft_on_bf16_is_the_function_trained_outside(
    make_run: Any, export_run: Callable[..., Path], ids_BT: Tensor
) -> None:
    peft = pytest.importorskip("peft")
    run, student = make_run(mixed_precision="fp32")
    folder = export_run(run, "bf16")
    model = _load(folder, torch.float32)
    with torch.no_grad():
        assert torch.equal(model(ids_BT).logits, _logits(student, ids_BT, "ptq"))
        model = peft.PeftModel.from_pretrained(model, folder / EXPORT_ADAPTER, autocast_adapter_dtype=False)
        trained = _logits(student, ids_BT, "student")
        torch.testing.assert_close(model(ids_BT).logits, trained, rtol=1e-5, atol=1e-5)
    assert (trained - _logits(student, ids_BT, "ptq")).abs().max() > 0.1, "the adapter must matter here"


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("fields", [{"mixed_precision": "bf16"}, {"mixed_precision": "fp32"}], ids=str)
def test_compressed_tensors_is_the_merged_function_bit_for_bit(
    make_run: Any, export_run: Callable[..., Path], ids_BT: Tensor, dequantize: bool, fields: dict[str, Any]
) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    run, student = make_run("qwen3", "inside", quant_type="int4_sym", **fields)
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    model = AutoModelForCausalLM.from_pretrained(
        export_run(run, "compressed-tensors"), dtype=DTYPES[fields["mixed_precision"]], **options
    )
    with torch.no_grad():
        found = model(ids_BT).logits
    assert torch.equal(found, _logits(student, ids_BT, "merged"))
    for name in student.linears:
        assert torch.equal(model.get_submodule(name).weight, student.weight(name, "merged")), name


@pytest.mark.parametrize("width", [8, 64, 44])
def test_codes_are_packed_as_compressed_tensors_packs_them(width: int) -> None:
    codes = torch.randint(-8, 8, (5, width), generator=torch.Generator().manual_seed(width)).to(torch.int8)
    assert torch.equal(unpack(pack(codes), width), codes)
    # By hand: the first code lies in the lowest four bits, moved up by 8.
    word = int(pack(codes)[0, 0]) & 0xFFFFFFFF
    assert [(word >> 4 * i & 15) - 8 for i in range(8)] == codes[0, :8].tolist()
    theirs = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    assert torch.equal(pack(codes), theirs.pack_to_int32(codes, 4))
