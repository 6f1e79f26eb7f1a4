"""Standard errors by bootstrap over blocks, plain and paired; seeded, numpy alone.

Neighbouring tokens share their context, so blocks are resampled and not tokens (Künsch 1989, fixed blocks).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
SEED = 20240229
MIN_BLOCKS = 30
"""Fewer blocks make a standard error too rough to compare with."""
MIN_BLOCK_TOKENS = 64

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    se: float


class Blocks(NamedTuple):
    """Sums of per-token values over consecutive blocks [blocks], and how many tokens each block holds."""

    sums: Floats
    counts: Floats


def block_tokens(tokens: int, block: int = 512) -> int:
    """The largest block size ≤ `block` that gives `MIN_BLOCKS` blocks, halved down to `MIN_BLOCK_TOKENS`."""
    while block > MIN_BLOCK_TOKENS and tokens // block < MIN_BLOCKS:
        block //= 2
    return block


def in_blocks(values: ArrayLike, block: int) -> Blocks:
    """Per-token values [tokens] summed over blocks of `block`; the last block may be shorter."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"blocks: values must be one row of numbers, got shape {array.shape}")
    starts = np.arange(0, len(array), block)
    counts = np.diff(np.append(starts, len(array))).astype(np.float64)
    return Blocks(np.add.reduceat(array, starts), counts)


def resampled_counts(units: int, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """How often each of `units` blocks is drawn in each resampling [resamples, units]; rows sum to units."""
    drawn = np.random.default_rng(seed).integers(0, units, size=(resamples, units))
    return np.stack([np.bincount(row, minlength=units) for row in drawn]).astype(np.float64)


def block_bootstrap(blocks: Blocks, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Mean per token and its standard error, from resampled whole blocks.

    The spread is scaled by √(n / (n - 1)), as a sample variance is, so that few blocks do not flatter. One
    block has no spread to tell: its standard error is nan.
    """
    sums, counts = (np.asarray(part, dtype=np.float64) for part in blocks)
    n = len(sums)
    mean = float(sums.sum() / counts.sum())
    if n < 2:
        return Estimate(mean, float("nan"))
    times = resampled_counts(n, resamples, seed)
    means = (times @ sums) / (times @ counts)
    return Estimate(mean, float(means.std() * np.sqrt(n / (n - 1))))


def paired_bootstrap(one: Blocks, other: Blocks, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Mean of `one` minus `other` per token; both are resampled by the same blocks, so shared noise cancels.

    Raises ValueError when the two were not cut alike.
    """
    if not np.array_equal(one.counts, other.counts):
        raise ValueError(
            f"paired blocks: both must be cut alike, got {len(one.counts)} and {len(other.counts)} blocks; "
            "measure both by one protocol"
        )
    return block_bootstrap(Blocks(one.sums - other.sums, one.counts), resamples, seed)


def accuracy(correct: ArrayLike) -> Estimate:
    """Share of right answers and its binomial standard error √(p(1 - p) / (n - 1)), as lm-eval reports it."""
    array = np.asarray(correct, dtype=np.float64)
    if len(array) < 2:
        return Estimate(float(array.mean()), 0.0)
    return Estimate(float(array.mean()), float(array.std(ddof=1) / np.sqrt(len(array))))


def discordant(correct: ArrayLike, reference: ArrayLike) -> tuple[int, int]:
    """(better, worse): items only `correct` has right, items only `reference` has right; the same items."""
    one, other = np.asarray(correct, dtype=bool), np.asarray(reference, dtype=bool)
    if one.shape != other.shape:
        raise ValueError(f"paired items: both must answer the same, got {one.shape} and {other.shape}")
    return int((one & ~other).sum()), int((~one & other).sum())
