"""Which notices the webhook has still to take: PURE. They are stored with the status that brings them.

So whoever dies between storing and posting loses none: the next controller posts what is still owed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.cluster.base import Event
from orchestrator.profile import Notify

OWED_MOST = 8
"""More than this of one sweep at once are not kept: the oldest goes."""
OWED_TEXT = 1000
"""Characters of a notice's message that are kept."""
OWED_FOR_S = 86400.0
"""A notice that has been tried, and that nobody has taken for so long, is given up."""


class Owed(BaseModel):
    """A notice that the webhook has not taken yet: that the sweep `ended` or `halted`; owed `since` then."""

    moment: str
    reason: str
    message: str = ""
    since: str = ""

    model_config = ConfigDict(frozen=True)

    @property
    def mark(self) -> tuple[str, str, str]:
        """What tells it from other notices of its sweep."""
        return self.moment, self.reason, self.since

    @classmethod
    def of(cls, value: Any) -> Owed | None:
        """As it is stored; None for what is none."""
        try:
            return cls.model_validate(value)
        except ValidationError:
            return None


def owing(
    before: Sequence[Owed],
    events: Iterable[Event],
    notify: Notify | None,
    gone: Collection[Owed],
    now: float,
) -> list[Owed]:
    """What is owed once its status is stored: what was `before`, and what is new, but for what is `gone`.

    Nothing without a webhook, and no moment that it is not to be told of. `now` (Unix seconds) makes a halt
    that comes back another notice than the first.
    """
    wanted = notify.on if notify else []
    since = datetime.fromtimestamp(now, UTC).isoformat().replace("+00:00", "Z")
    fresh = (
        Owed(moment=one.moment, reason=one.reason, message=one.message[:OWED_TEXT], since=since)
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
