"""Bootstrap errors against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.statistics import (
    Blocks,
    accuracy,
    block_bootstrap,
    block_tokens,
    discordant,
    in_blocks,
    paired_bootstrap,
)


@pytest.mark.parametrize(
    ("tokens", "block"),
    [
        pytest.param(1_000_000, 512, id="a long text keeps 512"),
        pytest.param(30 * 512, 512, id="30 blocks are enough"),
        pytest.param(30 * 512 - 1, 256, id="one token fewer halves the block"),
        pytest.param(2047, 64, id="2,048 tokens get blocks of 64"),
        pytest.param(100, 64, id="never below 64"),
    ],
)
def test_block_tokens_shrinks_until_30_blocks(tokens: int, block: int) -> None:
    assert block_tokens(tokens) == block


def test_in_blocks_sums_and_counts_with_a_short_last_block() -> None:
    blocks = in_blocks([1, 2, 3, 4, 5], 2)
    assert blocks.sums.tolist() == [3, 7, 5]
    assert blocks.counts.tolist() == [2, 2, 1]


def test_in_blocks_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="one row of numbers"):
        in_blocks([], 4)


@pytest.mark.parametrize("blocks", [8, 40, 400])
def test_block_bootstrap_of_equal_blocks_is_the_standard_error_of_their_mean(blocks: int) -> None:
    size = 64
    means = np.random.default_rng(blocks).normal(2.0, 0.3, blocks)
    estimate = block_bootstrap(Blocks(means * size, np.full(blocks, float(size))), resamples=20_000)
    assert estimate.mean == pytest.approx(means.mean())
    # 20,000 resamples know a standard deviation to 0.5 %; four of those.
    assert estimate.se == pytest.approx(means.std(ddof=1) / math.sqrt(blocks), rel=0.02)


def test_block_bootstrap_weighs_blocks_by_their_tokens() -> None:
    assert block_bootstrap(in_blocks([1.0, 1.0, 1.0, 5.0], 3)).mean == 2.0


def test_block_bootstrap_repeats_itself() -> None:
    blocks = in_blocks(np.random.default_rng(0).random(1000), 64)
    assert block_bootstrap(blocks) == block_bootstrap(blocks)
    assert block_bootstrap(blocks, seed=1) != block_bootstrap(blocks, seed=2)


def test_block_bootstrap_of_one_block_knows_no_error() -> None:
    assert math.isnan(block_bootstrap(in_blocks([1.0, 2.0], 64)).se)


def test_block_bootstrap_is_wider_than_tokens_alone_when_neighbours_agree() -> None:
    values = np.repeat(np.random.default_rng(3).normal(size=64), 64)
    alone = values.std(ddof=1) / math.sqrt(len(values))
    assert block_bootstrap(in_blocks(values, 64)).se > 4 * alone


def test_paired_bootstrap_cancels_what_both_share() -> None:
    rng = np.random.default_rng(1)
    shared, own = rng.normal(3, 1, 4096), rng.normal(0.1, 0.01, 4096)
    one, other = in_blocks(shared + own, 64), in_blocks(shared, 64)
    difference = paired_bootstrap(one, other, resamples=20_000)
    assert difference.mean == pytest.approx(own.mean())
    block_means = own.reshape(64, 64).mean(axis=1)
    assert difference.se == pytest.approx(block_means.std(ddof=1) / 8, rel=0.03)
    assert difference.se < block_bootstrap(one).se / 20


def test_paired_bootstrap_refuses_texts_cut_otherwise() -> None:
    with pytest.raises(ValueError, match="cut alike"):
        paired_bootstrap(in_blocks(np.ones(128), 64), in_blocks(np.ones(129), 64))


def test_accuracy_is_the_harness_mean_and_standard_error() -> None:
    correct = [1, 0, 1, 1, 0, 1, 0]
    estimate = accuracy(correct)
    assert estimate.mean == pytest.approx(4 / 7)
    assert estimate.se == pytest.approx(math.sqrt(4 / 7 * 3 / 7 / 6))


def test_discordant_counts_each_direction() -> None:
    assert discordant([1, 1, 0, 0, 1], [1, 0, 1, 0, 0]) == (2, 1)
    with pytest.raises(ValueError, match="the same"):
        discordant([1], [1, 0])
