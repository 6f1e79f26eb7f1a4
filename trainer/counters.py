"""Everything random is a counter: a value is a pure function of (seed, stream, step, sample, position).

No state is carried, so batch order, ranks, micro-batches and resumes cannot change a draw.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """One independent sequence of draws for each use."""

    ORDER = 1
    LMBDA = 2
    ROLLOUT = 3
    TEACHER = 4
    PROBE = 5


def generator(
    seed: int, stream: Stream, step: int = 0, sample: int = 0, position: int = 0
) -> np.random.Generator:
    """A Philox-4x64 generator at the counter (position, sample, step, 0) under the key (seed, stream).

    Draws of less than 2^64 blocks never reach the next counter's: the low word counts blocks.
    """
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, position, sample, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def is_on_policy(seed: int, step: int, sample: int, lmbda: float) -> bool:
    """Whether the student writes this sequence itself: true with probability lmbda."""
    return bool(generator(seed, Stream.LMBDA, step, sample).random() < lmbda)


def permutation(seed: int, epoch: int, size: int, block: int = 0) -> NDArray[np.int64]:
    """The order of `size` items in an epoch, or in one block of it."""
    return generator(seed, Stream.ORDER, step=epoch, sample=block).permutation(size)


def gumbel(
    seed: int, stream: Stream, step: int, sample: int, position: int, size: int
) -> NDArray[np.float32]:
    """Standard Gumbel noise [size], float32: the argmax of logits / T + noise is a sample of softmax."""
    draws = generator(seed, stream, step, sample, position).standard_exponential(size, dtype=np.float32)
    # A draw of exactly 0 (2^-24 likely each) would be an infinite Gumbel and so always win.
    np.maximum(draws, np.float32(1e-30), out=draws)
    np.log(draws, out=draws)
    return np.negative(draws, out=draws)
