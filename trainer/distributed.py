"""The few collective operations a run needs; with one process each is the identity."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the run's processes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and records."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items, dealt round robin: neighbours, which cost alike, are spread."""
        return items[self.rank :: self.size]

    def collect(self, own: Sequence[T]) -> list[T]:
        """What all processes made of their shares, a value an item, in the items' order; equal everywhere."""
        return undealt(self.gather(own))

    def gather(self, own: T) -> list[T]:
        """Each process's value by rank, equal everywhere; values of any picklable kind and size."""
        if self.size == 1:
            return [own]
        values: list[T] = [own] * self.size
        torch.distributed.all_gather_object(values, own)
        return values

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, in float64."""
        if self.size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients summed over all processes, in one buffer: only LoRA's travel."""
        if self.size == 1:
            return
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in parameters])
        torch.distributed.all_reduce(flat)
        offset = 0
        for parameter in parameters:
            count = parameter.numel()
            parameter.grad = flat[offset : offset + count].view_as(parameter).clone()
            offset += count


def undealt(shares: Sequence[Sequence[T]]) -> list[T]:
    """Items dealt round robin, in their order again."""
    size = len(shares)
    return [shares[place % size][place // size] for place in range(sum(map(len, shares)))]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def join_world(device: str) -> World:
    """Join the processes that the launcher's environment names (ours, accelerate's or torchrun's)."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", rank))
    use_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    where = torch.device("cuda", local) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(where)
    if size > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if use_cuda else "gloo", rank=rank, world_size=size)
    return World(rank, size, where)


def leave_world() -> None:
    """End the process group, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
