"""Which replica works: one holds a Lease, the others wait for it to run out.

The elector that the client ships lets an unreachable API server escape as an exception, and its leader works
on; it measures by the wall clock and waits without limit for an answer. This one says `on_lost` at the
deadline, whatever its request is doing. Leadership keeps two replicas from doing the same work twice; it is
no fence: writes are idempotent, so two leaders are harmless.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import AlreadyExists, Conflict, Forbidden, NotFound
from orchestrator.cluster.kube.paths import LEASES
from orchestrator.errors import ClusterError

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """Seconds: a Lease not renewed for `lease_s` may be taken; its holder gives up after `renew_s` without a
    renewal, before that; `retry_s` between two tries."""

    lease_s: float = 15.0
    renew_s: float = 10.0
    retry_s: float = 2.0
    request_s: float = 5.0


class _Spec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Meta(msgspec.Struct, rename="camel"):
    resource_version: str


class _Lease(msgspec.Struct):
    metadata: _Meta
    spec: _Spec = msgspec.field(default_factory=_Spec)


_LEASE = msgspec.json.Decoder(_Lease)


class Leader:
    """Tries for the Lease `name` from `start` on, and keeps it.

    `on_started` is called once it is held, `on_lost` once it no longer is: the service then exits, for its
    threads may be in the midst of anything. Both come from the elector's threads and must return soon.
    `holder` is who holds it as last seen.
    """

    def __init__(
        self,
        api: Api,
        name: str,
        *,
        on_started: Callable[[], None],
        on_lost: Callable[[], None],
        namespace: str | None = None,
        identity: str | None = None,
        terms: Terms | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.identity = identity or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self.holder: str | None = None
        self._api = api.unlimited()
        self._name = name
        self._namespace = namespace or api.namespace
        self._path = LEASES.path(self._namespace, name)
        self._on_started = on_started
        self._on_lost = on_lost
        self._terms = terms or Terms()
        self._clock = clock
        self._rng = rng or random.Random()
        self._lease: _Lease | None = None
        self._seen: _Spec | None = None
        self._changed_at = clock()
        self._renewed_at = clock()
        self._leading = False
        self._over = False
        self._forbidden = False
        self._state = threading.Condition()
        self._stopping = threading.Event()
        self._elector = threading.Thread(target=self._elect, name="leader", daemon=True)
        self._watchdog = threading.Thread(target=self._watch_deadline, name="leader-deadline", daemon=True)

    def start(self) -> None:
        """Begin to try."""
        self._elector.start()
        self._watchdog.start()

    def stop(self) -> None:
        """Give the Lease up at once, for another to take; call it when the work has ended."""
        self._stopping.set()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until it is given up."""
        self._elector.join(timeout_s)

    @property
    def is_leader(self) -> bool:
        """Whether we hold the Lease now; false at the deadline, also before `on_lost` was called."""
        with self._state:
            return self._leading and self._clock() < self._renewed_at + self._terms.renew_s

    @property
    def alive(self) -> bool:
        """Whether it still tries, or holds."""
        return self._elector.is_alive() and self._watchdog.is_alive()

    def _elect(self) -> None:
        try:
            while not self._stopping.is_set() and not self._over:
                self._try()
                # Replicas that start together should not ask together; a holder renews on time.
                spread = 1.0 if self._leading else 1 + 1.2 * self._rng.random()
                self._stopping.wait(self._terms.retry_s * spread)
            if self._leading:
                self._release()
        finally:
            self._end("the elector failed")

    def _watch_deadline(self) -> None:
        with self._state:
            while not self._over:
                left_s = self._renewed_at + self._terms.renew_s - self._clock()
                if self._leading and left_s <= 0:
                    break
                self._state.wait(left_s if self._leading else None)
        self._end(f"no renewal for {self._terms.renew_s:.0f} s")

    def _try(self) -> None:
        """One try to take or renew; its time is when it began, for that is what the others may have seen."""
        began = self._clock()
        try:
            held = self._take_or_renew()
        except (Conflict, AlreadyExists):
            self._lease = None  # someone wrote it meanwhile: read it next time
            return
        except (ClusterError, msgspec.MsgspecError) as error:
            self._say(error)
            self._lease = None
            return
        self._forbidden = False
        if held:
            self._hold(began)
        elif self._leading:
            self._end(f"held by {self.holder}")

    def _say(self, error: Exception) -> None:
        """Log it; a missing right once until a try is answered, for only a person can give it."""
        if not isinstance(error, Forbidden):
            LOG.warning("lease %s: %s", self._name, error)
        elif not self._forbidden:
            self._forbidden = True
            LOG.error("lease %s: %s; it takes the verbs get, create and patch on leases", self._name, error)

    def _take_or_renew(self) -> bool:
        if self._lease is None or not self._leading:  # a holder knows what it wrote
            try:
                self._saw(_LEASE.decode(self._api.get(self._path, timeout_s=self._terms.request_s)))
            except NotFound:
                self._create()
                return True
        lease = self._lease
        if lease is None or not self._free(lease.spec):
            return False
        self._write(lease, self._wanted(lease.spec))
        return True

    def _create(self) -> None:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": self._wanted(None),
        }
        path = LEASES.path(self._namespace)
        self._saw(_LEASE.decode(self._api.post(path, lease, timeout_s=self._terms.request_s)))

    def _free(self, spec: _Spec) -> bool:
        """Ours, nobody's, or unchanged for longer than its holder promised. No clock but ours is asked."""
        lasts_s = spec.lease_duration_seconds or self._terms.lease_s
        return (
            spec.holder_identity in (self.identity, None, "") or self._clock() >= self._changed_at + lasts_s
        )

    def _wanted(self, before: _Spec | None) -> dict[str, Any]:
        now = _now()
        wanted: dict[str, Any] = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._terms.lease_s)),
            "renewTime": now,
        }
        if before is None or before.holder_identity != self.identity:
            transitions = 0 if before is None else (before.lease_transitions or 0) + 1
            wanted |= {"acquireTime": now, "leaseTransitions": transitions}
        return wanted

    def _write(self, lease: _Lease, spec: dict[str, Any]) -> None:
        body = {"metadata": {"resourceVersion": lease.metadata.resource_version}, "spec": spec}
        answer = self._api.patch(self._path, body, timeout_s=self._terms.request_s)
        self._saw(_LEASE.decode(answer))

    def _saw(self, lease: _Lease) -> None:
        # The time of the answer: a holder's renewal lies before it, so its deadline is over before ours.
        if lease.spec != self._seen:
            self._changed_at = self._clock()
        self._lease, self._seen, self.holder = lease, lease.spec, lease.spec.holder_identity

    def _hold(self, began: float) -> None:
        with self._state:
            if self._over:
                return
            first, self._leading = not self._leading, True
            self._renewed_at = began
            self._state.notify_all()
        if first:
            LOG.info("lease %s: held by us, %s", self._name, self.identity)
            self._on_started()

    def _release(self) -> None:
        with self._state:
            self._leading = False
        try:
            lease = self._lease or _LEASE.decode(self._api.get(self._path, timeout_s=self._terms.request_s))
            if lease.spec.holder_identity == self.identity:
                self._write(lease, {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()})
        except (ClusterError, msgspec.MsgspecError) as error:
            LOG.warning("lease %s: could not be given up, it runs out instead: %s", self._name, error)

    def _end(self, why: str) -> None:
        """Over, once and for all; told when it was ours."""
        with self._state:
            lost = self._leading and not self._over
            self._over, self._leading = True, False
            self._state.notify_all()
        if lost:
            LOG.error("lease %s: lost: %s", self._name, why)
            self._on_lost()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
