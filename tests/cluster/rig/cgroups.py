"""The cluster's cgroups: below them lies everything it ever started, whoever its parent is now."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNIFIED_CONTROLLERS = "+cpu +cpuset +memory +pids"


def is_unified() -> bool:
    """Whether this machine has cgroup v2 alone."""
    return (ROOT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """Every mounted hierarchy: one on cgroup v2, one per controller (and `unified`) on v1."""
    if is_unified():
        return [ROOT]
    return sorted({path.resolve() for path in ROOT.iterdir() if (path / "cgroup.procs").exists()})


def create(path: str) -> None:
    """Make the cgroup `path` (relative) in every hierarchy, ready to hold children."""
    for hierarchy in hierarchies():
        cgroup = hierarchy
        for part in Path(path).parts:
            if is_unified():
                (cgroup / "cgroup.subtree_control").write_text(UNIFIED_CONTROLLERS)
            parent, cgroup = cgroup, cgroup / part
            cgroup.mkdir(exist_ok=True)
            if hierarchy.name == "cpuset":  # empty in a new cgroup, and nothing can enter it then
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (cgroup / name).write_text((parent / name).read_text())


def doors(path: str) -> list[Path]:
    """Files into which a process writes its pid to belong to the cgroup `path`."""
    chosen = [ROOT] if is_unified() else [ROOT / "pids", ROOT / "memory"]
    return [hierarchy / path / "cgroup.procs" for hierarchy in chosen]


def members(path: str) -> set[int]:
    """Pids of all processes in the cgroup `path` and below, in any hierarchy."""
    pids: set[int] = set()
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / path):
            try:
                pids.update(int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split())
            except OSError:  # the cgroup went while we looked
                continue
    return pids


def kill(path: str, deadline: float = 30) -> None:
    """SIGKILL all processes below `path` until none is left."""
    end = time.monotonic() + deadline
    while pids := members(path):
        if time.monotonic() > end:
            raise TimeoutError(f"cgroup {path}: {sorted(pids)} do not end by SIGKILL")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def remove(path: str, deadline: float = 10) -> None:
    """End all processes below `path` and remove the cgroup with all below it."""
    end = time.monotonic() + deadline
    while any((hierarchy / path).exists() for hierarchy in hierarchies()):
        kill(path)
        for hierarchy in hierarchies():
            for folder, _, _ in os.walk(hierarchy / path, topdown=False):
                # The kernel lets a cgroup go a moment after its last process.
                with suppress(OSError):
                    Path(folder).rmdir()
        if time.monotonic() > end:
            raise TimeoutError(f"cgroup {path}: cannot be removed, and no process is left in it")
        time.sleep(0.02)
