"""The numbers of one row: accuracies, their mean, perplexity, KL and what was recovered, each against ptq.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.results.statistics import (
    NLL_LIMIT,
    SIGNIFICANT,
    Estimate,
    kl_recovered,
    mcnemar_exact,
    mean_and_sd,
    mean_of,
    paired_variance,
    ppl_recovered,
    z_test,
)
from trainer.results import TaskScore, TextScore, VariantResult


@dataclass(frozen=True)
class Score:
    """A number, its error (standard error; in a mean over seeds their deviation), and p of its paired
    difference from ptq: two-sided, None where there is nothing to compare."""

    value: float
    error: float | None = None
    p: float | None = None

    @property
    def differs(self) -> bool | None:
        """Whether it differs from ptq at two-sided 5 %; None when that is not known."""
        return None if self.p is None else self.p < SIGNIFICANT


@dataclass(frozen=True)
class Scores:
    """A row's numbers: accuracies and shares as fractions, KL in nats per token."""

    tasks: Mapping[str, Score] = field(default_factory=dict)
    avg: Score | None = None
    ppl: Score | None = None
    kl: Score | None = None
    kl_recovered: Score | None = None
    ppl_recovered: Score | None = None


def scores(
    one: VariantResult,
    averaged: Sequence[str],
    teacher: VariantResult | None,
    ptq: VariantResult | None,
) -> Scores:
    """The numbers of `one`; compared with `ptq` and, for shares, `teacher`. `avg` is over `averaged`."""
    compared = ptq is not None and one.variant != "ptq"
    text = one.text
    shares = compared and one.variant != "teacher"
    return Scores(
        tasks={task: _task(score, compared) for task, score in one.tasks.items()},
        avg=_average(one, averaged, compared),
        ppl=_ppl(text, compared) if text else None,
        kl=_kl(text, compared) if text else None,
        kl_recovered=_kl_share(text, ptq.text if ptq else None) if shares else None,
        ppl_recovered=_ppl_share(text, teacher.text if teacher else None) if shares else None,
    )


def _task(score: TaskScore, compared: bool) -> Score:
    counts = _discordant(score) if compared else None
    return Score(score.acc, score.stderr, mcnemar_exact(*counts) if counts else None)


def _discordant(score: TaskScore) -> tuple[int, int] | None:
    """(better, worse); None when absent or impossible, for a termination message is never trusted."""
    if score.better is None or score.worse is None or min(score.better, score.worse) < 0:
        return None
    return (score.better, score.worse) if score.better + score.worse <= score.n else None


def _average(one: VariantResult, tasks: Sequence[str], compared: bool) -> Score | None:
    """The unweighted mean over `tasks`; None when one is missing: means of other tasks do not compare."""
    given = [one.tasks[task] for task in tasks if task in one.tasks]
    if not given or len(given) < len(tasks):
        return None
    mean = mean_of([Estimate(score.acc, score.stderr) for score in given])
    counts = [(*counts, score.n) for score in given if (counts := _discordant(score)) and score.n > 0]
    if not compared or len(counts) < len(given):
        return Score(mean.value, mean.se)
    difference = sum((b - c) / n for b, c, n in counts) / len(counts)
    se = math.sqrt(sum(paired_variance(b, c, n) for b, c, n in counts)) / len(counts)
    return Score(mean.value, mean.se, z_test(difference, se))


def _ppl(text: TextScore, compared: bool) -> Score | None:
    if text.nll > NLL_LIMIT:
        return None
    ppl = math.exp(text.nll)
    p = z_test(text.nll_diff, text.nll_diff_se) if compared and text.nll_diff is not None else None
    return Score(ppl, ppl * text.nll_se, p)


def _kl(text: TextScore, compared: bool) -> Score | None:
    if text.kl is None:
        return None
    p = z_test(text.kl_diff, text.kl_diff_se) if compared and text.kl_diff is not None else None
    return Score(text.kl, text.kl_se, p)


def _kl_share(text: TextScore | None, ptq: TextScore | None) -> Score | None:
    if text is None or ptq is None or text.kl is None or ptq.kl is None:
        return None
    share = kl_recovered(Estimate(text.kl, text.kl_se), Estimate(ptq.kl, ptq.kl_se), text.kl_diff_se)
    return Score(*share) if share else None


def _ppl_share(text: TextScore | None, teacher: TextScore | None) -> Score | None:
    if text is None or teacher is None or text.nll_diff is None or teacher.nll_diff is None:
        return None
    share = ppl_recovered(
        Estimate(text.nll_diff, text.nll_diff_se), Estimate(teacher.nll_diff, teacher.nll_diff_se)
    )
    return Score(*share) if share else None


def mean_scores(rows: Sequence[Scores]) -> Scores:
    """Mean and standard deviation over seeds of every number that all rows have."""
    tasks = [task for task in rows[0].tasks if all(task in row.tasks for row in rows)]
    return Scores(
        tasks={task: _over_seeds([row.tasks[task] for row in rows]) for task in tasks},
        avg=_mean(rows, lambda row: row.avg),
        ppl=_mean(rows, lambda row: row.ppl),
        kl=_mean(rows, lambda row: row.kl),
        kl_recovered=_mean(rows, lambda row: row.kl_recovered),
        ppl_recovered=_mean(rows, lambda row: row.ppl_recovered),
    )


def _mean(rows: Sequence[Scores], get: Callable[[Scores], Score | None]) -> Score | None:
    given = [score for row in rows if (score := get(row)) is not None]
    return _over_seeds(given) if len(given) == len(rows) else None


def _over_seeds(given: Sequence[Score]) -> Score:
    return Score(*mean_and_sd(score.value for score in given))
