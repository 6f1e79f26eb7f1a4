"""Do the student's rollouts end by themselves? Counted, and a run is refused whose first ones do not.

A rollout that is cut off at max_new_tokens is trained on as it is. A few may be; where most are, the model,
its template or the limit is wrong, and a night would go into sequences that nobody meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.flags import UsageError

if TYPE_CHECKING:
    from trainer.config import TrainConfig
    from trainer.data import Item
    from trainer.session import Session

FIRST = 64
"""A run is judged once it has so many rollouts, on all of the steps up to then."""


JUDGED = ("closed", "closed_ended", "fitting", "fitting_cut")


class Endings(NamedTuple):
    """Counts of rollouts; `ended` ones wrote a stop token.

    closed: those of rows whose own completion ends with a stop token, closed_ended of them ended. fitting:
    those of closed rows whose own completion fits into max_new_tokens, fitting_cut of them did not end.
    """

    rollouts: int = 0
    ended: int = 0
    closed: int = 0
    closed_ended: int = 0
    fitting: int = 0
    fitting_cut: int = 0

    def line(self) -> dict[str, Any]:
        """The part of a step's line of metrics; `of_line` reads it back."""
        share = {"rollouts_cut_share": self.cut_share} if self.rollouts else {}
        return {
            "on_policy": self.rollouts,
            "rollouts_ended": self.ended,
            **share,
            **{f"rollouts_{name}": getattr(self, name) for name in JUDGED},
        }

    @property
    def cut_share(self) -> float:
        """Share of the rollouts that were cut off at max_new_tokens; there must be some."""
        return round(1 - self.ended / self.rollouts, 4)


def of_line(line: Mapping[str, Any]) -> Endings:
    """What a step's line of metrics says; an older trainer's does not count whose rows end."""
    return Endings(
        line["on_policy"], line["rollouts_ended"], *(line.get(f"rollouts_{name}", 0) for name in JUDGED)
    )


def total(counts: Iterable[Endings]) -> Endings:
    """All of them together."""
    return Endings(*map(sum, zip(Endings(), *counts, strict=True)))


def count(items: Sequence[Item], stops: frozenset[int], max_new_tokens: int) -> Endings:
    """The counts of a step's sequences, those that the data wrote left out."""
    own = [item for item in items if item.on_policy]
    closed = [item for item in own if item.example.completion[-1] in stops]
    fitting = [item for item in closed if len(item.example.completion) <= max_new_tokens]

    def ended(some: Sequence[Item]) -> int:
        return sum(1 for item in some if item.completion and item.completion[-1] in stops)

    return Endings(
        rollouts=len(own),
        ended=ended(own),
        closed=len(closed),
        closed_ended=ended(closed),
        fitting=len(fitting),
        fitting_cut=len(fitting) - ended(fitting),
    )


def fault(found: Endings, config: TrainConfig) -> str | None:
    """What is wrong with a run's first rollouts, with what to do about it; None where they may be.

    Rows that do not end by themselves (windows of text) say nothing about how rollouts should.
    """
    if found.closed_ended == 0 and _most(found.closed, found.closed):
        got = f"got 0 of {found.closed} that did where the data's own completion does"
    elif _most(found.fitting_cut, found.fitting):
        got = (
            f"got {found.fitting_cut} of {found.fitting} cut off at {config.max_new_tokens} tokens where the "
            "data's own completion is no longer than that"
        )
    else:
        return None
    least = "lower --min-new-tokens, " if config.min_new_tokens >= config.max_new_tokens else ""
    return (
        f"rollouts: must end with a stop token, {got} (the first {found.rollouts} rollouts); {least}raise "
        "--max-new-tokens, check that chat template and stop tokens belong to this model, or train on cut "
        "rollouts with --allow-cut-rollouts"
    )


def _most(cut: int, rows: int) -> bool:
    """Whether more than half are cut beyond chance: three standard errors of a coin above it.

    That needs ten rows, so a handful proves nothing.
    """
    return cut > rows / 2 + 1.5 * math.sqrt(rows)


def take(session: Session, line: Mapping[str, Any]) -> None:
    """Take in a step's line of metrics; UsageError at the step with which a run's first rollouts are refused.

    Line and decision are the same in every process, and after a resume.
    """
    before = session.endings.rollouts
    session.endings = total([session.endings, of_line(line)])
    if session.config.allow_cut_rollouts or not before < FIRST <= session.endings.rollouts:
        return
    if said := fault(session.endings, session.config):
        raise UsageError(said)
