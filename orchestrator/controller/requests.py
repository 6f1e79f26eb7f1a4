"""Which Jobs there can be and what each is asked to do: the trainer's arguments, made from checked settings.

Pure. A training is named by its run; a fetch, baseline or evaluation by the hash of what it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from orchestrator.controller.observed import EvalRequest, Unit
from orchestrator.controller.retry import Overrides
from orchestrator.render import DUMP_MOUNT, MODELS_MOUNT, JobRequest
from orchestrator.sweep.expand import Run
from orchestrator.sweep.naming import job_name, run_id
from orchestrator.sweep.spec import EvalSpec, Resources, Sweep
from trainer.config import (
    OWN_TASKS,
    EvalConfig,
    EvalPlace,
    FetchConfig,
    ModelSettings,
    TrainConfig,
    TrainPlace,
)
from trainer.settings import digest, to_flags

BASELINES_MOUNT = f"{DUMP_MOUNT}/.baselines"


@dataclass(frozen=True)
class Measurement:
    """What one eval Job measures: adapters of `runs` on their common base (no runs: the baselines alone)."""

    sweep: str
    protocol: str  # an EvalSpec as JSON: hashable, so that names are computed once
    base: str  # ModelSettings as JSON, for the same reason
    runs: tuple[str, ...] = ()

    @property
    def unit(self) -> Unit:
        return _eval_unit(self)

    @property
    def config(self) -> EvalConfig:
        return _eval_config(self)


def base_of(config: TrainConfig) -> str:
    """The teacher and the quantised base of a run: adapters are measured together only on one base."""
    return ModelSettings(
        **{name: getattr(config, name) for name in ModelSettings.model_fields}
    ).model_dump_json()


def protocols(spec: EvalSpec, requests: list[EvalRequest]) -> tuple[str, ...]:
    """The distinct ways in which every adapter is measured: `spec.eval`, then what was asked for besides.

    A request that only leaves baselines out of an earlier one adds nothing.
    """
    wanted = [spec] if spec.enabled else []
    for request in requests:
        changes: dict[str, object] = {"enabled": True}
        if request.tasks is not None:
            changes["tasks"] = request.tasks
        if request.limit is not None:
            changes["limit"] = request.limit
        if not request.evalTeacher:
            changes["baselines"] = [name for name in spec.baselines if name != "teacher"]
        one = spec.model_copy(update=changes)
        if not any(_covers(other, one) for other in wanted):
            wanted.append(one)
    return tuple(one.model_dump_json() for one in wanted)


def _covers(other: EvalSpec, one: EvalSpec) -> bool:
    same = other.model_copy(update={"baselines": one.baselines}) == one
    return same and set(one.baselines) <= set(other.baselines)


def fetch_of(config: TrainConfig) -> FetchConfig:
    """What a run needs on the volume: its model and its data."""
    return FetchConfig(**{name: getattr(config, name) for name in _FETCHED})


def measure_fetch(protocol: str) -> FetchConfig | None:
    """What an evaluation needs on the volume besides: text and task rows, as far as a hub has them."""
    spec = _protocol(protocol)
    text = "wikitext" if spec.perplexity == "wikitext" else None
    tasks = [] if spec.taskData else [task for task in spec.tasks if task not in OWN_TASKS]
    return FetchConfig(dataset_name=text, tasks=tasks) if text or tasks else None


@lru_cache(maxsize=1024)
def fetch_unit(fetch: FetchConfig) -> Unit:
    """The unit of work of a fetch, named by what it brings."""
    return Unit("fetch", run_id("fetch", digest(fetch)))


def train_request(sweep: Sweep, uid: str | None, run: Run, attempt: int, overrides: Overrides) -> JobRequest:
    """The Job of a run's training."""
    place = TrainPlace(
        output_dir=f"{DUMP_MOUNT}/{sweep.metadata.name}/{run.id}",
        run_id=run.id,
        tags=list(run.tags),
        models_dir=MODELS_MOUNT,
        micro_batch_split=overrides.micro_batch_split,
    )
    args = ("train", *to_flags(run.config), *to_flags(place))
    unit = Unit("train", run.id)
    return _request(sweep, uid, unit, attempt, args, run.digest, sweep.spec.resources, overrides)


def fetch_request(
    sweep: Sweep, uid: str | None, fetch: FetchConfig, attempt: int, overrides: Overrides
) -> JobRequest:
    """The Job that brings a model and a dataset to the volume; it needs no GPU."""
    unit = fetch_unit(fetch)
    args = ("fetch", *to_flags(fetch.model_copy(update={"models_dir": MODELS_MOUNT, "run_id": unit.id})))
    resources = sweep.spec.resources.model_copy(update={"gpus": 0, "gpuType": []})
    return _request(sweep, uid, unit, attempt, args, digest(fetch), resources, overrides)


def eval_request(
    sweep: Sweep, uid: str | None, what: Measurement, attempt: int, overrides: Overrides
) -> JobRequest:
    """The Job of an evaluation: a process for each GPU, and on a CPU one."""
    gpus = sweep.spec.eval.gpus if sweep.spec.resources.gpus else 0
    place = EvalPlace(
        output_dir=f"{DUMP_MOUNT}/{sweep.metadata.name}/{what.unit.id}",
        baselines_dir=BASELINES_MOUNT,
        models_dir=MODELS_MOUNT,
        run_id=what.unit.id,
        nproc=max(1, gpus),
    )
    args = ("eval", *to_flags(what.config), *to_flags(place))
    resources = sweep.spec.resources.model_copy(update={"gpus": gpus})
    return _request(sweep, uid, what.unit, attempt, args, digest(what.config), resources, overrides)


def _request(
    sweep: Sweep,
    uid: str | None,
    unit: Unit,
    attempt: int,
    args: tuple[str, ...],
    whole_digest: str,
    resources: Resources,
    overrides: Overrides,
) -> JobRequest:
    return JobRequest(
        sweep=sweep.metadata.name,
        sweep_uid=uid,
        stage=unit.stage,
        run_id=unit.id,
        attempt=attempt,
        args=args,
        digest=whole_digest,
        resources=resources,
        scheduling=sweep.spec.scheduling,
        memory=overrides.memory,
        avoid_nodes=overrides.avoid_nodes,
    )


def job_of(sweep: str, unit: Unit, attempt: int) -> str:
    """The name of an attempt's Job."""
    return job_name(sweep, unit.id, unit.stage, attempt)


_FETCHED = ("model_name", "model_revision", "dataset_name", "dataset_revision")


@lru_cache(maxsize=65536)
def _eval_unit(what: Measurement) -> Unit:
    stage = "eval" if what.runs else "baseline"
    return Unit("eval" if what.runs else "baseline", run_id(stage, digest(what.config)))


@lru_cache(maxsize=4096)
def _eval_config(what: Measurement) -> EvalConfig:
    spec = _protocol(what.protocol)
    return EvalConfig(
        **ModelSettings.model_validate_json(what.base).model_dump(),
        lora_paths=[f"{DUMP_MOUNT}/{what.sweep}/{run}" for run in what.runs],
        eval_teacher="teacher" in spec.baselines,
        eval_ptq="ptq" in spec.baselines,
        variants=spec.variants,
        tasks=spec.tasks,
        task_data=spec.taskData,
        limit=spec.limit,
        batch_size=spec.batchSize,
        perplexity_dataset=spec.perplexity,
        perplexity_tokens=spec.perplexityTokens,
    )


@lru_cache(maxsize=256)
def _protocol(protocol: str) -> EvalSpec:
    return EvalSpec.model_validate_json(protocol)
