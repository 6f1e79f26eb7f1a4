"""Measured variants as files, and what they say: means, standard errors, paired differences to ptq.

<variant>.json holds scores and block sums, <variant>.items.<hash>.jsonl.gz every answer. The first names the
second and is written last: where it is, the variant is measured. Two that measure the same at once write each
its own answers, and the last <variant>.json stands, with the answers it names.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.durable import read_json, write_bytes, write_json
from trainer.mark import remove_stale
from trainer.results import Protocol, TaskScore, TextScore, VariantName, VariantResult
from trainer.statistics import Blocks, accuracy, block_bootstrap, discordant, paired_bootstrap

if TYPE_CHECKING:
    from trainer.bases import AdapterSource
    from trainer.harness import Item
    from trainer.protocol import Plan

logger = logging.getLogger(__name__)

BlockSums = dict[str, list[float]]
"""`tokens`, `nll` and `kl`: tokens and sums of nats in each block of the text."""
Answers = dict[str, dict[str, bool]]
"""Whether each item of each task was answered right, by task and item."""


@dataclass(frozen=True)
class Cell:
    """One variant to measure and the folder its files go to."""

    variant: VariantName
    folder: Path
    source: AdapterSource | None = None

    @property
    def result(self) -> Path:
        return self.folder / f"{self.variant}.json"

    @property
    def label(self) -> str:
        return f"{self.source.name} {self.variant}" if self.source else self.variant


class Measured(NamedTuple):
    """What the files of one variant say."""

    answers: Answers
    blocks: BlockSums | None
    protocol: Protocol
    measure: str


def publish(
    cell: Cell,
    items: Sequence[Item],
    blocks: BlockSums | None,
    measure: Plan,
    probe: dict[str, Any] | None = None,
) -> None:
    """Write a variant's files, answers first; probe: how its function compares with the one trained."""
    lines = "".join(json.dumps(item._asdict()) + "\n" for item in items)
    # Without a time stamp equal answers are equal bytes.
    packed = gzip.compress(lines.encode(), mtime=0)
    answers = hashlib.sha256(packed).hexdigest()
    beside = f"{cell.variant}.items.{answers[:12]}.jsonl.gz"
    write_bytes(cell.folder / beside, packed)
    protocol = measure.protocol
    if blocks:
        protocol = protocol.model_copy(update={"block_tokens": int(max(blocks["tokens"]))})
    measured = Measured(_answers(item._asdict() for item in items), blocks, protocol, measure.sha256)
    value = {
        "v": 1,
        "measure": measure.sha256,
        "adapter_sha256": cell.source.sha256() if cell.source else None,
        "probe": probe,
        "protocol": protocol.model_dump(),
        "items": beside,
        "items_sha256": answers,
        "result": scores(cell, measured, None).model_dump(mode="json"),
        "blocks": blocks,
    }
    write_json(cell.result, value)
    remove_stale(cell.folder.glob(".*"), cell.result)


def read(cell: Cell) -> Measured | None:
    """What the files of a variant say; None when it is not measured, or they are damaged, which is said.

    Raises OSError when the volume cannot be read.
    """
    try:
        value = read_json(cell.result)
        if value is None:
            return None
        packed = (cell.folder / value["items"]).read_bytes()
        if hashlib.sha256(packed).hexdigest() != value["items_sha256"]:
            raise ValueError(f"a changed {value['items']}")
        answers = _answers(json.loads(line) for line in gzip.decompress(packed).splitlines())
        protocol = Protocol.model_validate(value["protocol"])
        return Measured(answers, value["blocks"], protocol, value["measure"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: results are damaged, got %r; they are measured again", cell.result, error)
        return None


def _answers(items: Iterable[dict[str, Any]]) -> Answers:
    answers: Answers = {}
    for item in items:
        answers.setdefault(item["task"], {})[f"{item['subtask']}/{item['id']}"] = bool(item["correct"])
    return answers


def scores(cell: Cell, measured: Measured, ptq: Measured | None) -> VariantResult:
    """Means and standard errors of a variant, with paired differences to ptq where it is known."""
    return VariantResult(
        variant=cell.variant,
        run_id=cell.source.name if cell.source else None,
        tasks={
            task: task_score(answers, ptq.answers.get(task) if ptq else None)
            for task, answers in measured.answers.items()
        },
        text=text_score(measured.blocks, ptq.blocks if ptq else None) if measured.blocks else None,
    )


def task_score(answers: dict[str, bool], reference: dict[str, bool] | None) -> TaskScore:
    """Accuracy over all items of a task (subtasks weigh by their size), and items decided unlike ptq."""
    mean, se = accuracy(list(answers.values()))
    pair: tuple[int, int] | tuple[None, None] = (None, None)
    if reference and reference.keys() == answers.keys():
        pair = discordant(list(answers.values()), [reference[item] for item in answers])
    return TaskScore(mean, se, len(answers), *pair)


def text_score(blocks: BlockSums, reference: BlockSums | None) -> TextScore:
    """Mean NLL and KL per token; paired differences where the reference was cut alike. Raises ValueError."""
    nll, kl = _blocks(blocks, "nll"), _blocks(blocks, "kl")
    estimates = [*block_bootstrap(nll), *block_bootstrap(kl)]
    if reference and reference["tokens"] == blocks["tokens"]:
        estimates += paired_bootstrap(nll, _blocks(reference, "nll"))
        estimates += paired_bootstrap(kl, _blocks(reference, "kl"))
    if not math.isfinite(estimates[0]):
        raise ValueError("text: scores must be finite, got nan; measure again")
    return TextScore(int(sum(blocks["tokens"])), *estimates)


def _blocks(blocks: BlockSums, name: str) -> Blocks:
    import numpy as np

    return Blocks(np.asarray(blocks[name]), np.asarray(blocks["tokens"]))
