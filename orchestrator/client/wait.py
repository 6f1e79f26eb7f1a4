"""Seeing that a controller works: lead here until a sweep is finished, or watch one that leads."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from orchestrator.client.progress import RunProgress, progress_of
from orchestrator.client.session import MakeController, Session
from orchestrator.controller.status import SweepStatus

GIVE_UP_AFTER = 5
"""Steps that fail in a row, before a command that waits ends with their error."""
INTERRUPTED = 130
SOME_FAILED = 3


class View(Protocol):
    """Where progress is shown."""

    def show(self, runs: list[RunProgress]) -> None:
        """Show where every run is."""

    def say(self, line: str) -> None:
        """Tell something once."""


def wait(session: Session, name: str, view: View) -> int:
    """Until nothing is left to do for the sweep: lead if nobody does, else watch.

    0 when every run is done or cancelled, SOME_FAILED, or INTERRUPTED. Ctrl-C while leading suspends the
    sweep and ends its Jobs, which checkpoint first; while watching it ends the watching alone.
    """
    while True:
        with session.lead() as make:
            code = _lead(session, make, name, view) if make else _watch(session, name, view)
        if code is not None:
            break
    others = [one.name for one in session.sweeps() if one.name != name and not session.settled(one)]
    if make and others and session.start_controller():
        view.say(f"a controller goes on with {', '.join(others)}")
    return code


def _lead(session: Session, make: MakeController, name: str, view: View) -> int:
    stop = threading.Event()
    controller = make(stop)

    def on_status(sweep: str, status: SweepStatus) -> None:
        if sweep == name:
            view.show(progress_of(session, session.sweep(name)))
            if status.finished:
                stop.set()

    try:
        with _sigterm_interrupts():
            controller.run(on_status=on_status, give_up_after=GIVE_UP_AFTER)
    except KeyboardInterrupt:
        view.say("interrupted: its Jobs write a checkpoint and end (Ctrl-C again leaves them running)")
        session.control(name, suspend=True)
        controller.drain(name)
        return INTERRUPTED
    return exit_code(session, name)


def _watch(session: Session, name: str, view: View) -> int | None:
    """Show what another controller does until nothing is left to do; None when it is gone before."""
    pause = threading.Event()  # cluster.wait would act for the controller
    try:
        while session.remote or session.led():
            stored = session.sweep(name)
            view.show(progress_of(session, stored))
            if session.settled(stored):
                return exit_code(session, name)
            pause.wait(session.poll_s)
    except KeyboardInterrupt:
        view.say("no longer watching; the controller goes on")
        return INTERRUPTED
    return None


def exit_code(session: Session, name: str) -> int:
    """0 when every run is done or cancelled, else SOME_FAILED."""
    states = session.states(session.sweep(name))
    return SOME_FAILED if any(one.state not in ("done", "cancelled") for one in states) else 0


def control_loop(session: Session) -> None:
    """Lead until nothing is left to do for any sweep; SIGTERM ends it after its turn, and Jobs go on.

    A sweep that came while the last turn ended is seen by looking again after the leadership is given up.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    while not stop.is_set():
        with session.lead() as make:
            if make is None:
                return
            make(stop).run(until_done=True)
        if all(session.settled(stored) for stored in session.sweeps()):
            return


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM is treated like Ctrl-C inside the block."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
