"""The fused loss against full logits with autograd and TRL's chunked divergence: python bench/losses.py.

Each figure is the median ratio of paired runs, loss and gradient of the student's hidden states together;
`--json FILE` keeps all seconds. Shapes: --rows N --vocabulary V --width H; --dtype bf16 | fp32; --beta B.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from trainer.losses import fused_jsd, generalized_jsd

Case = tuple[Tensor, Tensor, Tensor, Tensor]


def fused(case: Case, beta: float) -> Tensor:
    return fused_jsd(*case, beta=beta)


def full(case: Case, beta: float) -> Tensor:
    hidden_NH, head_VH, teacher_NH, teacher_VH = case
    return generalized_jsd(hidden_NH @ head_VH.T, teacher_NH @ teacher_VH.T, beta).sum()


def trl(case: Case, beta: float) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    hidden_NH, head_VH, teacher_NH, teacher_VH = case
    losses: Tensor
    losses, _ = ChunkedDivergenceFunction.apply(
        hidden_NH, head_VH, None, teacher_NH, teacher_VH, None, beta, 1.0
    )
    return losses.sum()


def seconds(way: Callable[[Case, float], Tensor], case: Case, beta: float) -> float:
    case[0].grad = None
    start = time.perf_counter()
    way(case, beta).backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--without", nargs="*", choices=["full", "trl"], default=[])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    dtype = torch.bfloat16 if asked.dtype == "bf16" else torch.float32
    drawn = torch.Generator().manual_seed(0)
    shapes = [(asked.rows, asked.width), (asked.vocabulary, asked.width)] * 2
    student, head, teacher, teacher_head = (
        (torch.randn(shape, generator=drawn) / 5).to(dtype) for shape in shapes
    )
    case = (student.requires_grad_(), head, teacher, teacher_head)
    ways = {"fused": fused, "full": full, "trl": trl}
    ways = {name: way for name, way in ways.items() if name not in asked.without}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.pairs):
        for name, way in ways.items():
            found[name].append(seconds(way, case, asked.beta))
    for name, times in found.items():
        ratios = [other / ours for other, ours in zip(times, found["fused"], strict=True)]
        sys.stdout.write(
            f"{name}: {statistics.median(times):.2f} s, {statistics.median(ratios):.2f} × fused "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {asked.pairs} pairs)\n"
        )
    if asked.json:
        about = {key: value for key, value in vars(asked).items() if key != "json"}
        asked.json.write_text(json.dumps({**about, "threads": torch.get_num_threads(), "seconds": found}))


if __name__ == "__main__":
    main()
