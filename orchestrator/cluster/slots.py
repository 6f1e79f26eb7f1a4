"""Which local Jobs run at once: each GPU is one Job's, cores and memory are shared. Decisions are pure."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

UNSCHEDULABLE = "0/1 nodes are available: insufficient nvidia.com/gpu"


@dataclass(frozen=True)
class Share:
    """A part of the machine: cores, and bytes of main memory."""

    cores: float
    memory: float = 0


@dataclass(frozen=True)
class Slots:
    """This machine's GPUs as CUDA_VISIBLE_DEVICES spells them, and what Jobs without a GPU share."""

    devices: tuple[str, ...] = ()
    shared: Share = Share(1, math.inf)


@dataclass(frozen=True)
class Ask:
    """A waiting Job and what it asks for."""

    job: str
    gpus: int
    share: Share = Share(1)


@dataclass(frozen=True)
class Busy:
    """What a running Job holds: its GPUs, and the share it asked for."""

    devices: tuple[str, ...]
    share: Share = Share(1)


def detect() -> Slots:
    """The GPUs in CUDA_VISIBLE_DEVICES if it is set, else those nvidia-smi lists; the cores we may use."""
    return Slots(_devices(), Share(len(os.sched_getaffinity(0)), psutil.virtual_memory().total))


def _devices() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return _visible(visible)
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(map(str, range(sum(line.startswith("GPU ") for line in listed.splitlines()))))


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
    waiting: Iterable[Ask], running: Iterable[Busy], slots: Slots
) -> list[tuple[str, tuple[str, ...]]]:
    """(job, devices) to start now, in the order of `waiting`.

    A Job that must wait for GPUs holds back the later ones that want GPUs, so that it is never starved; one
    that can never run here holds back nobody. A Job on no device waits until its cores and memory are free
    beside the others on none, and holds back the later ones of its kind; one that asks for more than there
    is runs alone.
    """
    running = list(running)
    taken = {device for busy in running for device in busy.devices}
    free = [device for device in slots.devices if device not in taken]
    beside = [busy.share for busy in running if not busy.devices]
    gpu_held = cpu_held = False
    starts: list[tuple[str, tuple[str, ...]]] = []
    for ask in waiting:
        gpus = ask.gpus if slots.devices else 0
        if unschedulable(gpus, slots):
            continue
        if gpus == 0:
            cpu_held = cpu_held or not _fits([*beside, ask.share], slots.shared)
            if not cpu_held:
                starts.append((ask.job, ()))
                beside.append(ask.share)
        elif not gpu_held and gpus <= len(free):
            starts.append((ask.job, tuple(free[:gpus])))
            del free[:gpus]
        else:
            gpu_held = True
    return starts


def _fits(shares: list[Share], whole: Share) -> bool:
    """Whether these Jobs may run at once; one alone always may."""
    cores, memory = sum(share.cores for share in shares), sum(share.memory for share in shares)
    return len(shares) == 1 or (cores <= whole.cores and memory <= whole.memory)
