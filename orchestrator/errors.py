"""The error tree: OrchError > UserError > SweepError, NotFound; RenderError; ClusterError.

ClusterError > JobRefused, StatusRefused.

A message is `<place>: <what is wrong>, got <value>; <what to do>`, one fault a line.
"""

from __future__ import annotations


class OrchError(Exception):
    """A fault to show without a trace."""

    exit_code = 1


class UserError(OrchError):
    """The user's fault: exit 2."""

    exit_code = 2


class SweepError(UserError):
    """All faults of a sweep file at once."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class NotFoundError(UserError):
    """A sweep, run or Job that does not exist."""


class RenderError(OrchError):
    """A manifest that breaks the Job schema or the policy."""


class ClusterError(OrchError):
    """The place where Jobs run refused or failed."""


class JobRefusedError(ClusterError):
    """A Job that its place does not take: a quota, an admission rule. `reason` is a CamelCase word for it."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StatusRefusedError(ClusterError):
    """A status that its place does not take, and will not take later: too long, or of fields it lacks."""
