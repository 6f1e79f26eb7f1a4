"""One row of the comparison with TRL: a trainer in a process of its own, which runs a step when told to.

`python -m bench.trainer_row '{"row": …}'`: a JSON line when it is loaded and one for each step; each line
on stdin asks for one more step, the end of stdin ends it. Memory: peak resident set (VmHWM; on CUDA the
allocator's peak) since loading was done, less what was resident then, with every weight touched.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

ROWS = {
    "gkd": "TRL GKD, torchao fake-quantised student",
    "gkd-folded": "TRL GKD, student's base quantised once (fair)",
    "distillation": "TRL Distillation, student's base quantised once",
    "ours": "orch",
    "ours-checkpointing": "orch, gradient checkpointing",
}


class Enough(Exception):
    """No further step is wanted."""


class Gate:
    """Stands at the end of each optimiser step: says what the step took, waits for the word to go on."""

    def __init__(self, device: str, answers: TextIO, words: TextIO) -> None:
        self._device, self._answers, self._words = device, answers, words
        self.parts: dict[str, float] = {}
        self.tokens = 0

    def loaded(self, models: Sequence[Any]) -> None:
        """Everything is in memory: from here on memory counts. Waits for the first word."""
        for model in models:  # weights mapped from files are resident once they are read
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.sum()
        gc.collect()
        if self._device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._base_mib = torch.cuda.memory_allocated() / 2**20
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
            self._base_mib = _status_mib("VmRSS")
        self._wait({"loaded_mib": self._base_mib})

    def __call__(self, loss: float | None = None) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
            peak_mib = torch.cuda.max_memory_allocated() / 2**20
        else:
            peak_mib = _status_mib("VmHWM")
        self._wait(
            {
                "seconds": time.perf_counter() - self._start,
                "cpu_s": time.process_time() - self._cpu,
                "parts": self.parts,
                "tokens": self.tokens,
                "loss": loss,
                "above_loaded_mib": peak_mib - self._base_mib,
            }
        )

    def _wait(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
        if not self._words.readline():
            raise Enough
        self.parts, self.tokens = {}, 0
        self._start, self._cpu = time.perf_counter(), time.process_time()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose seconds count as this part of the step."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - start

        return call


def _status_mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def run(row: str, settings: dict[str, Any], device: str, gate: Gate, folder: Path) -> None:
    """Load the row's trainer and run its steps until no more are wanted."""
    from trainer.config import TrainConfig

    config = TrainConfig(**settings)
    if row.startswith("ours"):
        if row == "ours-checkpointing":
            config = config.model_copy(update={"gradient_checkpointing": True})
        _ours(config, device, gate, folder)
    else:
        _trl(row, config, device, gate, folder)


def _ours(config: Any, device: str, gate: Gate, folder: Path) -> None:
    import torch

    from trainer.attempt import StopSignal
    from trainer.config import TrainPlace
    from trainer.distributed import World
    from trainer.setup import prepare
    from trainer.train import train

    place = TrainPlace(output_dir=str(folder / "run"), device=device)  # type: ignore[arg-type]
    session = prepare(config, place, World(0, 1, torch.device(device)), StopSignal())

    def step_done(metrics: dict[str, Any]) -> None:
        gate.parts, gate.tokens = dict(metrics["time"]), metrics["tokens"]
        gate(metrics["loss"])

    session.metrics.append = step_done  # type: ignore[method-assign, assignment]
    gate.loaded([session.student.model])
    train(session)


def _trl(row: str, config: Any, device: str, gate: Gate, folder: Path) -> None:
    from transformers import TrainerCallback

    from bench import rivals
    from trainer.data import TrainData, load_rows
    from trainer.models import load_model, load_tokenizer

    tokenizer = load_tokenizer(config.model_name)
    data = TrainData(load_rows(config), tokenizer, config)
    examples = [data[i] for i in range(config.global_batch * config.max_steps)]
    teacher = load_model(config.model_name, dtype=config.mixed_precision, device=device)
    student = load_model(config.model_name, dtype=config.mixed_precision, device=device)
    (rivals.fake_quantise if row == "gkd" else rivals.fold)(student, config)
    student = rivals.with_lora(student, config)

    class StepEnds(TrainerCallback):
        def on_step_end(self, *args: Any, **options: Any) -> None:
            gate()

    build = rivals.distillation if row == "distillation" else rivals.gkd
    trainer = build(
        config, teacher, student, tokenizer, examples, folder, device=device, callbacks=[StepEnds()]
    )
    (_watch_distillation if row == "distillation" else _watch_gkd)(trainer, gate)
    gate.loaded([teacher, student])
    trainer.train()


def _watch_gkd(trainer: Any, gate: Gate) -> None:
    """Seconds of each part of GKDTrainer's step, and its completion tokens."""
    jsd = trainer.generalized_jsd_loss

    def counted(*args: Any, labels: Any = None, **options: Any) -> Any:
        gate.tokens += int((labels != -100).sum())
        return jsd(*args, labels=labels, **options)

    trainer.generalized_jsd_loss = gate.timed("loss", counted)
    trainer.generate_on_policy_outputs = gate.timed("rollout", trainer.generate_on_policy_outputs)
    trainer.accelerator.backward = gate.timed("backward", trainer.accelerator.backward)
    trainer.compute_loss = gate.timed("forward and loss", trainer.compute_loss)


def _watch_distillation(trainer: Any, gate: Gate) -> None:
    """The same of DistillationTrainer's."""
    from trl.trainer import distillation_trainer as module

    chunked = module._chunked_divergence_loss

    def counted(*args: Any, **options: Any) -> Any:
        result = chunked(*args, **options)
        gate.tokens += int(result[2])
        return result

    module._chunked_divergence_loss = gate.timed("loss", counted)
    trainer._generate_single_turn = gate.timed("rollout", trainer._generate_single_turn)
    trainer.accelerator.backward = gate.timed("backward", trainer.accelerator.backward)
    trainer.compute_loss = gate.timed("forward and loss", trainer.compute_loss)


def main() -> int:
    """Answers on what was stdout; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.argv[1])
    gate = Gate(request["device"], answers, sys.stdin)
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as folder:
        try:
            run(request["row"], request["settings"], request["device"], gate, Path(folder))
        except Enough:
            return 0
    raise RuntimeError("the trainer ended before it was told to; give it more steps")


if __name__ == "__main__":
    sys.exit(main())
