"""Which format holds which function: the whole table, and what a refusal says."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.config import TrainConfig
from trainer.export.rules import architecture_refusal, possible, refusal

OUTSIDE, INSIDE = "outside", "inside"


@pytest.mark.parametrize(
    ("quant_type", "order", "able"),
    [
        ("int4", OUTSIDE, ["peft", "bf16", "gguf-lora"]),
        ("int4", INSIDE, ["bf16", "gguf"]),
        ("int4_sym", OUTSIDE, ["peft", "bf16", "compressed-tensors", "gguf-lora"]),
        ("int4_sym", INSIDE, ["bf16", "compressed-tensors", "gguf"]),
        ("bnb_nf4", OUTSIDE, ["peft", "bf16"]),
        ("bnb_nf4", INSIDE, ["bf16"]),
        ("bnb_fp4", OUTSIDE, ["peft", "bf16"]),
        ("none", OUTSIDE, ["peft", "bf16"]),
        ("none", INSIDE, ["bf16"]),
    ],
)
def test_the_table_of_formats(quant_type: Any, order: Any, able: list[str]) -> None:
    assert possible(TrainConfig(quant_type=quant_type), order) == able


@pytest.mark.parametrize(
    ("kind", "order", "fields", "says"),
    [
        ("compressed-tensors", OUTSIDE, {}, "train with --quant-type int4_sym, or use --format"),
        (
            "gguf",
            OUTSIDE,
            {},
            "got lora_order outside (Q(W + ΔW) is another function); use --format gguf-lora",
        ),
        ("gguf-lora", INSIDE, {}, "use --format gguf"),
        ("peft", INSIDE, {"quant_type": "int4_sym"}, "use --format bf16, compressed-tensors, gguf"),
        ("gguf-lora", OUTSIDE, {"quant_type": "bnb_nf4"}, "quant_type bnb_nf4"),
        ("gguf-lora", OUTSIDE, {"group_size": 48}, "got group_size 48 (blocks have 32 weights)"),
        ("gguf", INSIDE, {"qparams_dtype": "fp32"}, "train with --qparams-dtype bf16"),
        (
            "compressed-tensors",
            INSIDE,
            {"quant_type": "int4_sym", "qparams_dtype": "fp32"},
            "train with --qparams-dtype bf16",
        ),
    ],
)
def test_a_refusal_says_why_and_what_to_do(kind: Any, order: Any, fields: dict[str, Any], says: str) -> None:
    told = refusal(kind, TrainConfig(**fields), order)
    assert told is not None
    assert told.startswith(f"format: {kind} cannot hold this run, got ")
    assert says in told


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, None),
        ({"model_type": "gemma3_text"}, "architecture gemma3_text"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}, "rotary scaling llama3"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "sliding windows"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act gelu"),
    ],
)
def test_architectures_of_gguf(config: dict[str, Any], says: str | None) -> None:
    told = architecture_refusal(config)
    assert (told is None) if says is None else (told is not None and says in told and "bf16" in told)
