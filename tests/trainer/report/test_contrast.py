"""Intervals and tests against scipy's own, closed forms, and simulated studies whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from trainer.report.contrast import (
    Drawn,
    accuracy,
    contrast,
    estimate,
    holm,
    kl_recovered,
    ppl_recovered,
    verdict,
)
from trainer.statistics import Blocks, Floats, paired_bootstrap, resampled_counts

SEEDS = np.array([0.61, 0.64, 0.66, 0.58, 0.60, 0.63])


def without_blocks(values: Floats) -> Drawn:
    """Scores that no resampling changes: what is left is the seeds alone."""
    return Drawn(values, np.tile(values, (10, 1)), 32)


def test_an_arm_of_several_seeds_has_students_interval() -> None:
    found = estimate(without_blocks(SEEDS), range(6))
    low, high = stats.ttest_1samp(SEEDS, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.df == pytest.approx(5)


@pytest.mark.parametrize("paired", [True, False])
def test_arms_that_differ_by_seeds_alone_are_tested_as_scipy_does(paired: bool) -> None:
    one, other = SEEDS[:3], SEEDS[3:]
    found = contrast(without_blocks(SEEDS), [0, 1, 2], [3, 4, 5], 0.05, paired=paired)
    test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    assert found.p == pytest.approx(test.pvalue)
    low, high = test.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))


def test_equivalence_is_the_larger_of_two_one_sided_tests() -> None:
    one, other = SEEDS[:3], SEEDS[3:]
    found = contrast(without_blocks(SEEDS), [0, 1, 2], [3, 4, 5], 0.1, paired=True)
    sided = [
        stats.ttest_rel(one, other + 0.1, alternative="less").pvalue,
        stats.ttest_rel(one, other - 0.1, alternative="greater").pvalue,
    ]
    assert found.p_beyond == pytest.approx(max(sided))


def test_one_seed_knows_the_blocks_alone_and_they_are_paired() -> None:
    rng = np.random.default_rng(0)
    hard = rng.gamma(2.0, 50.0, 60)  # what all runs find hard
    kl = np.array([hard * 0.4 + rng.normal(0, 2, 60), hard * 0.5 + rng.normal(0, 2, 60)])
    ptq, tokens = np.full(60, 100.0), np.full(60, 128.0)
    drawn = kl_recovered(kl, ptq, resampled_counts(60))
    found = contrast(drawn, [0], [1], 0.01, paired=True).difference
    by_blocks = paired_bootstrap(Blocks(kl[1], tokens), Blocks(kl[0], tokens))
    assert found.value == pytest.approx(by_blocks.mean * 128 / 100)
    assert found.se == pytest.approx(by_blocks.se * 128 / 100, rel=0.1)
    alone = estimate(drawn, [0])
    assert alone.se > 2 * found.se


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Text and seeds both vary: an interval of one of them alone would hold it far less often."""
    rng = np.random.default_rng(1)
    counts = resampled_counts(40, 300)
    held = 0
    for _ in range(300):
        text = rng.gamma(4.0, 25.0, 40)
        effect = np.array([0.02] * 3 + [0.0] * 3) + rng.normal(0, 0.01, 6)
        share = (
            0.6 + effect[:, None] + rng.normal(0, 0.05, (1, 40)) * np.array([1, 1, 1, -1, -1, -1])[:, None]
        )
        drawn = kl_recovered(text * (1 - share), text, counts)
        found = contrast(drawn, [0, 1, 2], [3, 4, 5], 0.05, paired=False).difference
        held += found.low <= 0.02 <= found.high
    assert 0.9 <= held / 300 <= 0.99


def test_teacher_and_ptq_are_the_ends_of_both_shares_in_every_resampling() -> None:
    rng = np.random.default_rng(2)
    ptq, teacher, tokens = rng.gamma(2, 50, 30), rng.gamma(2, 20, 30), np.full(30, 64.0)
    counts = resampled_counts(30, 50)
    by_kl = kl_recovered(np.array([ptq, np.zeros(30)]), ptq, counts)
    by_ppl = ppl_recovered(np.array([ptq, teacher]), ptq, teacher, tokens, counts)
    for found in (by_kl, by_ppl):
        assert found.value == pytest.approx([0, 1])
        assert np.allclose(found.resampled, [0, 1])


def test_accuracy_is_the_mean_over_tasks_of_any_size() -> None:
    right = [np.array([[1.0, 1, 0, 0]]), np.array([[1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])]
    counts = [resampled_counts(task.shape[1], 4000, seed=k) for k, task in enumerate(right)]
    found = estimate(accuracy(right, counts), [0])
    assert found.value == pytest.approx((0.5 + 0.1) / 2)
    assert found.se == pytest.approx(np.sqrt(0.25 / 4 + 0.09 / 10) / 2, rel=0.06)


def test_counts_are_seeded_and_draw_as_many_blocks_as_there_are() -> None:
    counts = resampled_counts(33, 100)
    assert (counts.sum(axis=1) == 33).all()
    assert (counts == resampled_counts(33, 100)).all()


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([], []),
        ([0.02], [0.02]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.01, 0.01], [0.02, 0.02]),
    ],
)
def test_holm_steps_down_and_never_falls(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted)


@pytest.mark.parametrize(
    ("difference", "p", "beyond", "said"),
    [
        (0.1, 0.01, 0.9, "better"),
        (-0.1, 0.01, 0.9, "worse"),
        (0.01, 0.01, 0.01, "better, within the margin"),
        (0.01, 0.5, 0.01, "alike"),
        (0.01, 0.5, 0.5, "undecided"),
        (0.0, 1.0, 0.0, "alike"),
    ],
)
def test_verdict_says_only_what_the_tests_allow(
    difference: float, p: float, beyond: float, said: str
) -> None:
    assert verdict(difference, p, beyond) == said


def test_equal_arms_differ_by_nothing() -> None:
    found = contrast(without_blocks(np.full(4, 0.5)), [0, 1], [2, 3], 0.01, paired=True)
    assert (found.difference.value, found.p, found.p_beyond) == (0, 1.0, 0.0)
