"""The controller of a namespace: reflectors feed a queue of sweeps, one worker takes turns for them.

Any number of replicas may run: one leads, the others hold the same world and wait. Who leads no more writes
no more: `leader.WhileLeading` says what may still be under way, which does no harm, for every write is
idempotent.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.leader import Leader, WhileLeading
from orchestrator.cluster.kube.limiter import Limiter
from orchestrator.cluster.kube.watched import WatchedCluster
from orchestrator.cluster.kube.workqueue import Retries, WorkQueue
from orchestrator.controller import logs
from orchestrator.controller.loop import NOTICES_S, Controller, Turn
from orchestrator.controller.metrics import Metrics
from orchestrator.controller.probes import Probes
from orchestrator.errors import NotFoundError, UserError
from orchestrator.profile import Profile, load_profile
from orchestrator.sweep.naming import CONTROLLER_LEASE

LOG = logging.getLogger(__name__)
SETTLE_S = 0.1
"""Changes that come together are one turn."""
THINKING = 0.1
"""Share of the time for which turns for one sweep may think: long ones wait for more changes."""
UNFINISHED_AGAIN_S = 30.0
"""A sweep that goes on is looked at this often though nothing changes: deadlines pass without an event."""
FINISHED_AGAIN_S = 600.0
FAILED_AGAIN_S = 60.0
WRITERS = 4
TELL_EVERY_S = 2.0
HOURS_EVERY_S = 600.0
"""Of GPU-hours alone: a hundred Jobs that run change them all the time. /metrics always has the newest."""
DRAIN_S = 20.0
SYNC_S = 120.0
SILENT_S = 900.0
"""A reflector that heard nothing for so long is taken for dead: bookmarks come every minute."""


class ProfileFile:
    """The lab's defaults in a mounted file, read anew when it changes; a broken change keeps what was."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._text = self._read()
        self._profile = load_profile(path)

    def current(self) -> Profile:
        text = self._read()
        if text != self._text:
            self._text = text
            try:
                self._profile = load_profile(self._path)
                LOG.info("controller: the profile changed")
            except UserError as error:
                LOG.error("controller: the changed profile is not used: %s", error)
        return self._profile

    def _read(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8") if self._path else ""
        except (OSError, UnicodeDecodeError):
            return ""


class Service:
    """A worker and what it works with; `run` returns when `stop` is set, after the turn it is in."""

    def __init__(self, api: Api, profile: ProfileFile, metrics: Metrics) -> None:
        self.stop = threading.Event()
        self.queue: WorkQueue[str] = WorkQueue(Retries(most_s=FAILED_AGAIN_S))
        self.cluster = WatchedCluster(api, self._changed)
        self.controller = Controller(
            self.cluster,
            profile.current(),
            stop=self.stop,
            writers=WRITERS,
            tell_every_s=TELL_EVERY_S,
            hours_every_s=HOURS_EVERY_S,
            on_record=metrics.recorded,
        )
        self.controller.teller.postbox.wake = self._changed
        self._profile = profile
        self._metrics = metrics
        self._thought_s: dict[str, float] = {}

    def _changed(self, name: str) -> None:
        """Something happened to a sweep; any thread may say so."""
        self.queue.add_after(name, settle_s(self._thought_s.get(name, 0.0)))

    def run(self) -> None:
        """Turns for the sweeps that the queue names, until `stop`."""
        for name in self.controller.names():
            self.queue.add(name)
        while (due := self.queue.get()) is not None and not self.stop.is_set():
            try:
                self._turn(due)
            finally:
                self.queue.done(due)

    def end(self) -> None:
        """Make `run` return after the turn it is in, or never begin."""
        self.stop.set()
        self.queue.shutdown()

    def _turn(self, name: str) -> None:
        began, thought_s = time.monotonic(), time.thread_time()
        try:
            self.controller.profile = self._profile.current()
            turn = self.controller.step(name)
        except NotFoundError:
            self.controller.forget(name)
            self._thought_s.pop(name, None)
            self._metrics.gone(name)
        except Exception:  # whatever went wrong, the next turn sees the world anew
            LOG.exception("controller: a turn failed, tried again later", extra={"sweep": name})
            self._metrics.failed()
            self.queue.add_rate_limited(name)
        else:
            self._thought_s[name] = time.thread_time() - thought_s
            self.queue.forget(name)
            self.queue.add_after(name, next_turn_s(turn))
            self._metrics.turned(name, turn.status, time.monotonic() - began)

    def healthy(self) -> str:
        """What is wrong for good, empty for nothing: then the pod had better start anew."""
        for reflector in self.cluster.reflectors.values():
            if not reflector.alive:
                return f"the reflector of {reflector.name} is dead"
            if reflector.contact_age_s > SILENT_S:
                return f"nothing heard of {reflector.name} for {reflector.contact_age_s:.0f} s"
        return ""

    def ready(self) -> str:
        """What is not there yet, empty when turns could be taken."""
        missing = [one.name for one in self.cluster.reflectors.values() if not one.synced.is_set()]
        faults = [one.fault for one in self.cluster.reflectors.values() if one.fault]
        return "; ".join(([f"waiting for {', '.join(missing)}"] if missing else []) + faults)


def next_turn_s(turn: Turn) -> float:
    """In how many seconds a sweep is looked at again though nothing changes.

    A status that is to be told only later must not keep the controller from looking: clocks run meanwhile.
    """
    usual_s = FINISHED_AGAIN_S if turn.status.finished else UNFINISHED_AGAIN_S
    return usual_s if turn.again_s is None else min(usual_s, turn.again_s)


def settle_s(thought_s: float) -> float:
    """How long changes gather after a turn that took so many seconds of thinking."""
    return max(SETTLE_S, thought_s / THINKING)


def serve(namespace: str | None, profile_path: Path | None, port: int) -> int:
    """Control a namespace until SIGTERM, then 0; a lost leadership ends the process with 1."""
    logs.setup()
    metrics = Metrics()
    begin = threading.Event()
    api = Api.connect(namespace=namespace, on_warning=metrics.warned)
    elector = Leader(
        api, CONTROLLER_LEASE, identity=os.environ.get("POD_NAME"), on_started=begin.set, on_lost=_die
    )
    writes = api.paced(WhileLeading(Limiter(), elector))
    service = Service(writes, ProfileFile(profile_path), metrics)
    metrics.watch(api, service.cluster, service.queue)

    def end(*_: object) -> None:
        service.end()
        begin.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with Probes(port, service.healthy, service.ready, metrics) as probes:
        LOG.info("controller: namespace %s, port %d", api.namespace, probes.port)
        service.cluster.start()
        elector.start()
        begin.wait()
        while not service.stop.is_set() and not service.cluster.wait_synced(1.0):
            LOG.info("controller: %s", service.ready())
        if not service.stop.is_set():
            LOG.info("controller: %s leads", elector.identity)
            metrics.leads(True)
            service.run()
        service.controller.teller.close(NOTICES_S, time.time())
        LOG.info("controller: ends")
        elector.stop()
        service.cluster.stop()
        elector.join(DRAIN_S)
    return 0


def _die() -> None:
    """Another leads now, or nobody knows: whatever is under way here must end at once."""
    LOG.error("controller: lost the leadership, ends at once")
    logging.shutdown()
    os._exit(1)
