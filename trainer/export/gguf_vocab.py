"""The tokenizer in GGUF's terms: copied where the model came from a GGUF file, else byte-level BPE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter, TokenType

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES, _BYTES_SPLIT = ("bytes", False, False), ("bytes", False, True)
PRE: dict[tuple[object, ...], str] = {
    (_BYTES_SPLIT,): "gpt-2",
    (("digits", True), _BYTES_SPLIT): "smollm",
    (("split", rf"{_CONTRACTIONS}|\p{{N}}{_REST}", "Isolated"), _BYTES): "qwen2",
    (("split", rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}{_REST}", "Isolated"), _BYTES): "llama-bpe",
}
"""llama.cpp's name of a pre-tokenizer by its steps. Source: llama.cpp, `llm_tokenizer_bpe`."""
IGNORES_MERGES = {"llama-bpe"}
"""Names with which llama.cpp takes a whole word that is a token without looking at merges."""
SPECIAL_IDS = ("bos", "eos", "unk", "pad")


def add_vocabulary(writer: GGUFWriter, tokenizer: Any, size: int, source: Path | None) -> None:
    """Everything under `tokenizer.`. size: the model's vocabulary, filled up with unused tokens.

    Raises ValueError for a tokenizer that llama.cpp has no name for.
    """
    if source is not None:
        copy_fields(writer, source)
        return
    written = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_name(written))
    tokens, types = token_list(written, size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges(written))
    for kind in SPECIAL_IDS:
        number = getattr(tokenizer, f"{kind}_token_id")
        if number is not None:
            getattr(writer, f"add_{kind}_token_id")(number)
    first = tokenizer("a")["input_ids"][0]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def copy_fields(writer: GGUFWriter, source: Path) -> None:
    """The tokenizer fields of a GGUF file as they are."""
    for key, field in GGUFReader(source).fields.items():
        if key.startswith("tokenizer."):
            kind, *of = field.types
            sub = of[0] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=sub)


def pre_name(written: Mapping[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer in a tokenizer.json. Raises ValueError when it has none."""
    model = written.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte fallback" if model.get("byte_fallback") else model.get("type")
        raise ValueError(
            f"tokenizer: GGUF export knows byte-level BPE, got {kind}; use --format bf16 and "
            "llama.cpp's own converter"
        )
    before = written.get("pre_tokenizer") or {}
    steps = tuple(_step(step) for step in before.get("pretokenizers", [before]))
    name = PRE.get(steps)
    if name is None or (name in IGNORES_MERGES) != bool(model.get("ignore_merges")):
        raise ValueError(
            f"tokenizer: its pre-tokenizer is none of {', '.join(PRE.values())}, got {steps}; "
            "use --format bf16 and llama.cpp's own converter"
        )
    return name


def _step(step: Mapping[str, Any]) -> tuple[object, ...]:
    match step.get("type"):
        case "Split":
            pattern = step["pattern"]
            return "split", pattern.get("Regex", pattern.get("String")), step["behavior"]
        case "Digits":
            return "digits", step["individual_digits"]
        case "ByteLevel":
            return "bytes", step["add_prefix_space"], step.get("use_regex", True)
        case other:
            return (str(other),)


def token_list(written: Mapping[str, Any], size: int) -> tuple[list[str], list[TokenType]]:
    """(tokens, types) by id; ids that the tokenizer leaves free are unused.

    Raises ValueError for ids that the model has no embedding of.
    """
    known = {number: (token, TokenType.NORMAL) for token, number in written["model"]["vocab"].items()}
    for added in written.get("added_tokens", []):
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        known[added["id"]] = (added["content"], kind)
    if known and max(known) >= size:
        raise ValueError(
            f"tokenizer: must have at most the model's {size} tokens, got id {max(known)}; check the model"
        )
    filled = [known.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(size)]
    return [token for token, _ in filled], [kind for _, kind in filled]


def merges(written: Mapping[str, Any]) -> list[str]:
    """Pairs as llama.cpp reads them: two tokens with a space between."""
    return [one if isinstance(one, str) else " ".join(one) for one in written["model"]["merges"]]
