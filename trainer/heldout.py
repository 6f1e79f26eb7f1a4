"""Held-out KL and perplexity while a run trains, and when it should stop: `--eval-steps`.

The rows are those no run is trained on (`is_heldout`), so figures of different runs on one dataset compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trainer.config import TrainConfig
from trainer.data import DataError, Example, Rows, collate, examples_of, is_heldout, micro_batches
from trainer.perplexity import log_probs, row_chunks
from trainer.text import split_topics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainer.session import Session


def heldout_examples(rows: Rows, tokenizer: PreTrainedTokenizerBase, config: TrainConfig) -> list[Example]:
    """The first `eval_rows` examples that are held out, in the dataset's order; [] where none are asked for.

    Raises DataError when the dataset holds none.
    """
    if not config.eval_steps:
        return []
    if config.dataset_name == "pydoc_topics":
        return examples_of({"text": split_topics()[1]}, tokenizer, config)[: config.eval_rows]
    found: list[Example] = []
    for index in range(len(rows)):
        row = dict(rows[index])
        if not is_heldout(row):
            continue
        try:
            found += examples_of(row, tokenizer, config)
        except DataError:
            continue
        if len(found) >= config.eval_rows:
            break
    if not found:
        raise DataError(
            f"eval_steps: needs held-out rows, got none in the {len(rows)} of {config.dataset_name}; "
            "give a larger dataset, or 0"
        )
    return found[: config.eval_rows]


@torch.no_grad()
def measure(session: Session) -> dict[str, float]:
    """KL(teacher ‖ student) in nats a token and perplexity of the data's completions.

    The processes share whole batches, whose sums are added up in one order: no bit depends on their number.
    """
    config, student, world = session.config, session.student, session.world
    size = max(1, config.per_device_train_batch_size // session.place.micro_batch_split)
    pad = session.tokenizer.pad_token_id or 0
    own: list[tuple[float, float, int]] = []
    for part in world.share(list(micro_batches(session.heldout, size))):
        session.watchdog.beat()  # no safe point: the step's update is made, its line is not yet written
        batch = collate([(example.prompt, example.completion) for example in part], pad, world.device)
        targets_N = batch.ids_BT.roll(-1, dims=1)[batch.predicts_BT]
        teacher_NH, student_NH = (
            student.hidden(batch.ids_BT, mode=mode)[batch.predicts_BT] for mode in ("teacher", "student")
        )
        kl, nll = 0.0, 0.0
        for rows in row_chunks(len(targets_N), len(student.head("student"))):
            log_p_NV = log_probs(teacher_NH[rows], student.head("teacher"))
            log_s_NV = log_probs(student_NH[rows], student.head("student"))
            nll -= float(log_s_NV.gather(1, targets_N[rows, None]).sum(dtype=torch.float64))
            kl += float((log_p_NV.exp() * (log_p_NV - log_s_NV)).sum(dtype=torch.float64))
        own.append((kl, nll, len(targets_N)))
    kl, nll, tokens = map(sum, zip(*world.collect(own), strict=True))
    return {"kl": kl / tokens, "ppl": math.exp(nll / tokens), "tokens": tokens}


def record(session: Session, metrics: Mapping[str, Any]) -> None:
    """Take in a step's line of metrics that holds a held-out KL, and keep LoRA if it is the best so far."""
    session.evaluations.append(dict(metrics))
    if session.config.early_stopping_patience and best_step(session.evaluations) == metrics["step"]:
        session.best = {name: part.clone() for name, part in session.student.lora_tensors().items()}


def best_step(evaluations: Sequence[Mapping[str, Any]]) -> int | None:
    """The step of the least held-out KL, the earliest of equals; None without any."""
    best = min(evaluations, key=lambda line: line["heldout"]["kl"], default=None)
    return None if best is None else int(best["step"])


def is_over(evaluations: Sequence[Mapping[str, Any]], patience: int) -> bool:
    """Whether the last `patience` evaluations brought nothing better; never for patience 0."""
    steps = [line["step"] for line in evaluations]
    best = best_step(evaluations)
    return bool(patience) and best is not None and len(steps) - 1 - steps.index(best) >= patience
