"""Arms compared over seeds and blocks of text: intervals, Holm's correction, equivalence. Pure.

Two things make a difference between two ways of training uncertain: the text it was measured on, and the
seeds it was trained with. Every run reads the same blocks, so blocks are resampled together and what they
share cancels (paired); seeds are few, so theirs is a t interval. Both variances are added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from trainer.statistics import Floats

LEVEL = 0.05
"""Two-sided level of intervals and of every decision."""


class Drawn(NamedTuple):
    """A score of each run: value [runs], and on each resampling of what was measured [resamples, runs].

    units: how many blocks (or items) were resampled.
    """

    value: Floats
    resampled: Floats
    units: int


class Interval(NamedTuple):
    """An estimate, its standard error, degrees of freedom, and 95 % interval."""

    value: float
    se: float
    df: float
    low: float
    high: float


class Contrast(NamedTuple):
    """One arm less another: the interval, p that there is no difference, p that it is beyond the margin."""

    difference: Interval
    p: float
    p_beyond: float


def kl_recovered(kl_RB: Floats, ptq_B: Floats, counts: Floats) -> Drawn:
    """1 − KL/KL_ptq of each run, from sums of KL over blocks: 1 is the teacher, 0 is ptq."""
    value = 1 - kl_RB.sum(axis=1) / ptq_B.sum()
    return Drawn(value, 1 - (counts @ kl_RB.T) / (counts @ ptq_B)[:, None], len(ptq_B))


def ppl_recovered(
    nll_RB: Floats, ptq_B: Floats, teacher_B: Floats, tokens_B: Floats, counts: Floats
) -> Drawn:
    """(ppl_ptq − ppl) / (ppl_ptq − ppl_teacher) of each run, from sums of nll over blocks."""

    def share(nll: Floats, ptq: Floats, teacher: Floats) -> Floats:
        return (np.exp(ptq) - np.exp(nll)) / (np.exp(ptq) - np.exp(teacher))

    tokens = counts @ tokens_B
    value = share(
        nll_RB.sum(axis=1) / tokens_B.sum(), *(x.sum() / tokens_B.sum() for x in (ptq_B, teacher_B))
    )
    drawn = share(
        (counts @ nll_RB.T) / tokens[:, None], *((counts @ x / tokens)[:, None] for x in (ptq_B, teacher_B))
    )
    return Drawn(value, drawn, len(tokens_B))


def accuracy(correct: Sequence[Floats], counts: Sequence[Floats]) -> Drawn:
    """Unweighted mean over tasks of the share of right answers; correct: [runs, items] of each task."""
    value = np.mean([task.mean(axis=1) for task in correct], axis=0)
    drawn = np.mean(
        [count @ task.T / task.shape[1] for task, count in zip(correct, counts, strict=True)], axis=0
    )
    return Drawn(value, drawn, sum(task.shape[1] for task in correct))


def estimate(drawn: Drawn, runs: Sequence[int]) -> Interval:
    """The mean over runs (the seeds of an arm); with one run its interval knows the blocks alone."""
    chosen = list(runs)
    return _interval(drawn.value[chosen], drawn.resampled[:, chosen].mean(axis=1), drawn.units)


def contrast(
    drawn: Drawn, one: Sequence[int], other: Sequence[int], margin: float, *, paired: bool
) -> Contrast:
    """The mean of runs `one` less that of `other`.

    paired: both arms have the same seeds in the same order, so that differences are taken seed by seed. Else
    their variances over seeds are added. margin: a difference within ± it counts as none (equivalence, by
    two one-sided tests: Schuirmann 1987).
    """
    a, b = list(one), list(other)
    means = drawn.resampled[:, a].mean(axis=1) - drawn.resampled[:, b].mean(axis=1)
    if paired:
        found = _interval(drawn.value[a] - drawn.value[b], means, drawn.units)
    else:
        found = _welch(drawn.value[a], drawn.value[b], means, drawn.units)
    if found.se == 0:
        return Contrast(found, float(found.value == 0), float(abs(found.value) >= margin))
    p = 2 * float(stats.t.sf(abs(found.value) / found.se, found.df))
    beyond = float(stats.t.sf((margin - abs(found.value)) / found.se, found.df))
    return Contrast(found, p, beyond)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, step down (Holm 1979): reject those below the level."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


def verdict(difference: float, p: float, p_beyond: float) -> str:
    """What two adjusted p-values allow to say of an arm: better or worse, alike, or nothing."""
    alike = p_beyond < LEVEL
    if p < LEVEL:
        return ("better" if difference > 0 else "worse") + (", within the margin" if alike else "")
    return "alike" if alike else "undecided"


def _interval(values: Floats, means: Floats, units: int) -> Interval:
    return _with_seeds(float(values.mean()), means, units, [values])


def _welch(one: Floats, other: Floats, means: Floats, units: int) -> Interval:
    return _with_seeds(float(one.mean() - other.mean()), means, units, [one, other])


def _with_seeds(value: float, means: Floats, units: int, samples: Sequence[Floats]) -> Interval:
    """Variance over blocks and over the seeds of each sample; degrees of freedom by Satterthwaite (1946)."""
    parts = [(float(means.var()) * units / (units - 1), units - 1)] if units > 1 else []
    parts += [(float(s.var(ddof=1)) / len(s), len(s) - 1) for s in samples if len(s) > 1]
    variance = sum(part for part, _ in parts)
    below = sum(part**2 / df for part, df in parts)
    df = variance**2 / below if below else math.inf
    se = math.sqrt(variance)
    half = float(stats.t.ppf(1 - LEVEL / 2, df)) * se
    return Interval(value, se, df, value - half, value + half)
