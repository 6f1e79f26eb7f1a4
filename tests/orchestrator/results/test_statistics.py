import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.results.statistics import (
    Estimate,
    covariance,
    kl_recovered,
    mcnemar_exact,
    mean_and_sd,
    mean_of,
    paired_variance,
    ppl_recovered,
    within_noise,
    z_test,
)


def _brute(better: int, worse: int) -> float:
    """Adds the probabilities of every split at least as uneven, by Pascal's triangle."""
    n = better + worse
    row = [1]
    for _ in range(n):
        row = [1, *(a + b for a, b in itertools.pairwise(row)), 1]
    far = abs(2 * better - n)
    return float(Fraction(sum(ways for k, ways in enumerate(row) if abs(2 * k - n) >= far), 2**n))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_exact_equals_the_sum_over_all_splits(better: int, worse: int) -> None:
    assert mcnemar_exact(better, worse) == pytest.approx(_brute(better, worse), rel=1e-12)


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        pytest.param(0, 0, 1.0, id="nothing differs"),
        pytest.param(5, 5, 1.0, id="an even split"),
        pytest.param(0, 5, 2 / 32, id="five of five is not enough"),
        pytest.param(6, 0, 2 / 64, id="six of six is"),
        pytest.param(1, 9, 22 / 1024, id="nine of ten"),
    ],
)
def test_mcnemar_exact_of_small_counts(better: int, worse: int, p: float) -> None:
    assert mcnemar_exact(better, worse) == pytest.approx(p, rel=1e-15)


@pytest.mark.parametrize(
    ("better", "worse"), [(499, 501), (480, 620), (1000, 1), (7000, 7042), (6800, 7242), (20_000, 21_000)]
)
def test_mcnemar_exact_of_big_counts_equals_scipy(better: int, worse: int) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    expected = scipy_stats.binomtest(better, better + worse, 0.5).pvalue
    assert mcnemar_exact(better, worse) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_exact_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1 and 3"):
        mcnemar_exact(-1, 3)


@pytest.mark.parametrize(
    ("difference", "se", "p"),
    [
        pytest.param(0.0, 1.0, 1.0, id="no difference"),
        pytest.param(-1.959964, 1.0, 0.05, id="the 5 % point, either sign"),
        pytest.param(2.575829, 1.0, 0.01, id="the 1 % point"),
        pytest.param(0.0, 0.0, 1.0, id="equal without error"),
        pytest.param(0.1, 0.0, 0.0, id="unequal without error"),
        pytest.param(0.1, None, None, id="unknown error"),
        pytest.param(0.1, math.nan, None, id="the error of a single block"),
    ],
)
def test_z_test_is_two_sided(difference: float, se: float | None, p: float | None) -> None:
    assert z_test(difference, se) == (None if p is None else pytest.approx(p, abs=1e-7))


def test_paired_variance_is_the_variance_of_the_items_differences() -> None:
    differences = [1] * 7 + [-1] * 3 + [0] * 90
    mean = sum(differences) / 100
    by_hand = sum((d - mean) ** 2 for d in differences) / 100 / 100
    assert paired_variance(7, 3, 100) == pytest.approx(by_hand, rel=1e-12)


def test_mean_of_adds_errors_in_quadrature() -> None:
    assert mean_of([Estimate(0.5, 0.03), Estimate(0.7, 0.04)]) == pytest.approx((0.6, 0.025))


def test_mean_of_has_no_error_when_one_is_missing() -> None:
    assert mean_of([Estimate(0.5, 0.03), Estimate(0.7)]) == Estimate(0.6, None)


def test_mean_and_sd_divides_by_one_less() -> None:
    assert mean_and_sd([1.0, 2.0, 4.5]) == pytest.approx((2.5, math.sqrt((2.25 + 0.25 + 4) / 2)))
    assert mean_and_sd([1.0]) == (1.0, None)


def test_covariance_comes_from_the_error_of_the_difference() -> None:
    # a = x + y, b = x - y with var x = 4 and var y = 1: cov(a, b) = 3, var(a - b) = var(2 y) = 4
    assert covariance(math.sqrt(5), math.sqrt(5), 2.0) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("difference", "se", "noise"),
    [(1.9, 1.0, True), (2.0, 1.0, False), (-2.0, 1.0, False), (9.0, None, True)],
)
def test_within_noise_at_five_percent(difference: float, se: float | None, noise: bool) -> None:
    assert within_noise(difference, se) is noise


def test_kl_recovered_by_hand() -> None:
    share = kl_recovered(Estimate(0.02, 0.002), Estimate(0.10, 0.005), 0.004)
    assert share is not None
    assert share.value == pytest.approx(0.8)
    # cov = (4e-6 + 25e-6 - 16e-6) / 2 = 6.5e-6; var = (4e-6 + 0.04 * 25e-6 - 0.4 * 6.5e-6) / 0.01 = 2.4e-4
    assert share.se == pytest.approx(math.sqrt(2.4e-4))


def test_kl_recovered_is_negative_when_worse_than_ptq() -> None:
    share = kl_recovered(Estimate(0.15), Estimate(0.10, 0.005), None)
    assert share == pytest.approx((-0.5, None))


@pytest.mark.parametrize(
    "ptq",
    [
        pytest.param(Estimate(0.0019, 0.001), id="the gap is 1.9 standard errors"),
        pytest.param(Estimate(0.0, 0.0), id="there is no gap"),
        pytest.param(Estimate(0.1, None), id="the gap has no error"),
    ],
)
def test_kl_recovered_is_not_told_within_noise(ptq: Estimate) -> None:
    assert kl_recovered(Estimate(0.001, 0.001), ptq, 0.001) is None


def test_ppl_recovered_equals_the_share_of_perplexities() -> None:
    teacher, ptq, one = 10.0, 12.0, 10.5
    share = ppl_recovered(Estimate(math.log(one / ptq), 0.001), Estimate(math.log(teacher / ptq), 0.002))
    assert share is not None
    assert share.value == pytest.approx((ptq - one) / (ptq - teacher))


def test_ppl_recovered_has_the_error_of_its_numerical_derivatives() -> None:
    def share(d: float, t: float) -> float:
        return (1 - math.exp(d)) / (1 - math.exp(t))

    d, t, se_d, se_t, h = -0.05, -0.08, 0.003, 0.004, 1e-6
    by_d = (share(d + h, t) - share(d - h, t)) / (2 * h) * se_d
    by_t = (share(d, t + h) - share(d, t - h)) / (2 * h) * se_t
    got = ppl_recovered(Estimate(d, se_d), Estimate(t, se_t))
    assert got is not None
    assert got.se == pytest.approx(math.hypot(by_d, by_t), rel=1e-6)


@pytest.mark.parametrize(
    ("difference", "teacher"),
    [
        pytest.param(Estimate(-0.01, 0.001), Estimate(-0.0019, 0.001), id="the gap is 1.9 standard errors"),
        pytest.param(Estimate(-0.01, 0.001), Estimate(-0.1, None), id="the gap has no error"),
        pytest.param(Estimate(800.0, 1.0), Estimate(-0.1, 0.01), id="a perplexity beyond all floats"),
    ],
)
def test_ppl_recovered_is_not_told(difference: Estimate, teacher: Estimate) -> None:
    assert ppl_recovered(difference, teacher) is None
