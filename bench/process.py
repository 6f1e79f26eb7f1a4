"""The controller as a process of its own, watched from outside."""

from __future__ import annotations

import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

from bench.counting import Requests, counted
from orchestrator.errors import ClusterError

T = TypeVar("T")
PEAK_EVERY_S = 0.25


class Process:
    """`python -m orchestrator.cli` with these arguments; it runs once it is made."""

    def __init__(self, python: str, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            command = [python, "-m", "orchestrator.cli", *arguments]
            self._started = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        self._process = psutil.Process(self._started.pid)
        self.peak_mib = 0.0
        self.port = until(self._told_port, 120, "the controller's port")
        self._stop = threading.Event()
        threading.Thread(target=self._sample, name="memory", daemon=True).start()

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far."""
        times = self._process.cpu_times()
        return times.user + times.system

    def rss_mib(self) -> float:
        return self._process.memory_info().rss / 2**20

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of one of its own pages."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def requests(self) -> Requests:
        """What it asked the API server so far, as it counts itself."""
        return counted(self.get("/metrics")[1], "orch_api_requests_total", ("method", "resource", "status"))

    def faults(self) -> list[str]:
        """Warnings and errors in its log."""
        return [line for line in self.log.read_text().splitlines() if '"level": "info"' not in line]

    def stop(self) -> None:
        self._stop.set()
        self._started.terminate()
        try:
            self._started.wait(60)
        except subprocess.TimeoutExpired:
            self._started.kill()
            self._started.wait()

    def check(self) -> None:
        """RuntimeError, with the end of its log, when it has ended."""
        if self._started.poll() is not None:
            tail = "\n".join(self.log.read_text().splitlines()[-10:])
            raise RuntimeError(f"the controller ended with {self._started.returncode}:\n{tail}")

    def _told_port(self) -> int | None:
        self.check()
        match = re.search(r"namespace \S+, port (\d+)", self.log.read_text())
        return int(match[1]) if match else None

    def _sample(self) -> None:
        while not self._stop.wait(PEAK_EVERY_S) and self._started.poll() is None:
            self.peak_mib = max(self.peak_mib, self.rss_mib())


def until(done: Callable[[], T | None], within_s: float, what: str, *, every_s: float = 0.1) -> T:
    """The first true value of `done`; RuntimeError when there is none in time."""
    end = time.monotonic() + within_s
    while True:
        try:
            value = done()
        except ClusterError as error:  # a server that is busy is asked again
            value, what = None, f"{what} ({error})" if str(error) not in what else what
        if value:
            return value
        if time.monotonic() > end:
            raise RuntimeError(f"waited {within_s:.0f} s in vain for {what}")
        time.sleep(every_s)
