"""Which format can hold which trained function, decided from settings alone. Torch-free.

Order outside trains Q(W)x + s·B(Ax): base and adapter ship apart, for Q(W + s·B·A) is another function.
Order inside trains Q(W + s·B·A)x: one file ships, and the adapter alone says nothing about any base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from trainer.config import ExportFormat, LoraOrder, ModelSettings

FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
GGML_BLOCK = 32
"""Weights that share a scale in Q4_0 and Q4_1; a group must be whole blocks."""
ARCHITECTURES = ("llama", "qwen3")
"""Model types whose tensors and metadata the GGUF writer knows."""


def refusal(kind: ExportFormat, base: ModelSettings, order: LoraOrder) -> str | None:
    """Why `kind` cannot hold what was trained, with what can be done; None when it can."""
    fault = _fault(kind, base, order)
    if fault is None:
        return None
    wrong, remedy = fault
    # The sister format first: it is for the same program.
    able = sorted(possible(base, order), key=lambda other: other[:4] != kind[:4])
    told = f"{remedy}, or use" if remedy else "use"
    return f"format: {kind} cannot hold this run, got {wrong}; {told} --format {', '.join(able)}"


def possible(base: ModelSettings, order: LoraOrder) -> list[ExportFormat]:
    """The formats that hold what was trained; bf16 always does."""
    return [kind for kind in FORMATS if _fault(kind, base, order) is None]


def _fault(kind: ExportFormat, base: ModelSettings, order: LoraOrder) -> tuple[str, str] | None:
    """(what is wrong, how to train so that it would fit), for one format."""
    match kind:
        case "bf16":
            return None
        case "peft":
            if order == "inside":
                return "lora_order inside (the adapter alone is not the function trained)", ""
            return None
        case "compressed-tensors":
            return _not_symmetric(base) or _float_scales(base)
        case "gguf" | "gguf-lora":
            wanted = "inside" if kind == "gguf" else "outside"
            if order != wanted:
                what = "Q(W + ΔW) is another function" if order == "outside" else "base and adapter are one"
                return f"lora_order {order} ({what})", ""
            return _not_int4(base) or _not_blocks(base) or _float_scales(base)


def _not_symmetric(base: ModelSettings) -> tuple[str, str] | None:
    if base.quant_type == "int4_sym":
        return None
    why = " (its zero points are no integers)" if base.quant_type == "int4" else ""
    return f"quant_type {base.quant_type}{why}", "train with --quant-type int4_sym"


def _not_int4(base: ModelSettings) -> tuple[str, str] | None:
    if base.quant_type in ("int4", "int4_sym"):
        return None
    return f"quant_type {base.quant_type} (no block type has its codes)", "train with --quant-type int4"


def _not_blocks(base: ModelSettings) -> tuple[str, str] | None:
    if base.group_size % GGML_BLOCK == 0:
        return None
    return f"group_size {base.group_size} (blocks have {GGML_BLOCK} weights)", (
        f"train with --group-size {GGML_BLOCK}"
    )


def _float_scales(base: ModelSettings) -> tuple[str, str] | None:
    if base.qparams_dtype == "bf16":
        return None
    return "qparams_dtype fp32 (its scales have 16 bits)", "train with --qparams-dtype bf16"


def architecture_refusal(config: Mapping[str, Any]) -> str | None:
    """Why the GGUF writer does not know a model, from its config.json; None when it does."""
    kind = config.get("model_type")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else rope
    wrong = None
    if kind not in ARCHITECTURES:
        wrong = f"architecture {kind}; it knows {' and '.join(ARCHITECTURES)}"
    elif rope_type != "default":
        wrong = f"rotary scaling {rope_type}; it knows plain rotary positions"
    elif config.get("use_sliding_window"):
        wrong = "sliding windows; it knows full attention"
    elif config.get("hidden_act", "silu") != "silu":
        wrong = f"hidden_act {config['hidden_act']}; it knows silu"
    return (
        f"format: the GGUF writer does not know this model, got {wrong}; use --format bf16" if wrong else None
    )
