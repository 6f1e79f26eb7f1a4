"""Files of a measured variant: whole or not there, on a volume that fails and with two writers at once."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.trainer.fakes import Volume, fails_at
from trainer.protocol import Plan
from trainer.results import Protocol
from trainer.scores import Cell, publish, read

MEASURE = Plan(
    tasks=("t",),
    text=None,
    protocol=Protocol(model="m", quant="int4", dtype="bf16", batch_size=1),
    sha256="0",
)


class Item(NamedTuple):
    """As trainer.harness has it, which would load lm-eval."""

    task: str
    subtask: str
    id: int
    correct: int
    loglikelihoods: list[float]


def measured(cell: Cell, right: int) -> None:
    """Publish what a GPU on which `right` of three items come out right would."""
    items = [Item("t", "t", number, int(number < right), [0.0]) for number in range(3)]
    blocks = {"tokens": [512.0, 512.0], "nll": [float(right), 1.0], "kl": [1.0, 1.0]}
    publish(cell, items, blocks, MEASURE)


def say(cell: Cell) -> tuple[int, Any] | None:
    """(items answered right, first block's nats) as they are read."""
    found = read(cell)
    return None if found is None else (sum(found.answers["t"].values()), (found.blocks or {})["nll"][0])


def operations(tmp_path: Path) -> int:
    with Volume(tmp_path, lambda number, what: 0).watched() as volume:
        measured(Cell("ptq", tmp_path / "alone"), 1)
    return len(volume.operations)


def test_two_that_measure_at_once_leave_the_answers_of_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two kinds of GPU may decide an item differently: its answers must not stand beside the other's sums."""
    for at in range(1, operations(tmp_path) + 1):
        cell = Cell("ptq", tmp_path / str(at))
        seen = []

        def hook(number: int, what: str, at: int = at, cell: Cell = cell, seen: list[Any] = seen) -> int:
            seen.append(say(cell))
            if number == at:
                measured(cell, 2)
            return 0

        with Volume(cell.folder, hook).watched():
            measured(cell, 1)
        assert set(seen) <= {None, (1, 1.0), (2, 2.0)}
        assert say(cell) in {(1, 1.0), (2, 2.0)}
    assert caplog.text == "", "nothing looked damaged at any moment"


@pytest.mark.parametrize("for_ever", [False, True])
def test_a_variant_is_measured_whole_or_not_at_all(for_ever: bool, tmp_path: Path) -> None:
    count = operations(tmp_path)
    for at in range(1, count + 1):
        cell = Cell("ptq", tmp_path / "cut")
        try:
            with Volume(tmp_path / "cut", fails_at(at, errno.EIO, for_ever=for_ever)).watched():
                measured(cell, 1)
        except OSError:
            pass
        assert say(cell) in (None, (1, 1.0))
        measured(cell, 2)
        assert say(cell) == (2, 2.0)
        shutil.rmtree(tmp_path / "cut")


def test_damaged_files_count_as_not_measured_and_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cell = Cell("ptq", tmp_path)
    measured(cell, 1)
    assert caplog.text == ""
    for file in tmp_path.iterdir():
        data = file.read_bytes()
        for size in range(0, len(data) - 1, 5):
            caplog.clear()
            file.write_bytes(data[:size])
            assert read(cell) is None, (file, size)
            assert "ptq.json: results are damaged, got" in caplog.text
        file.write_bytes(data)
    assert say(cell) == (1, 1.0)
