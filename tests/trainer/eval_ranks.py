"""One rank of an evaluation: python -m tests.trainer.eval_ranks FOLDER RANK.

Evaluates what FOLDER/settings.json says in FOLDER/<size>, as the ranks of 1, 2 and 3 processes in turn; the
next size begins when all its ranks are here. Leaves FOLDER/forwards-<size>-<rank>: how often this rank asked
the model.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from trainer.config import EvalConfig, EvalPlace
from trainer.evaluate import evaluate
from trainer.student import Student

SIZES = (1, 2, 3)


def main(folder: Path, rank: int) -> None:
    hidden, forwards = Student.hidden, 0

    def counted(student: Student, *args: Any, **options: Any) -> Any:
        nonlocal forwards
        forwards += 1
        return hidden(student, *args, **options)

    Student.hidden = counted  # type: ignore[method-assign]
    settings = json.loads((folder / "settings.json").read_text())
    for size in SIZES:
        if rank >= size:
            continue
        # As a launcher would, save that the ranks meet over a file: a free port may be taken meanwhile.
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
        if size > 1:
            store = f"file://{folder}/store-{size}"
            torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
        os.chdir(folder / str(size))
        forwards = 0
        record = evaluate(EvalConfig(**settings["config"]), EvalPlace(**settings["place"]))
        assert (record is None) == (rank > 0)
        (folder / f"forwards-{size}-{rank}").write_text(str(forwards))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
