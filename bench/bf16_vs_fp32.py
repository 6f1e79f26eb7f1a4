"""How much slower a bf16 matrix product is than float32 on this CPU: python bench/bf16_vs_fp32.py.

Shapes of the quickstart: 640 rows against SmolLM2-135M's MLP weights. Prints the median of paired ratios.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

ROWS, WIDTH, INNER, LAYERS, PAIRS = 640, 576, 1536, 30, 5


def seconds(dtype: torch.dtype) -> float:
    """Seconds for one pass over all layers' weights."""
    x = torch.randn(ROWS, WIDTH).to(dtype)
    weights = [torch.randn(INNER, WIDTH).to(dtype) for _ in range(LAYERS)]
    torch.nn.functional.linear(x, weights[0])
    start = time.perf_counter()
    for weight in weights:
        torch.nn.functional.linear(x, weight)
    return time.perf_counter() - start


def main() -> None:
    ratios = [seconds(torch.bfloat16) / seconds(torch.float32) for _ in range(PAIRS)]
    sys.stdout.write(
        f"bf16 / fp32: {statistics.median(ratios):.2f} (median of {PAIRS} pairs, {min(ratios):.2f} to "
        f"{max(ratios):.2f}; {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})\n"
    )


if __name__ == "__main__":
    main()
