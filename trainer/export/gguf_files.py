"""GGUF for llama.cpp: a model of 4-bit blocks, and the adapter that goes on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from torch import Tensor

from trainer.export.checkpoint import check_adapter, write_adapter
from trainer.export.gguf_blocks import dequantise, offset_error, plain, to_blocks
from trainer.export.gguf_names import Names, add_numbers
from trainer.export.gguf_vocab import add_vocabulary
from trainer.export.shipped import Differs, Format, Shipped, same
from trainer.layout import EXPORT_ADAPTER, GGUF_ADAPTER, GGUF_MODEL

FILE_TYPES = {
    GGMLQuantizationType.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
    GGMLQuantizationType.Q4_1: gguf.LlamaFileType.MOSTLY_Q4_1,
}


def write_model(shipped: Shipped, folder: Path) -> None:
    """model.gguf: metadata, tokenizer and every tensor."""
    names = Names(shipped)
    writer = GGUFWriter(folder / GGUF_MODEL, gguf.MODEL_ARCH_NAMES[names.arch])
    add_numbers(writer, shipped, Path(shipped.config.model_name).stem)
    add_vocabulary(writer, shipped.tokenizer, shipped.model.config.vocab_size, shipped.gguf_source)
    kinds = set()
    for name in shipped.linears:
        key = f"{name}.weight"
        blocks, kind = to_blocks(shipped.quantised(name))
        kinds.add(kind)
        writer.add_tensor(names.name(key), names.rows(key, blocks), raw_dtype=kind)
    for key, tensor in shipped.others():
        values, kind = plain(tensor)
        writer.add_tensor(names.name(key), names.rows(key, values), raw_dtype=kind)
    writer.add_file_type(FILE_TYPES[kinds.pop()])
    _close(writer)


def check_model(shipped: Shipped, folder: Path) -> dict[str, float]:
    """Codes and scales bit for bit, offsets within fp16; raises Differs.

    Returns offset_error_steps, the largest error of a weight in steps of its group.
    """
    names = Names(shipped)
    found = {tensor.name: tensor for tensor in GGUFReader(folder / GGUF_MODEL).tensors}
    worst = 0.0
    for name in shipped.linears:
        key = f"{name}.weight"
        stored = found.pop(names.name(key))
        dense = dequantise(names.rows_back(key, stored.data), stored.tensor_type)
        error, fits = offset_error(dense, shipped.quantised(name))
        if not fits:
            raise Differs(f"{key}: is {error:.3g} steps off in {GGUF_MODEL}; its scales do not fit fp16")
        worst = max(worst, error)
    for key, tensor in shipped.others():
        stored = found.pop(names.name(key))
        values = dequantise(names.rows_back(key, stored.data), stored.tensor_type)
        same(key, values.view(tensor.shape), tensor.float())
    if found:
        raise Differs(f"{next(iter(found))}: was written and is no weight of the model; report it")
    return {"offset_error_steps": worst}


def write_with_adapter(shipped: Shipped, folder: Path) -> None:
    """model.gguf with Q(W), and adapter.gguf with s·B·A in float32; the PEFT files go along."""
    write_model(shipped, folder)
    names = Names(shipped)
    writer = GGUFWriter(folder / GGUF_ADAPTER, gguf.MODEL_ARCH_NAMES[names.arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp divides by the rank it sees, as PEFT does.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, shipped.adapter.alpha)
    for name, part, tensor in _parts(shipped):
        key = f"{name}.weight"
        values = tensor.contiguous().numpy()
        writer.add_tensor(
            f"{names.name(key)}.{part.lower()}", names.rows(key, values) if part == "lora_B" else values
        )
    _close(writer)
    write_adapter(shipped.files, folder / EXPORT_ADAPTER)


def check_with_adapter(shipped: Shipped, folder: Path) -> dict[str, float]:
    """The base as `check_model`, A and B bit for bit; raises Differs."""
    names = Names(shipped)
    reader = GGUFReader(folder / GGUF_ADAPTER)
    alpha = reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents()
    if alpha != torch.tensor(shipped.adapter.alpha, dtype=torch.float32).item():
        raise Differs(f"{GGUF_ADAPTER}: alpha must be {shipped.adapter.alpha}, got {alpha}; report it")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, part, tensor in _parts(shipped):
        key = f"{name}.weight"
        values = found.pop(f"{names.name(key)}.{part.lower()}")
        same(
            name,
            torch.from_numpy((names.rows_back(key, values) if part == "lora_B" else values).copy()),
            tensor,
        )
    if found:
        raise Differs(f"{next(iter(found))}: was written and is no part of the adapter; report it")
    check_adapter(shipped.adapter, folder / EXPORT_ADAPTER)
    return check_model(shipped, folder)


def _parts(shipped: Shipped) -> Iterator[tuple[str, str, Tensor]]:
    """(linear, lora_A or lora_B, float32 values) of the adapter; alpha holds for the rank they have."""
    for key, tensor in shipped.adapter.tensors.items():
        name, _, part = key.rpartition(".")
        yield name, part, tensor


def _close(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


MODEL = Format(write_model, check_model)
WITH_ADAPTER = Format(write_with_adapter, check_with_adapter)
