"""The error tree: OrchError > SweepError (the file's faults), RenderError, ClusterError, NotFound.

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
