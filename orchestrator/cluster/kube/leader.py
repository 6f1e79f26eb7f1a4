"""Which replica works: one holds a Lease, the others wait for it to run out.

The elector that the client ships lets an unreachable API server escape as an exception, and its leader works
on; it measures by the wall clock and waits without limit for an answer. Here `election` decides, one thread
asks, and another says `on_lost` at the deadline, whatever the first one's request is doing.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from orchestrator.cluster.kube.client import Api, Pace
from orchestrator.cluster.kube.election import Call, Create, Election, Lease, Read, Terms, Write
from orchestrator.cluster.kube.errors import AlreadyExists, Conflict, Forbidden, NotFound
from orchestrator.cluster.kube.paths import LEASES
from orchestrator.errors import ClusterError

LOG = logging.getLogger(__name__)
_LEASE = msgspec.json.Decoder(Lease)


class Leader:
    """Tries for the Lease `name` from `start` on, and keeps it.

    `on_started` is called once it is held, `on_lost` once it no longer is, or cannot be tried for: the
    service then exits, for its threads may be in the midst of anything. Both come from threads of the elector
    and must return soon. `api` has no limiter: a Lease must not wait behind a thousand Jobs.
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
        self._api = api
        self._name = name
        self._namespace = namespace or api.namespace
        self._path = LEASES.path(self._namespace, name)
        self._on_started = on_started
        self._on_lost = on_lost
        self._terms = terms or Terms()
        self._clock = clock
        self._rng = rng or random.Random()
        self._election = Election(self.identity, self._terms)
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

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until it is given up or lost; whether that came about within the time."""
        self._elector.join(timeout_s)
        return not self._elector.is_alive()

    @property
    def holder(self) -> str | None:
        """Who holds it, as last seen."""
        return self._election.holder

    @property
    def is_leader(self) -> bool:
        """Whether we hold the Lease now; false at the deadline, also before `on_lost` was called."""
        with self._state:
            return self._election.leads(self._clock())

    def _elect(self) -> None:
        try:
            while not self._stopping.is_set() and not self._election.over:
                self._try()
                # Replicas that start together should not ask together; a holder renews on time.
                spread = 1.0 if self._election.until is not None else 1 + 1.2 * self._rng.random()
                self._stopping.wait(self._terms.retry_s * spread)
            with self._state:
                call = self._election.give_up()
            if self._do(call):
                LOG.warning("lease %s: could not be given up, it runs out instead", self._name)
        finally:
            with self._state:
                self._election.end("the elector failed")
                self._state.notify_all()

    def _watch_deadline(self) -> None:
        with self._state:
            while not self._election.over:
                until = self._election.until
                left_s = None if until is None else until - self._clock()
                if left_s is not None and left_s <= 0:
                    self._election.expire()
                else:
                    self._state.wait(left_s)
        if self._election.why:
            LOG.error("lease %s: lost: %s", self._name, self._election.why)
            self._on_lost()

    def _try(self) -> None:
        """One try to take or renew."""
        with self._state:
            held = self._election.until is not None
            call = self._election.begin(self._clock())
        failed = self._do(call)
        self._forbidden &= failed
        if not held and self.is_leader:
            LOG.info("lease %s: held by us, %s", self._name, self.identity)
            self._on_started()

    def _do(self, call: Call | None) -> bool:
        """Do this and what follows from it; whether a call failed."""
        try:
            while call is not None:
                lease = self._ask(call)
                with self._state:
                    call = self._told(call, lease)
                    self._state.notify_all()
            return False
        except (ClusterError, msgspec.MsgspecError) as error:
            with self._state:
                self._election.failed()
            self._say(error)
            return True

    def _told(self, call: Call, lease: Lease | None) -> Call | None:
        if isinstance(call, Read):
            return self._election.read(lease, self._clock())
        if lease is not None:
            self._election.wrote(lease, self._clock())
        return None

    def _ask(self, call: Call) -> Lease | None:
        """The Lease as it is answered; None when there is none."""
        timeout_s = self._terms.request_s
        match call:
            case Read():
                try:
                    return _LEASE.decode(self._api.get(self._path, timeout_s=timeout_s))
                except NotFound:
                    return None
            case Create(spec):
                body: dict[str, Any] = {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": self._name},
                    "spec": spec,
                }
                path = LEASES.path(self._namespace)
                return _LEASE.decode(self._api.post(path, body, timeout_s=timeout_s))
            case Write(version, spec):
                body = {"metadata": {"resourceVersion": version}, "spec": spec}
                return _LEASE.decode(self._api.patch(self._path, body, timeout_s=timeout_s))

    def _say(self, error: Exception) -> None:
        """Log it; a missing right once until a try is answered, for only a person can give it."""
        if isinstance(error, Conflict | AlreadyExists):
            return  # someone wrote it meanwhile: it is read next time
        if not isinstance(error, Forbidden):
            LOG.warning("lease %s: %s", self._name, error)
        elif not self._forbidden:
            self._forbidden = True
            LOG.error("lease %s: %s; it takes the verbs get, create and patch on leases", self._name, error)


class WhileLeading:
    """The pace of a leader's writes: none begins once it leads no more, though its thread was not ended yet.

    So after the deadline at most one request of each writing thread is still under way, the one that began
    before it (asked again once if its credentials are refused). It ends with the process, which `on_lost`
    ends at the deadline; what the API server has of it by then arrives within its own time for a request, and
    no other leads before `lease_s - renew_s` (5 s) more. A process that stood still between this question and
    its request can send that one later: writes are idempotent, so it does no harm.
    """

    def __init__(self, pace: Pace, leader: Leader) -> None:
        self._pace = pace
        self._leader = leader

    def acquire(self) -> bool:
        """Wait for one's turn; False when we do not lead by then."""
        return self._pace.acquire() and self._leader.is_leader

    def throttled(self, retry_after_s: float | None) -> None:
        """The server sheds load."""
        self._pace.throttled(retry_after_s)

    def succeeded(self) -> None:
        """A write was taken."""
        self._pace.succeeded()
