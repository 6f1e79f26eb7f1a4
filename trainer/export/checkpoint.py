"""Formats in Hugging Face's layout: the dequantised model, the packed one, and the adapter beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.adapter import Adapter, load_adapter
from trainer.durable import write_json
from trainer.export.shipped import Differs, Format, Shipped, same
from trainer.layout import EXPORT_ADAPTER

BITS, CODES_A_WORD = 4, 8
MODEL_CONFIG = "config.json"


def write_adapter(files: Mapping[str, bytes], folder: Path) -> None:
    """The adapter's PEFT files, byte for byte."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def check_adapter(adapter: Adapter, folder: Path) -> None:
    """Raises Differs unless PEFT files there hold the adapter."""
    found = load_adapter(folder)
    if (found.scale, found.tensors.keys()) != (adapter.scale, adapter.tensors.keys()):
        raise Differs(f"{folder}: holds another adapter; export again")
    for name, tensor in adapter.tensors.items():
        same(name, found.tensors[name], tensor)


def write_bf16(shipped: Shipped, folder: Path) -> None:
    """The model with its quantised weights dequantised, in the dtype it was trained in."""
    dense = {f"{name}.weight": shipped.weight(name) for name in shipped.linears}
    _save(shipped, folder, {**dict(shipped.others()), **dense})


def check_bf16(shipped: Shipped, folder: Path) -> dict[str, float]:
    """Every tensor bit for bit; raises Differs."""
    found = _check_others(shipped, folder)
    for name in shipped.linears:
        same(name, found.pop(f"{name}.weight", None), shipped.weight(name))
    _nothing_left(found)
    return {}


def write_packed(shipped: Shipped, folder: Path) -> None:
    """compressed-tensors' `pack-quantized`, W4A16: codes in int32 words, scales, shapes."""
    tensors = dict(shipped.others())
    for name in shipped.linears:
        quantised = shipped.quantised(name)
        assert quantised.codes is not None
        assert quantised.scale is not None
        tensors[f"{name}.weight_packed"] = pack(quantised.codes)
        # bf16 by their rule; in the model's dtype their product with a code is rounded as in training.
        tensors[f"{name}.weight_scale"] = quantised.scale.to(shipped.weight(name).dtype)
        tensors[f"{name}.weight_shape"] = torch.tensor(quantised.codes.shape, dtype=torch.int64)
    _save(shipped, folder, tensors)
    config = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
    write_json(folder / MODEL_CONFIG, {**config, "quantization_config": _quantization_config(shipped)})


def check_packed(shipped: Shipped, folder: Path) -> dict[str, float]:
    """Every weight bit for bit after unpacking; raises Differs."""
    found = _check_others(shipped, folder)
    for name in shipped.linears:
        packed, scale, shape = (found.pop(f"{name}.weight_{part}") for part in ("packed", "scale", "shape"))
        codes = unpack(packed, int(shape[1])).unflatten(1, (scale.shape[1], -1))
        dense = (codes.to(scale.dtype) * scale[..., None]).flatten(1)
        same(name, dense, shipped.weight(name))
    _nothing_left(found)
    return {}


def pack(codes: Tensor) -> Tensor:
    """int4 codes [out, in], -8 to 7, as int32 words [out, ⌈in / 8⌉]: code + 8, the first in the lowest bits.

    Source: compressed-tensors, `pack_to_int32`.
    """
    shifts = torch.arange(0, 32, BITS, device=codes.device)
    padding = -codes.shape[1] % CODES_A_WORD
    unsigned = torch.nn.functional.pad(codes.to(torch.int64) + 8, (0, padding))
    words = (unsigned.unflatten(1, (-1, CODES_A_WORD)) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack(words: Tensor, width: int) -> Tensor:
    """The int8 codes [out, width] in packed words."""
    shifts = torch.arange(0, 32, BITS, device=words.device)
    codes = (words.to(torch.int64)[..., None] >> shifts & 15) - 8
    return codes.flatten(1)[:, :width].to(torch.int8)


def _quantization_config(shipped: Shipped) -> dict[str, Any]:
    weights = {
        "num_bits": BITS,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": shipped.config.group_size,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": [] if shipped.quantised_head else [shipped.head],
    }


def _save(shipped: Shipped, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Weights, model config, generation config, tokenizer; for order outside the adapter in its folder."""
    model = shipped.model
    text = model.config.get_text_config()
    before = text.tie_word_embeddings
    text.tie_word_embeddings = shipped.tied
    try:
        model.save_pretrained(folder, state_dict={name: one.contiguous() for name, one in tensors.items()})
    finally:
        text.tie_word_embeddings = before
    shipped.tokenizer.save_pretrained(folder)
    if shipped.order == "outside":
        # In a folder of its own: beside config.json transformers would put it on unasked.
        write_adapter(shipped.files, folder / EXPORT_ADAPTER)


def _check_others(shipped: Shipped, folder: Path) -> dict[str, Tensor]:
    """What is left of the stored tensors after all that is not quantised was compared."""
    found = dict(_stored(folder))
    for name, tensor in shipped.others():
        same(name, found.pop(name, None), tensor)
    if shipped.order == "outside":
        check_adapter(shipped.adapter, folder / EXPORT_ADAPTER)
    return found


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                yield name, opened.get_tensor(name)


def _nothing_left(found: dict[str, Tensor]) -> None:
    if found:
        raise Differs(f"{next(iter(found))}: was written and is no weight of the model; report it")


BF16 = Format(write_bf16, check_bf16)
PACKED = Format(write_packed, check_packed)
