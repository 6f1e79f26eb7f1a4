"""A running cluster as the tests see it."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.cluster.rig import images, lifecycle, processes, volumes
from tests.cluster.rig.kubectl import kubectl
from tests.cluster.rig.settings import CONTROL_ADDRESS, Rig

CLONE_NEWNET = 0x40000000
T = TypeVar("T")


@dataclass
class Cluster:
    """What a test may do to the cluster; the machine it runs on is not touched."""

    rig: Rig
    address: str = CONTROL_ADDRESS
    """Where pods reach a server that a test starts."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def kubeconfig(self) -> Path:
        return self.rig.kubeconfig

    @property
    def nodes(self) -> list[str]:
        return [node.name for node in self.rig.nodes]

    def kubectl(
        self, *arguments: str, input: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator; RigError with what it said when it fails and `check` is set."""
        return kubectl(self.rig, *arguments, input=input, check=check)

    @contextmanager
    def namespace(self, prefix: str = "test") -> Iterator[str]:
        """A new namespace with a name no other has; deleted afterwards, with the volumes made for it."""
        name = f"{prefix}-{os.getpid()}-{next(self._numbers)}"
        self.kubectl("create", "namespace", name)
        self.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=60s")
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")
            for claim in volumes.claims(self.rig, name):
                volumes.delete(self.rig, name, claim)

    def volume(self, namespace: str, claim: str, storage_class: str = "") -> Path:
        """A ReadWriteMany volume that only that claim can bind; its folder on this machine."""
        return volumes.create(self.rig, namespace, claim, storage_class)

    def load(self, archive: Path, *nodes: str) -> list[str]:
        """Import an image archive into the nodes (default: all); `name@sha256:…` of each image in it."""
        return images.load(self.rig, archive, [self.rig.node(name) for name in nodes or self.nodes])

    def digest(self, name: str) -> str:
        """`name@sha256:…` of an image that was loaded as `name:tag`."""
        return images.digest(self.rig, name)

    def stop(self, program: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End one of the cluster's programs, as `orch-node-1.kubelet` or `kube-apiserver`."""
        processes.stop(self.rig, program, how)

    def start(self, program: str) -> None:
        """Start an ended program again and wait until it does its work."""
        lifecycle.start(self.rig, program)


def until(look: Callable[[], T | None], what: str, timeout_s: float = 60.0) -> T:
    """What `look` finds, as soon as it finds anything; AssertionError when it takes too long."""
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        if (found := look()) is not None:
            return found
        time.sleep(0.5)  # a real cluster: nothing here tells us sooner
    raise AssertionError(f"waited {timeout_s:.0f} s for {what}")


@contextmanager
def inside_network(rig: Rig) -> Iterator[None]:
    """Run this thread, and all it starts, in the network of the control plane."""
    with open("/proc/thread-self/ns/net", "rb") as outside:
        with open(rig.netns, "rb") as inside:
            _enter(inside.fileno())
        try:
            yield
        finally:
            _enter(outside.fileno())


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    if libc.setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
