"""A stand-in for a CUDA graph: writes down a step's operations, and repeats them on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh")
"""What waits for the device, or brings a value from the CPU: a capture would fail or freeze it."""


class Tape(TorchDispatchMode):
    """As a graph, it keeps every number of Python's as it was, and knows tensors only by their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in WAITS):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            found = func(*args, **kwargs)
            for before, now in zip(tree_flatten(out)[0], tree_flatten(found)[0], strict=True):
                if isinstance(before, Tensor) and before.data_ptr() != now.data_ptr():
                    before.copy_(now)


class Recorder:
    """In place of `graphs.CudaRecorder`: counts what was recorded and replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        step()
        with Tape() as tape:
            logits = step()
        # A capture computes nothing: what it wrote was the tape's doing.
        logits.fill_(float("nan"))
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay, logits
