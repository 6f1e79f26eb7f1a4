"""A student small enough to train a hundred times in a test, and a volume that fails where it is told to."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.adapter import Adapter
from trainer.attempt import StopSignal, Watchdog
from trainer.config import TrainConfig, TrainPlace
from trainer.data import Example
from trainer.distributed import World
from trainer.fence import Fence
from trainer.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RunFolder
from trainer.metrics import Metrics
from trainer.session import Session

WIDTH, VOCABULARY = 4, 16
TOY = TrainConfig(
    model_name="toy",
    dataset_name="toy.jsonl",
    lmbda=0.0,
    lora_r=2,
    learning_rate=0.1,
    max_steps=4,
    save_steps=1,
    save_total_limit=2,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=1,
)


class ToyStudent:
    """One table of hidden states, a low-rank pair after it and a head, all drawn from a fixed seed."""

    codes_sha256 = "c" * 64

    def __init__(self) -> None:
        drawn = torch.Generator().manual_seed(0)
        self.table, self._head = (torch.randn(VOCABULARY, WIDTH, generator=drawn) for _ in range(2))
        self.parts = {
            "layer.lora_A": nn.Parameter(torch.randn(2, WIDTH, generator=drawn)),
            "layer.lora_B": nn.Parameter(torch.zeros(WIDTH, 2)),
        }

    def hidden(self, ids_BT: Tensor, *, mode: str) -> Tensor:
        base = self.table[ids_BT]
        if mode == "teacher":
            return base
        return base.round() + base @ self.parts["layer.lora_A"].T @ self.parts["layer.lora_B"].T

    def head(self, mode: str) -> Tensor:
        return self._head

    def lora_parameters(self) -> list[nn.Parameter]:
        return list(self.parts.values())

    def lora_tensors(self) -> dict[str, Tensor]:
        return {name: part.detach() for name, part in self.parts.items()}

    def load_lora(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, part in self.parts.items():
                part.copy_(tensors[name])

    def set_adapter(self, adapter: Adapter, order: str) -> None:
        self.load_lora(adapter.tensors)


class ToyData:
    seen = dropped = heldout = 0

    def __getitem__(self, number: int) -> Example:
        return Example(prompt=(number % 5, 1), completion=(2 + number % 7, 3))


def toy_session(folder: Path, config: TrainConfig = TOY) -> Session:
    """A session as `prepare` makes one, without a model."""
    run = RunFolder(folder)
    fence = Fence(run)
    parts: dict[str, Any] = {
        "student": ToyStudent(),
        "tokenizer": SimpleNamespace(pad_token_id=0),
        "data": ToyData(),
        "heldout": [],
        "teacher": None,
        "rollouts": SimpleNamespace(how="native"),
    }
    return Session(
        config=config,
        place=TrainPlace(output_dir=str(folder), run_id="toy"),
        folder=run,
        world=World(0, 1, torch.device("cpu")),
        stops=frozenset(),
        fence=fence,
        metrics=Metrics(run.metrics, fence),
        stop=StopSignal(),
        watchdog=Watchdog(600, lambda what: None),
        **parts,
    )


def result(folder: Path) -> tuple[bytes, Any, list[dict[str, Any]]]:
    """What a run is for: adapter bytes, adapter config and metrics, without what a clock wrote."""
    run = RunFolder(folder)
    timed = ("seconds", "tokens_per_s", "time")
    found = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if key not in timed} for line in found]
    config = json.loads((run.adapter / ADAPTER_CONFIG).read_text())
    return (run.adapter / ADAPTER_WEIGHTS).read_bytes(), config, lines


Hook = Callable[[int, str], int]


class Volume:
    """Counts every operation that changes files under `root` (and writes to them) and calls `hook` at each.

    hook(number, what): what is `open w`, `write`, `torn`, `fsync`, `rename`, `mkdir`, `unlink` or `rmdir`;
    the error number it returns fails the operation. `write` comes before anything is written, `torn` after
    the first half.
    """

    def __init__(self, root: Path, hook: Hook) -> None:
        self._root, self._hook = str(root.resolve()), hook
        self.operations: list[str] = []

    def seen(self, what: str, place: Any) -> None:
        if isinstance(place, int):
            with contextlib.suppress(OSError):
                place = os.readlink(f"/proc/self/fd/{place}")
        if str(place).startswith(self._root):
            self.operations.append(what)
            code = self._hook(len(self.operations), what)
            if code:
                # As Python does: what goes by a handle has no name.
                named = () if what in ("write", "torn", "fsync") else (str(place),)
                raise OSError(code, os.strerror(code), *named)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Volume]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("rename", "replace", "mkdir", "unlink", "rmdir", "fsync", "link"):
                patch.setattr(os, name, self._watching(name, getattr(os, name)))
            real = builtins.open

            def opening(place: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
                if not set(mode) & set("wax+") or not str(place).startswith(self._root):
                    return real(place, mode, *args, **options)
                self.seen("open w", place)
                return _Watched(real(place, mode, *args, **options), self)

            patch.setattr(builtins, "open", opening)
            patch.setattr(io, "open", opening)
            yield self

    def _watching(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(place: Any, *args: Any, **options: Any) -> Any:
            what = "rename" if name in ("rename", "replace", "link") else name
            place_of = options.get("dir_fd")
            self.seen(what, place if place_of is None else place_of)
            return real(place, *args, **options)

        return watched


class _Watched:
    """An opened file whose writes are seen, and can end in the middle."""

    def __init__(self, file: Any, volume: Volume) -> None:
        self._file, self._volume = file, volume

    def write(self, data: Any) -> int:
        self._volume.seen("write", self._file.name)
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._volume.seen("torn", self._file.name)
        self._file.write(data[half:])
        return len(data)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fails_at(number: int, code: int, *, for_ever: bool) -> Hook:
    """Fail operation `number` with an error number; with `for_ever` all that follow it too.

    for_ever is also what a kill leaves behind: nothing is tidied up.
    """

    def hook(now: int, what: str) -> int:
        full = code in (errno.ENOSPC, errno.EDQUOT) and what in ("unlink", "rmdir", "rename")
        return code if now == number or (for_ever and now > number and not full) else 0

    return hook
