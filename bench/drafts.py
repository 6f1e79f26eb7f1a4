"""What drafts verified in one pass could gain at most: python -m bench.drafts [--text FILE.jsonl].

A token is a pure function of its logits here, so a guess at the next ones can be checked exactly by one
forward pass over all of them. Drafts come from the row's own n-grams: the tokens that followed the last
place where its last three (two, one) tokens stood. Told is a bound, that no decoder need reach: tokens
written per pass over the CPU seconds of such a pass, each row going on by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from bench.rollouts import MODEL, questions
from trainer.config import TrainConfig
from trainer.counters import Stream
from trainer.decoder import Batch
from trainer.models import load_model, load_tokenizer
from trainer.noise import Draw, Sampler
from trainer.rollout import Rollouts, stop_tokens
from trainer.student import Student, build_student

LONGEST_MATCH = 3
WIDTHS = (1, 2, 3, 4, 8)
"""Drafted tokens a pass."""


def draft(seen: list[int], width: int) -> list[int]:
    """At most `width` tokens that followed the last earlier place of the longest known ending of `seen`."""
    for length in range(min(LONGEST_MATCH, len(seen) - 1), 0, -1):
        ending = seen[-length:]
        for end in range(len(seen) - 1, length - 1, -1):
            if seen[end - length : end] == ending:
                return seen[end : end + width]
    return []


def passes(prompt: list[int], written: list[int], width: int) -> int:
    """Forward passes in which `written` is decoded with drafts of `width` tokens."""
    done = count = 0
    while done < len(written):
        guess = draft(prompt + written[:done], width)
        right = 0
        while right < len(guess) and written[done : done + right + 1] == guess[: right + 1]:
            right += 1
        done, count = done + right + 1, count + 1
    return count


@torch.no_grad()
def pass_seconds(student: Student, rows: int, tokens: int, repeats: int) -> float:
    """CPU seconds of a forward of [rows, tokens] with the head at all of them, the median."""
    found = []
    with student.mode("rollout"):
        for _ in range(repeats):
            batch = Batch(student, "rollout", rows, tokens)
            batch.begin([tokens] * rows)
            start = time.process_time()
            batch.read([[7] * tokens] * rows, slice(0, rows))
            hidden = torch.zeros(rows * (tokens - 1), student.head("rollout").shape[1])
            linear(hidden, student.head("rollout")) if tokens > 1 else None
            found.append(time.process_time() - start)
    return statistics.median(found)


def prompts_of(text: Path | None, tokenizer: Any, number: int) -> list[list[int]]:
    """Chat turns of the built-in task, or the first 32 tokens of the rows of a text."""
    if text is None:
        return questions(tokenizer, number)
    lines = text.read_text().splitlines()[:number]
    return [tokenizer(json.loads(line)["text"])["input_ids"][:32] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="rows {text: …}; else chat questions")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    config = TrainConfig(model_name=MODEL, mixed_precision="fp32", group_size=64)
    tokenizer = load_tokenizer(MODEL)
    student = build_student(load_model(MODEL, dtype="fp32"), config)
    stops = stop_tokens(student, tokenizer.eos_token_id)
    sampler = Sampler(42, Stream.ROLLOUT, asked.temperature, asked.new, 0, stops)
    prompts = prompts_of(asked.text, tokenizer, asked.batch)
    draws = [Draw(0, row) for row in range(len(prompts))]
    written = Rollouts(student, "native").sample(prompts, draws, sampler, "rollout")
    tokens = sum(map(len, written))
    alone = pass_seconds(student, asked.batch, 1, asked.repeats)
    found = []
    for width in WIDTHS:
        needed = sum(passes(prompt, new, width) for prompt, new in zip(prompts, written, strict=True))
        cost = pass_seconds(student, asked.batch, width + 1, asked.repeats) / alone
        found.append({"width": width, "tokens_per_pass": tokens / needed, "cost": cost})
        sys.stdout.write(
            f"drafts of {width}: {tokens / needed:.2f} tokens a pass that costs {cost:.2f}: "
            f"at most {tokens / needed / cost:.2f} x\n"
        )
    if asked.json:
        asked.json.write_text(json.dumps({"tokens": tokens, "drafts": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
