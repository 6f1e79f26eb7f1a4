"""Settings of all tests (same examples each time, no network, few threads) and tiny real models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Read when the libraries load, so before any test module does.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("orch", deadline=None, derandomize=True)
settings.load_profile("orch")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    # Larger than real: with 0.02 every random model answers alike and nothing could be told apart.
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 258,
}


@pytest.fixture(scope="session")
def built_images() -> Path:
    """The folder of our own images, `controller` and `trainer` as OCI layouts."""
    from tests.cluster.requirements import require_rig
    from tests.images import built

    require_rig()  # what builds a cluster builds images
    return built.folder()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """make_model("qwen3" | "llama", dtype="float32", seed=0, **config fields): a fresh model, in eval."""

    def make(kind: str = "qwen3", dtype: str = "float32", seed: int = 0, **fields: Any) -> PreTrainedModel:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

        kinds: dict[str, Any] = {
            "qwen3": (Qwen3Config, Qwen3ForCausalLM),
            "llama": (LlamaConfig, LlamaForCausalLM),
        }
        config_type, model_type = kinds[kind]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # from_config with dtype keeps the rotary frequencies in float32, as loading does.
            model = model_type._from_config(
                config_type(**{**SHAPE, **fields}), dtype=getattr(torch, dtype), attn_implementation="sdpa"
            )
        model.generation_config.eos_token_id = SHAPE["eos_token_id"]
        result: PreTrainedModel = model.eval()
        return result

    return make


@pytest.fixture
def tiny_qwen3(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Two layers, width 128, vocabulary 320, tied head, float32."""
    return make_model("qwen3")


@pytest.fixture
def tiny_llama(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Like tiny_qwen3, of the family of the quickstart's model."""
    return make_model("llama")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte (0-255), <|endoftext|> 256, <|im_start|> 257, <|im_end|> 258 = eos = pad; ChatML.

    pad = eos on purpose: the quickstart's tokenizer is so, and masks by pad id go wrong with it.
    """
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
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def make_tiny_folder(
    make_model: Callable[..., PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[[Path], Path]:
    """make_tiny_folder(path): a saved tiny llama with its tokenizer and 40 rows of rows.jsonl."""
    import json

    def make(folder: Path) -> Path:
        make_model("llama", max_position_embeddings=2048).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        rows = [
            {"prompt": f"{i} plus {i} is", "completion": " " + "abcdefgh"[: 2 + i % 6]} for i in range(40)
        ]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder

    return make
