"""A run's way to its checkpoints and back: same metrics, same adapter, as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from trainer import checkpoint
from trainer.config import digest
from trainer.flags import UsageError
from trainer.layout import RunFolder, read_json, write_bytes
from trainer.session import Session


def resume(session: Session, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, float]]:
    """Put the newest good checkpoint in place; returns (steps done, totals so far)."""
    folder, student = session.folder, session.student
    found = checkpoint.load_newest(folder, digest(session.config)) if session.place.resume else None
    if session.world.is_main:
        _truncate_metrics(folder, found.step if found else 0)
    if found is None:
        return 0, {"tokens": 0.0, "rollout_tokens": 0.0, "seconds": 0.0, "loss": 0.0}
    before = (read_json(folder.run) or {}).get("codes_sha256", student.codes_sha256)
    if before != student.codes_sha256:
        raise UsageError(
            f"{folder.root}: was trained on another base, got codes {before[:12]} there and "
            f"{student.codes_sha256[:12]} now; bring the old model back or give another --output-dir"
        )
    student.load_lora(found.lora)
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
    }


def print_once(session: Session, text: str) -> None:
    """Say something in the log, from one process alone."""
    if session.world.is_main:
        print(text, flush=True)  # noqa: T201 - the log of a run is its output


def _truncate_metrics(folder: RunFolder, steps: int) -> None:
    """Keep the lines of steps that are in the checkpoint: the others will be written again."""
    if not folder.metrics.exists():
        return
    kept = []
    for line in folder.metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= steps:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            break
    write_bytes(folder.metrics, "".join(kept).encode())


def save(session: Session, step: int, optimizer: torch.optim.Optimizer, totals: Mapping[str, float]) -> None:
    """Publish a checkpoint after `step` steps; raises FenceLost when the folder is another attempt's."""
    if not session.world.is_main:
        return
    session.fence.check()
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
        conditions=conditions(session),
    )
    checkpoint.save(session.folder, state, session.config, digest(session.config))
