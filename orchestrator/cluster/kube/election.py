"""Who leads, from what is seen of a Lease: PURE, so that every fault at every moment is a test.

Why two never lead, whatever becomes of requests and answers, with clocks of one's own that only go forward:
a holder leads for `renew_s` from before it sent the request that took or renewed the Lease; any other may
take it once it has not changed for the Lease's duration, which is longer, from after it was read. It is taken
only at the version that was read, so a renewal in between wins. A request that arrives late is refused for
its version. A holder that is past its deadline is over: no late answer revives it.

What a person does to the Lease by hand (`kubectl delete`, `kubectl edit`) its holder learns at its next try.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: a Lease not renewed for `lease_s` may be taken; its holder gives up after `renew_s` without a
    renewal, before that; `retry_s` between two tries; `request_s` for one request. ValueError when they do
    not grow from `retry_s` over `renew_s` to `lease_s`, which is stored in whole seconds."""

    lease_s: float = 15.0
    renew_s: float = 10.0
    retry_s: float = 2.0
    request_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_s < self.renew_s < self.stored_s:
            raise ValueError(f"terms: must grow from retry_s over renew_s to lease_s, got {self}")

    @property
    def stored_s(self) -> int:
        """What the Lease says."""
        return int(self.lease_s)


class Spec(msgspec.Struct, rename="camel", frozen=True):
    """A Lease's spec."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Meta(msgspec.Struct, rename="camel", frozen=True):
    """Which version of it this is."""

    resource_version: str


class Lease(msgspec.Struct, frozen=True):
    """A Lease as it was read, or as a write was answered."""

    metadata: Meta
    spec: Spec = Spec()


class Read(NamedTuple):
    """Ask for the Lease."""


class Create(NamedTuple):
    """Make it, for there is none."""

    spec: dict[str, Any]


class Write(NamedTuple):
    """Change it, if it is still at this version."""

    version: str
    spec: dict[str, Any]


Call = Read | Create | Write


class Election:
    """What one replica knows. `begin` a try, do the call it names, tell how it went, do the next, until None.

    `now` is always this replica's own clock at that moment; `stamp` makes times for people to read.
    `over`: it leads no more and never will again; `why` says what took it, empty when it was given up.
    """

    def __init__(self, identity: str, terms: Terms, stamp: Callable[[], str] | None = None) -> None:
        self.identity = identity
        self.holder: str | None = None
        self.until: float | None = None
        self.over = False
        self.why = ""
        self._terms = terms
        self._stamp = stamp or _stamp
        self._began = 0.0
        self._lease: Lease | None = None
        self._seen: Lease | None = None
        self._changed_at = 0.0

    def leads(self, now: float) -> bool:
        """Whether the Lease is ours."""
        return not self.over and self.until is not None and now < self.until

    def begin(self, now: float) -> Call | None:
        """The first call of a try. Its time counts, for from then on the others may have seen what it did."""
        if self.over:
            return None
        self._began = now
        if self._lease is not None and self.until is not None:  # a holder knows what it wrote
            return Write(self._lease.metadata.resource_version, self._wanted(self._lease.spec))
        return Read()

    def read(self, lease: Lease | None, now: float) -> Call | None:
        """The Lease was read; None: there is none."""
        if lease is None:
            return None if self.over else Create(self._wanted(None))
        self._saw(lease, now)
        ours = lease.spec.holder_identity == self.identity
        if self.over:
            return self._emptied(lease) if ours and not self.why else None
        if ours or self._free(lease.spec, now):
            return Write(lease.metadata.resource_version, self._wanted(lease.spec))
        if self.until is not None:
            self.end(f"held by {self.holder}")
        return None

    def wrote(self, lease: Lease, now: float) -> None:
        """Our creation or change was taken: what is stored now."""
        self._saw(lease, now)
        until = self._began + self._terms.renew_s
        if self.until is not None and now >= self.until:
            self.expire()
        elif now < until:  # else it came too late to be worth anything: the next try renews it
            self.until = until

    def failed(self) -> None:
        """A call was refused or not answered: whether it was done is not known, so read it next time."""
        self._lease = None

    def end(self, why: str) -> None:
        """Over, for this reason unless it was over before."""
        if not self.over:
            self.over, self.why = True, why

    def expire(self) -> None:
        """Over, for the deadline has passed."""
        self.end(f"no renewal for {self._terms.renew_s:.0f} s")

    def give_up(self) -> Call | None:
        """Over, of our own will; the call that leaves the Lease to the others at once, if it is ours."""
        if self.over:
            return None
        self.over = True
        if self.until is None:
            return None
        return self._emptied(self._lease) if self._lease is not None else Read()

    def _saw(self, lease: Lease, now: float) -> None:
        # Of the answer: a holder's renewal lies before it, so its deadline is over before our patience.
        if lease != self._seen:
            self._changed_at = now
        self._lease = self._seen = lease
        self.holder = lease.spec.holder_identity

    def _free(self, spec: Spec, now: float) -> bool:
        """Nobody's, or unchanged for as long as its holder promised to renew it. No clock but ours counts."""
        lasts_s = spec.lease_duration_seconds or self._terms.lease_s
        return not spec.holder_identity or now >= self._changed_at + lasts_s

    def _wanted(self, before: Spec | None) -> dict[str, Any]:
        now = self._stamp()
        wanted: dict[str, Any] = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._terms.stored_s,
            "renewTime": now,
        }
        if before is None or before.holder_identity != self.identity:
            transitions = 0 if before is None else (before.lease_transitions or 0) + 1
            wanted |= {"acquireTime": now, "leaseTransitions": transitions}
        return wanted

    def _emptied(self, lease: Lease) -> Write:
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._stamp()}
        return Write(lease.metadata.resource_version, spec)


def _stamp() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
