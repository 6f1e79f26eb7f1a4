"""What llama.cpp calls things: tensors by architecture, the order of rotary rows, the model's numbers."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import MODEL_ARCH, GGUFWriter

from trainer.export.shipped import Shipped

ARCHES = {"llama": MODEL_ARCH.LLAMA, "qwen3": MODEL_ARCH.QWEN3}
"""By Hugging Face's model_type; `rules.ARCHITECTURES` are their names."""


class Names:
    """Names and rows of one model."""

    def __init__(self, shipped: Shipped) -> None:
        self._config = shipped.model.config
        self.arch = ARCHES[self._config.model_type]
        self._map = gguf.get_tensor_name_map(self.arch, self._config.num_hidden_layers)

    def name(self, key: str) -> str:
        """llama.cpp's name of a checkpoint's tensor. Raises ValueError for one that it has none for."""
        found = self._map.get_name(key, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"{key}: GGUF has no such tensor, got {self.arch.name}; use --format bf16")
        return found

    def rows(self, key: str, values: np.ndarray) -> np.ndarray:
        """`values` [out, …] with its rows in llama.cpp's order.

        Its llama rotates neighbours, Hugging Face's the halves of a head: rows of q and k are interleaved.
        """
        heads = self._rotated_heads(key)
        if heads is None:
            return values
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)

    def rows_back(self, key: str, values: np.ndarray) -> np.ndarray:
        """The inverse of `rows`."""
        heads = self._rotated_heads(key)
        if heads is None:
            return values
        order = np.argsort(self.rows(key, np.arange(values.shape[0])))
        return values[order]

    def _rotated_heads(self, key: str) -> int | None:
        if self.arch is not MODEL_ARCH.LLAMA:
            return None
        counts = {
            "q_proj": self._config.num_attention_heads,
            "k_proj": self._config.num_key_value_heads,
        }
        return next((count for part, count in counts.items() if f".{part}" in key), None)


def add_numbers(writer: GGUFWriter, shipped: Shipped, name: str) -> None:
    """General metadata and the model's sizes, as llama.cpp's own converter writes them."""
    config = shipped.model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
