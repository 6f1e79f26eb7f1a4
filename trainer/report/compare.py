"""A study → its tables: each arm's share recovered, and how it differs from one arm of reference. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.report.arms import Arm, Study
from trainer.report.contrast import (
    Contrast,
    Drawn,
    Interval,
    accuracy,
    contrast,
    estimate,
    holm,
    kl_recovered,
    ppl_recovered,
    verdict,
)
from trainer.results import VariantName
from trainer.scores import Measured
from trainer.statistics import SEED, Floats, resampled_counts

NO_CLAIM = "one seed: no claim"


class Difference(NamedTuple):
    """How an arm differs from the reference: p-values are adjusted for the number of arms (Holm).

    Both are None where an arm has one seed: nobody knows what another would bring, so nothing is claimed.
    """

    found: Contrast
    p: float | None
    p_beyond: float | None
    verdict: str


class Line(NamedTuple):
    """An arm in one form. difference: of the share of KL recovered, None for the reference itself."""

    arm: Arm
    kl: float
    kl_recovered: Interval
    ppl: float
    ppl_recovered: Interval
    accuracy: Interval | None
    difference: Difference | None


class FormTable(NamedTuple):
    """All arms that were measured in one form, in the study's order."""

    form: VariantName
    reference: str
    chosen: bool
    lines: list[Line]


def compare(study: Study, form: VariantName, margin: float, reference: str | None = None) -> FormTable | None:
    """The table of a form; None when no arm has it or no text was measured.

    margin: differences of the share recovered within ± it count as none. reference: the name of an arm, or
    None for the best one (`chosen`: then its lead is somewhat flattered).
    """
    chosen = [arm for arm in study.arms if all(_blocks_of(run.forms.get(form)) for run in arm.runs)]
    teacher, ptq = study.teacher.blocks, study.ptq.blocks
    if not chosen or teacher is None or ptq is None:
        return None
    places, runs = _places(chosen, form)
    tokens = np.asarray(ptq["tokens"])
    counts = resampled_counts(len(tokens))
    kl, nll = (np.asarray([_sums(one, name) for one in runs]) for name in ("kl", "nll"))
    by_kl = kl_recovered(kl, np.asarray(ptq["kl"]), counts)
    by_ppl = ppl_recovered(nll, np.asarray(ptq["nll"]), np.asarray(teacher["nll"]), tokens, counts)
    by_task = _accuracy(runs)
    names = [arm.name for arm in chosen]
    values = [estimate(by_kl, place) for place in places]
    best = max(range(len(names)), key=lambda i: values[i].value)
    against = names.index(reference) if reference in names else best
    differences = _differences(chosen, places, by_kl, against, margin)
    lines = [
        Line(
            arm=arm,
            kl=float(kl[place].sum() / (len(place) * tokens.sum())),
            kl_recovered=value,
            ppl=float(np.exp(nll[place].sum(axis=1) / tokens.sum()).mean()),
            ppl_recovered=estimate(by_ppl, place),
            accuracy=estimate(by_task, place) if by_task else None,
            difference=difference,
        )
        for arm, place, value, difference in zip(chosen, places, values, differences, strict=True)
    ]
    return FormTable(form, names[against], reference not in names, lines)


def _differences(
    arms: Sequence[Arm], places: Sequence[list[int]], drawn: Drawn, against: int, margin: float
) -> list[Difference | None]:
    """One arm after another less the reference's; arms of equal seeds are paired seed by seed."""
    found = {
        i: contrast(drawn, places[i], places[against], margin, paired=arm.seeds == arms[against].seeds)
        for i, arm in enumerate(arms)
        if i != against
    }
    claimed = [i for i in found if min(len(places[i]), len(places[against])) > 1]
    p, p_beyond = holm([found[i].p for i in claimed]), holm([found[i].p_beyond for i in claimed])
    made = {i: Difference(one, None, None, NO_CLAIM) for i, one in found.items()}
    for k, i in enumerate(claimed):
        said = verdict(found[i].difference.value, p[k], p_beyond[k])
        made[i] = Difference(found[i], p[k], p_beyond[k], said)
    return [made.get(i) for i in range(len(arms))]


def _places(arms: Sequence[Arm], form: VariantName) -> tuple[list[list[int]], list[Measured]]:
    """Where each arm's runs stand in the list of all runs, by seed."""
    places, runs = [], list[Measured]()
    for arm in arms:
        places.append(list(range(len(runs), len(runs) + len(arm.runs))))
        runs += [run.forms[form] for run in arm.runs]
    return places, runs


def _blocks_of(one: Measured | None) -> bool:
    return one is not None and one.blocks is not None


def _sums(one: Measured, name: str) -> list[float]:
    assert one.blocks is not None
    return one.blocks[name]


def _accuracy(runs: Sequence[Measured]) -> Drawn | None:
    """Over the tasks that all runs answered alike many items of; None without any."""
    tasks = [task for task in runs[0].answers if all(task in one.answers for one in runs)]
    correct: list[Floats] = []
    for task in tasks:
        items = runs[0].answers[task].keys()
        if all(one.answers[task].keys() == items for one in runs):
            correct.append(np.asarray([[one.answers[task][i] for i in items] for one in runs], np.float64))
    if not correct:
        return None
    counts = [resampled_counts(task.shape[1], seed=SEED + k) for k, task in enumerate(correct)]
    return accuracy(correct, counts)


def gap(study: Study) -> tuple[float, float, float, float]:
    """(KL of ptq, perplexity of teacher, of ptq, tokens measured)."""
    assert study.ptq.blocks is not None
    assert study.teacher.blocks is not None
    tokens = sum(study.ptq.blocks["tokens"])
    teacher, ptq = (math.exp(sum(one["nll"]) / tokens) for one in (study.teacher.blocks, study.ptq.blocks))
    return sum(study.ptq.blocks["kl"]) / tokens, teacher, ptq, tokens
