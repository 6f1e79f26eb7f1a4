"""`orch plan`: what submitting a file would change and cost.

Pure but for `plan`, which reads what is submitted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.client.session import Session, Stored
from orchestrator.controller.outcome import AttemptRecord
from orchestrator.controller.plan import changes
from orchestrator.errors import NotFoundError
from orchestrator.sweep.expand import Run, expand
from orchestrator.sweep.load import load
from orchestrator.sweep.spec import Sweep
from trainer.config import TrainConfig

_SPEED_IS_ALIKE = {
    *("seed", "max_steps", "learning_rate", "weight_decay", "warmup_ratio", "max_grad_norm", "beta"),
    *("temperature", "loss_temperature", "lora_alpha", "save_steps", "save_total_limit"),
    *("dataset_revision", "model_revision"),
}
"""Settings that do not decide how long a step takes."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of the file: `change` is + new, = exists, ~ changed; `tokens` is an upper bound; `seconds` an
    estimate of its training, None until a run of its shape was measured."""

    run: Run
    change: str
    state: str | None
    tokens: int
    seconds: float | None


@dataclass(frozen=True)
class SweepPlan:
    """What submitting a file means; `removed` are runs that are stored and no longer in it."""

    sweep: Sweep
    runs: tuple[PlannedRun, ...]
    removed: tuple[Run, ...]

    @property
    def gpu_hours(self) -> float | None:
        """Estimate of the training that is still to do; None when a run to do was never measured."""
        todo = [one.seconds for one in self.runs if one.state not in ("done", "trained", "evaluating")]
        known = [seconds for seconds in todo if seconds is not None]
        return sum(known) / 3600 * self.sweep.spec.resources.gpus if len(known) == len(todo) else None


def plan(session: Session, file: Path) -> SweepPlan:
    """The plan of a file against what is submitted under its sweep's name. SweepError with every fault."""
    sweep = load(file)
    runs = expand(sweep, str(file))
    try:
        stored: Stored | None = session.sweep(sweep.metadata.name)
    except NotFoundError:
        stored = None
    states = {one.run.id: one for one in session.states(stored)} if stored else {}
    speeds = step_seconds(_measured(session))
    change = changes(runs, stored.runs if stored else (), states)
    planned = tuple(
        PlannedRun(
            run=run,
            change=change[run.id],
            state=states[run.id].state if run.id in states else None,
            tokens=most_tokens(run.config),
            seconds=estimate(run.config, speeds),
        )
        for run in runs
    )
    kept = {run.id for run in runs}
    removed = tuple(run for run in (stored.runs if stored else ()) if run.id not in kept)
    return SweepPlan(sweep, planned, removed)


def _measured(session: Session) -> Iterable[tuple[TrainConfig, AttemptRecord]]:
    for stored in session.sweeps():
        configs = {run.id: run.config for run in stored.runs}
        for record in session.records(stored):
            if record.stage == "train" and record.run_id in configs:
                yield configs[record.run_id], record


def most_tokens(config: TrainConfig) -> int:
    """Upper bound of the tokens trained on: steps × global batch × longest sequence."""
    return config.max_steps * config.global_batch * config.max_length


def shape(config: TrainConfig) -> str:
    """What decides how long an optimiser step takes: equal for runs that are equally fast on one machine."""
    return json.dumps(config.model_dump(mode="json", exclude=_SPEED_IS_ALIKE), sort_keys=True)


def step_seconds(measured: Iterable[tuple[TrainConfig, AttemptRecord]]) -> dict[str, float]:
    """Mean seconds of an optimiser step by shape, over done trainings."""
    total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for config, record in measured:
        train = record.record.train if record.record and record.state == "done" else None
        steps = train.step - (train.resumed_from or 0) if train else 0
        if train and train.seconds > 0 and steps > 0:
            sums = total[shape(config)]
            sums[0] += train.seconds
            sums[1] += steps
    return {key: seconds / steps for key, (seconds, steps) in total.items()}


def estimate(config: TrainConfig, speeds: Mapping[str, float]) -> float | None:
    """Seconds of training, None when no run of this shape was measured."""
    speed = speeds.get(shape(config))
    return None if speed is None else speed * config.max_steps


def to_json(planned: SweepPlan) -> dict[str, Any]:
    """The plan as JSON values: every run with its config, every trainer field resolved."""
    return {
        "v": 1,
        "sweep": planned.sweep.metadata.name,
        "gpu_hours": planned.gpu_hours,
        "runs": [_run(one) for one in planned.runs],
        "removed": [run.id for run in planned.removed],
    }


def _run(one: PlannedRun) -> dict[str, Any]:
    return {
        "name": one.run.name,
        "id": one.run.id,
        "group": one.run.group,
        "tags": list(one.run.tags),
        "also": list(one.run.also),
        "change": one.change,
        "state": one.state,
        "steps": one.run.config.max_steps,
        "tokens_at_most": one.tokens,
        "seconds": one.seconds,
        "config": {
            **one.run.config.model_dump(mode="json"),
            "lora_alpha": one.run.config.lora_alpha or 2 * one.run.config.lora_r,
        },
    }


def counts(runs: Sequence[PlannedRun]) -> dict[str, int]:
    """How many runs are new, changed, and there already."""
    return {sign: sum(one.change == sign for one in runs) for sign in "+~="}
