"""Models of real sizes with random weights, made once: time and memory do not ask what a model knows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """Widths of a Qwen3-shaped model with a tied head."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


SIZES = {
    "tiny": Size(64, 128, 2, 4, 2, 16, 320),
    "gemma3-270m-sized": Size(640, 2048, 18, 4, 1, 256, 262_144),
    "qwen3-0.6b": Size(1024, 3072, 28, 16, 8, 128, 151_936),
    "qwen3-1.7b": Size(2048, 6144, 28, 16, 8, 128, 151_936),
    "qwen3-4b": Size(2560, 9728, 36, 32, 8, 128, 151_936),
}


def make(name: str, folder: Path, dtype: str, device: str) -> Path:
    """The folder of a model of this size, weights and tokenizer; made if it is not there."""
    path = folder / f"{name}-{dtype}"
    if (path / "tokenizer.json").is_file():  # written last
        return path
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    size = SIZES[name]
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=258,
        pad_token_id=258,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = Qwen3ForCausalLM._from_config(
            config, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        )
    model.generation_config.eos_token_id = 258
    model.save_pretrained(path)
    _bytes_tokenizer().save_pretrained(path)
    return path


def _bytes_tokenizer() -> Any:
    """One token a byte, three special ones, ChatML."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    )


if __name__ == "__main__":
    made = make(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    sys.stdout.write(f"{made}\n")
