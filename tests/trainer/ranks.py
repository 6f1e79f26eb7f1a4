"""One rank of test_distributed.py: python -m tests.trainer.ranks FOLDER RANK.

Runs each case as the ranks of 1, 2 and 4 processes in turn; the next size begins when all its ranks are here.
Writes <case>-<size>-<rank>.json: gradients after they were summed, sequences, losses, elements reduced.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer import train as loop
from trainer.attempt import StopSignal
from trainer.config import TrainConfig, TrainPlace
from trainer.distributed import World, leave_world
from trainer.setup import prepare

CASES = {"off": 0.0, "free": 0.5, "replayed": 0.5}
GLOBAL_BATCH, MICRO_BATCH = 8, 2


def main(folder: Path, rank: int) -> None:
    for size in (1, 2, 4):
        if rank >= size:
            continue
        if size > 1:
            store = f"file://{folder}/store-{size}"
            torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
        for case in CASES:
            seen = run(case, folder, World(rank, size, torch.device("cpu")))
            (folder / f"{case}-{size}-{rank}.json").write_text(json.dumps(seen))
        leave_world()


def run(case: str, folder: Path, world: World) -> dict[str, Any]:
    """What this rank sees of one training run."""
    model = folder / "model"
    config = TrainConfig(
        model_name=str(model),
        dataset_name=str(model / "rows.jsonl"),
        mixed_precision="fp32",
        group_size=32,
        lora_r=4,
        max_length=64,
        max_new_tokens=6,
        min_new_tokens=0,
        max_steps=3,
        # So small that the noise of the first step's sum cannot grow through Adam's division.
        learning_rate=1e-6,
        warmup_ratio=0.0,
        lmbda=CASES[case],
        nproc=world.size,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=GLOBAL_BATCH // MICRO_BATCH // world.size,
    )
    place = TrainPlace(output_dir=str(folder / f"{case}-{world.size}"))
    session = prepare(config, place, world, StopSignal())
    with torch.no_grad():  # with B zero the gradient of A would be zero too
        drawn = torch.Generator().manual_seed(1)
        for parameter in session.student.lora_parameters():
            parameter.normal_(std=0.05, generator=drawn)
    seen: dict[str, Any] = {"gradients": [], "sequences": [], "losses": [], "sampled": [], "travelled": []}
    real = session.rollouts.sample, loop._accumulate, World.sum_gradients, torch.distributed.all_reduce

    def sampled(prompts: Sequence[Any], draws: Any, sampler: Any, mode: Any, *rest: Any) -> Any:
        if mode != "rollout":  # the fixed prompts of the end
            return real[0](prompts, draws, sampler, mode, *rest)
        seen["sampled"].append(len(prompts))
        if case == "replayed":
            first = json.loads((folder / "free-1-0.json").read_text())["sequences"]
            by_sample = [{one[0]: one[3] for one in step} for step in first]
            return [by_sample[draw.step][draw.sample] for draw in draws]
        return real[0](prompts, draws, sampler, mode, *rest)

    def accumulated(session: Any, step: int, items: Any, clock: Any) -> Any:
        seen["sequences"].append([[i.sample, i.example.prompt, i.on_policy, i.completion] for i in items])
        tokens, loss = real[1](session, step, items, clock)
        seen["losses"].append(loss)
        return tokens, loss

    def summed(world: World, parameters: Any) -> None:
        real[2](world, parameters)
        seen["gradients"].append(torch.cat([p.grad.flatten() for p in parameters]).tolist())

    def reduced(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen["travelled"].append(tensor.numel())
        return real[3](tensor, *args, **options)

    session.rollouts.sample = sampled  # type: ignore[method-assign]
    loop._accumulate = accumulated
    World.sum_gradients, torch.distributed.all_reduce = summed, reduced  # type: ignore[method-assign]
    try:
        loop.train(session)
    finally:
        _, loop._accumulate, World.sum_gradients, torch.distributed.all_reduce = real  # type: ignore[method-assign]
    return seen


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
