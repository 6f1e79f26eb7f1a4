"""What can be said from counts and standard errors: paired tests, combined errors, shares of a gap.

Pure. Items and text blocks are the units; differences are paired, since every variant answers the same items
and reads the same blocks.
"""

from __future__ import annotations

import math
import statistics as stdlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

SIGNIFICANT = 0.05
"""Two-sided level of every test."""
_EXACT_INTEGERS = 1000
"""Above this many discordant items the tail is summed in logarithms."""


NLL_LIMIT = 700.0
"""Nats per token above which a perplexity is no float any more."""


class Estimate(NamedTuple):
    """A number and its standard error, None when it has none."""

    value: float
    se: float | None = None


def mcnemar_exact(better: int, worse: int) -> float:
    """Two-sided p-value in [0, 1] that items decided differently fall to either side like a fair coin.

    2 · P(Binomial(better + worse, ½) ≤ min), at most 1 (McNemar 1947, exact form). No such item: 1.
    Raises ValueError for negative counts.
    """
    if better < 0 or worse < 0:
        raise ValueError(f"discordant counts: must not be negative, got {better} and {worse}")
    n, fewer = better + worse, min(better, worse)
    if n > _EXACT_INTEGERS:
        return min(1.0, 2 * _lower_tail(n, fewer))
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def _lower_tail(n: int, k: int) -> float:
    """P(Binomial(n, ½) ≤ k) for k ≤ n/2, from the largest term down until nothing is added."""
    log_first = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
    total, ratio = 0.0, 1.0
    while k >= 0 and ratio > total * 1e-17:
        total += ratio
        ratio *= k / (n - k + 1)
        k -= 1
    return math.exp(log_first) * total


def z_test(difference: float, se: float | None) -> float | None:
    """Two-sided p-value of a difference with standard error `se`; None when there is no usable error.

    An error of 0 decides: equal is p = 1, anything else p = 0.
    """
    if se is None or not (math.isfinite(se) and math.isfinite(difference)):
        return None
    if se <= 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference) / se / math.sqrt(2))


def paired_variance(better: int, worse: int, n: int) -> float:
    """Variance of the difference in accuracy over `n` shared items: (b + c − (b − c)²/n) / n²."""
    return max(0.0, (better + worse - (better - worse) ** 2 / n) / float(n * n))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Unweighted mean of independent estimates; its error is None when one of theirs is missing."""
    value = sum(one.value for one in estimates) / len(estimates)
    errors = [one.se for one in estimates]
    known = [se for se in errors if se is not None]
    se = math.sqrt(sum(se**2 for se in known)) / len(estimates) if len(known) == len(errors) else None
    return Estimate(value, se)


def mean_and_sd(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n − 1) over seeds; one value has no deviation."""
    known = list(values)
    return stdlib.fmean(known), stdlib.stdev(known) if len(known) > 1 else None


def covariance(se_a: float, se_b: float, se_difference: float) -> float:
    """cov(a, b) from the standard errors of a, b and a − b: (var a + var b − var(a − b)) / 2."""
    return (se_a**2 + se_b**2 - se_difference**2) / 2


def within_noise(difference: float, se: float | None) -> bool:
    """Whether a difference is not told from 0 at two-sided 5 %; without an error nothing is told."""
    p = z_test(difference, se)
    return p is None or p >= SIGNIFICANT


def kl_recovered(kl: Estimate, ptq: Estimate, difference_se: float | None) -> Estimate | None:
    """1 − KL/KL_ptq: 1 is the teacher, 0 is ptq, negative is worse than ptq. KL in nats per token.

    None when KL_ptq, which is the whole gap, is within noise of 0. The error is by the delta method, with the
    covariance of both KLs from the error of their paired difference.
    """
    if ptq.value <= 0 or within_noise(ptq.value, ptq.se):
        return None
    ratio = kl.value / ptq.value
    if kl.se is None or ptq.se is None or difference_se is None:
        return Estimate(1 - ratio)
    shared = covariance(kl.se, ptq.se, difference_se)
    variance = (kl.se**2 + (ratio * ptq.se) ** 2 - 2 * ratio * shared) / ptq.value**2
    return Estimate(1 - ratio, math.sqrt(max(0.0, variance)))


def ppl_recovered(nll_difference: Estimate, teacher_difference: Estimate) -> Estimate | None:
    """(ppl_ptq − ppl) / (ppl_ptq − ppl_teacher), from both paired differences of nll to ptq.

    Divided by ppl_ptq it is (1 − exp d) / (1 − exp d_teacher), so that only the differences matter. None when
    the teacher's difference is within noise, or a perplexity is beyond all floats. The error is by the delta
    method and takes the two differences as independent: both are to the same ptq and move together, so it is
    rather too large than too small.
    """
    if within_noise(teacher_difference.value, teacher_difference.se):
        return None
    if max(nll_difference.value, teacher_difference.value) > NLL_LIMIT:
        return None
    gap = -math.expm1(teacher_difference.value)
    share = -math.expm1(nll_difference.value) / gap
    if nll_difference.se is None or teacher_difference.se is None:
        return Estimate(share)
    by_variant = math.exp(nll_difference.value) / gap * nll_difference.se
    by_teacher = share * math.exp(teacher_difference.value) / gap * teacher_difference.se
    return Estimate(share, math.hypot(by_variant, by_teacher))
