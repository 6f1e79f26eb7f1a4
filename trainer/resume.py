"""A run's way to its checkpoints and back: same metrics, same adapter, as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from trainer import checkpoint, endings
from trainer.flags import UsageError
from trainer.session import Session
from trainer.settings import digest


def resume(session: Session, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, float]]:
    """Put the newest good checkpoint in place; returns (steps done, totals so far)."""
    folder, student = session.folder, session.student
    found = checkpoint.load_newest(folder, digest(session.config)) if session.place.resume else None
    _check_all_found(session, found.step if found else 0)
    if found and found.codes_sha256 != student.codes_sha256:
        raise UsageError(
            f"{folder.root}: was trained on another base, got codes {found.codes_sha256[:12]} there and "
            f"{student.codes_sha256[:12]} now; bring the old model back or give another --output-dir"
        )
    if session.world.is_main:
        session.metrics.begin(found.metrics if found else b"")
    if found is None:
        return 0, {"tokens": 0.0, "rollout_tokens": 0.0, "seconds": 0.0, "loss": 0.0}
    student.load_lora(found.lora)
    lines = [json.loads(line) for line in found.metrics.splitlines()]
    session.evaluations[:] = [line for line in lines if "heldout" in line]
    session.endings = endings.total(endings.of_line(line) for line in lines)
    session.mismatch.resume(lines)
    if session.topk:
        session.topk.resume(lines)
    session.best.update(found.best)
    for name, parameter in zip(student.lora_tensors(), student.lora_parameters(), strict=True):
        optimizer.state[parameter] = {
            "step": torch.tensor(float(found.step)),
            "exp_avg": found.optimizer[f"{name}.exp_avg"].to(parameter.device),
            "exp_avg_sq": found.optimizer[f"{name}.exp_avg_sq"].to(parameter.device),
        }
    now = conditions(session)
    for change in checkpoint.changed_conditions(found.conditions, now):
        print_once(session, f"resumed under other conditions ({change}): not bit for bit the same run")
    print_once(session, f"resuming at step {found.step} of {session.config.max_steps}")
    return found.step, dict(found.totals)


def conditions(session: Session) -> dict[str, Any]:
    """What bit-exact resume depends on, besides the config."""
    place = session.place
    return {
        **checkpoint.conditions(session.world.size, session.world.device),
        "micro_batch_split": place.micro_batch_split,
        "deterministic": place.deterministic,
        "length_buckets": place.length_buckets,
        "rollout": session.rollouts.how,
    }


def print_once(session: Session, text: str) -> None:
    """Say something in the log, from one process alone."""
    if session.world.is_main:
        print(text, flush=True)  # noqa: T201 - the log of a run is its output


def _check_all_found(session: Session, step: int) -> None:
    """Raise RuntimeError unless every process found the same checkpoint: each reads the volume for itself."""
    world = session.world
    total = world.sum([float(step)])[0]
    if total != step * world.size:
        raise RuntimeError(
            f"{session.folder.root}: all processes must resume from one checkpoint, got step {step} in one "
            "of them and others elsewhere; run it again"
        )


def save(session: Session, step: int, optimizer: torch.optim.Optimizer, totals: Mapping[str, float]) -> None:
    """Publish a checkpoint after `step` steps; raises FenceLost when the folder is another attempt's."""
    if not session.world.is_main:
        return
    moments = {
        f"{name}.{key}": optimizer.state[parameter][key]
        for name, parameter in zip(
            session.student.lora_tensors(), session.student.lora_parameters(), strict=True
        )
        for key in ("exp_avg", "exp_avg_sq")
    }
    state = checkpoint.State(
        step=step,
        lora=session.student.lora_tensors(),
        optimizer=moments,
        totals=totals,
        metrics=session.metrics.content,
        codes_sha256=session.student.codes_sha256,
        conditions=conditions(session),
        best=session.best,
    )
    checkpoint.save(session.fence, session.folder, state, session.config, digest(session.config))
