"""The session of this machine: Jobs are processes, and whoever waits for a sweep is its controller."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from orchestrator.client.session import MakeController, Session
from orchestrator.cluster.local import LocalCluster
from orchestrator.controller.loop import Controller
from orchestrator.errors import UserError
from orchestrator.profile import Profile, load_profile
from trainer.layout import Dump

DEFAULT_DUMP = Path("dump")


class LocalSession(Session):
    """`dump` is the folder of all state and artefacts, `profile_path` the lab's defaults.

    `say_local`: commands work here only with --local, for the default is a cluster.
    """

    poll_s = 1.0
    remote = False
    unled = "submit its file again to go on"

    def __init__(self, dump: Path, profile_path: Path | None = None, *, say_local: bool = False) -> None:
        self.dump = dump
        self.profile_path = profile_path
        self._say_local = say_local

    @property
    def where(self) -> str:
        return f"here, in {self.dump}"

    @cached_property
    def profile(self) -> Profile:
        return load_profile(self.profile_path)

    @cached_property
    def cluster(self) -> LocalCluster:
        return LocalCluster(self.dump, self.profile)

    @cached_property
    def user(self) -> str:
        return getpass.getuser()

    def command_line(self, *words: str) -> str:
        here = self.dump == Path(os.environ.get("ORCH_DUMP", DEFAULT_DUMP))
        options = [] if here else ["--dump", str(self.dump)]
        options += ["--profile", str(self.profile_path)] if self.profile_path else []
        return " ".join(["orch", *options, *words, *(["--local"] if self._say_local else [])])

    @property
    def log(self) -> Path:
        """Where a controller that was started in the background writes what it does."""
        return Dump(self.dump).orch / "controller.log"

    def controller(self, stop: threading.Event) -> Controller:
        """A controller of local Jobs, which never reach Kubernetes: its schema takes seconds to load."""
        return Controller(self.cluster, self.profile, stop=stop, poll_s=self.poll_s, check_schema=False)

    def slots(self, name: str) -> int:
        machine, asked = self.cluster.slots, self.sweep(name).sweep.spec.resources
        if machine.devices and asked.gpus:
            return max(1, len(machine.devices) // asked.gpus)
        return max(1, int(min(machine.shared.cores / asked.cpu, machine.shared.memory / asked.memory_bytes)))

    @contextlib.contextmanager
    def lead(self) -> Iterator[MakeController | None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.cluster.lead())
            except UserError:
                if not self.led():
                    raise
                yield None
                return
            yield self.controller

    def led(self) -> bool:
        return self.cluster.led()

    def start_controller(self) -> bool:
        if self.led():
            return False
        self.log.parent.mkdir(parents=True, exist_ok=True)
        options = ["--dump", str(self.dump.resolve())]
        if self.profile_path:
            options += ["--profile", str(self.profile_path.resolve())]
        with open(self.log, "ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", *options, "controller", "--local"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return True

    def leave(self, name: str) -> str:
        started = self.start_controller()
        who = f"a controller was started, its log is {self.log}" if started else "a controller is at work"
        watch, results = self.command_line("status", name, "-w"), self.command_line("results", name)
        return f"{who}; follow it with `{watch}`, then `{results}`"
