"""Which notices the webhook has still to take: PURE. They are stored with the status that brings them.

So whoever dies between storing and posting loses none: the next controller posts what is still owed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from orchestrator.cluster.base import Event
from orchestrator.controller.news import MOMENTS
from orchestrator.controller.status import Owed, SweepStatus
from orchestrator.profile import Notify

OWED_MOST = 8
"""More than this of one sweep at once are not kept: the oldest goes."""
OWED_TEXT = 1000
"""Characters of a notice's message that are kept."""
OWED_FOR_S = 86400.0
"""A notice that has been tried, and that nobody has taken for so long, is given up."""


def owing(
    before: Sequence[Owed],
    events: Iterable[Event],
    status: SweepStatus,
    notify: Notify | None,
    gone: Collection[Owed],
) -> list[Owed]:
    """What is owed once `status` is stored: what was `before`, and what is new, but for what is `gone`.

    Nothing without a webhook, and no moment that it is not to be told of.
    """
    wanted = notify.on if notify else []
    fresh = (
        Owed(moment=one.moment, reason=one.reason, message=one.message[:OWED_TEXT], since=_since(one, status))
        for one in events
        if one.moment
    )
    kept = {one.mark: one for one in (*before, *fresh) if one.moment in wanted}
    for one in gone:
        kept.pop(one.mark, None)
    return list(kept.values())[-OWED_MOST:]


def too_old(one: Owed, now: float) -> bool:
    """Whether it is to be given up at `now` (Unix seconds), as is one without a date."""
    try:
        return now - datetime.fromisoformat(one.since).timestamp() > OWED_FOR_S
    except ValueError:  # whatever another version wrote, no turn fails by it
        return True


def _since(event: Event, status: SweepStatus) -> str:
    """Since when the condition of an event's moment holds."""
    held = (
        one for one in status.conditions if one.status == "True" and MOMENTS.get(one.type) == event.moment
    )
    return next((one.lastTransitionTime or "" for one in held), "")
