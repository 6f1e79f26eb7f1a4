"""Which local Job gets which GPUs. One slot a GPU; with no GPU one slot for all; decisions are pure."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

UNSCHEDULABLE = "0/1 nodes are available: insufficient nvidia.com/gpu"


@dataclass(frozen=True)
class Slots:
    """The GPUs of this machine, spelled as CUDA_VISIBLE_DEVICES does; empty without GPUs."""

    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """A waiting Job and how many GPUs it asks for."""

    job: str
    gpus: int


def detect() -> Slots:
    """The GPUs in CUDA_VISIBLE_DEVICES if it is set, else those nvidia-smi lists, else none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return Slots(_visible(visible))
    if shutil.which("nvidia-smi") is None:
        return Slots()
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return Slots()
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    return Slots(tuple(str(index) for index in range(count)))


def _visible(value: str) -> tuple[str, ...]:
    """CUDA takes the names up to the first that is no device."""
    names = []
    for name in (part.strip() for part in value.split(",")):
        if not name or name.startswith("-") or name in ("NoDevFiles", "none", "void"):
            break
        names.append(name)
    return tuple(names)


def unschedulable(gpus: int, slots: Slots) -> bool:
    """Whether a Job can never run here: it asks for more GPUs than a machine with GPUs has."""
    return bool(slots.devices) and gpus > len(slots.devices)


def assign(
    waiting: Iterable[Ask], busy: Iterable[tuple[str, ...]], slots: Slots
) -> list[tuple[str, tuple[str, ...]]]:
    """(job, devices) to start now, in the order of `waiting`; `busy` are the devices of each running Job.

    A Job that must wait for GPUs holds back the later ones that want GPUs, so that it is never starved; one
    that can never run here holds back nobody. Jobs on no device run one at a time.
    """
    running = list(busy)
    taken = {device for devices in running for device in devices}
    free = [device for device in slots.devices if device not in taken]
    cpu_free = all(running)
    held = False
    starts: list[tuple[str, tuple[str, ...]]] = []
    for ask in waiting:
        gpus = ask.gpus if slots.devices else 0
        if unschedulable(gpus, slots):
            continue
        if gpus == 0:
            if cpu_free:
                starts.append((ask.job, ()))
                cpu_free = False
        elif not held and gpus <= len(free):
            starts.append((ask.job, tuple(free[:gpus])))
            del free[:gpus]
        else:
            held = True
    return starts
