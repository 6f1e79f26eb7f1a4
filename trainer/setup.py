"""From settings to a Session: folder taken, model loaded and quantised, data opened."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from trainer.attempt import StopSignal, Watchdog, write_record
from trainer.config import TrainConfig, TrainPlace
from trainer.data import TrainData, load_rows
from trainer.distributed import World
from trainer.fence import Fence
from trainer.folder import run_folder
from trainer.graphs import Graphs
from trainer.heldout import heldout_examples
from trainer.layout import RunFolder
from trainer.loss_kernel import choose_kernel
from trainer.metrics import Metrics
from trainer.models import load_model, load_tokenizer, model_fingerprint
from trainer.results import ExitCode, Record
from trainer.rollout import Rollouts, stop_tokens
from trainer.session import Session
from trainer.settings import digest
from trainer.student import build_student
from trainer.teacher_cache import TeacherCompletions
from trainer.teacher_topk import TeacherTopK
from trainer.vllm_rollouts import VllmRollouts, check_served


def prepare(config: TrainConfig, place: TrainPlace, world: World, stop: StopSignal) -> Session:
    """Load everything a run needs and take its folder."""
    torch.manual_seed(config.seed)
    if place.deterministic:
        torch.use_deterministic_algorithms(True)
    kernel = choose_kernel(place.loss_kernel, world.device)
    if place.rollout == "vllm":
        check_served(config, world.device.type)
    folder = run_folder(config, place)
    models_dir = Path(place.models_dir) if place.models_dir else None
    tokenizer = load_tokenizer(config.model_name, config.model_revision, models_dir)
    watchdog = _watchdog(place, config)

    def check() -> None:
        watchdog.beat()
        # Between steps the processes stop together; here each may stop for itself before they meet.
        if world.size == 1:
            stop.check()

    rows = load_rows(config)
    data = TrainData(rows, tokenizer, config, check)
    data[config.global_batch - 1]  # bad data is said before a model is loaded
    heldout = heldout_examples(rows, tokenizer, config)
    model = load_model(
        config.model_name, config.model_revision, config.mixed_precision, models_dir, world.device
    )
    student = build_student(model, config)
    stops = stop_tokens(student, tokenizer.eos_token_id)
    graphs = Graphs() if place.cuda_graphs and world.device.type == "cuda" else None
    vllm = VllmRollouts(student, place.vllm_memory) if place.rollout == "vllm" else None
    rollouts = Rollouts(student, place.rollout, graphs, vllm)
    fence = Fence(folder)
    teacher_root, teacher = _teacher_root(folder), ""
    if config.seq_kd or config.teacher_topk:
        teacher = model_fingerprint(config.model_name, config.model_revision, models_dir)
    return Session(
        config=config,
        place=place,
        folder=folder,
        world=world,
        student=student,
        tokenizer=tokenizer,
        data=data,
        heldout=heldout,
        stops=stops,
        rollouts=rollouts,
        teacher=TeacherCompletions(rollouts, config, stops, teacher_root, teacher),
        topk=TeacherTopK(student, config, teacher_root, teacher) if config.teacher_topk else None,
        fence=fence,
        metrics=Metrics(folder.metrics, fence),
        stop=stop,
        watchdog=watchdog,
        kernel=kernel,
    )


def _teacher_root(folder: RunFolder) -> Path:
    dump = Path(os.environ.get("ORCH_DUMP", "")) if os.environ.get("ORCH_DUMP") else folder.root.parent.parent
    return dump / ".teacher"


def _watchdog(place: TrainPlace, config: TrainConfig) -> Watchdog:
    def on_stall(what: str) -> None:
        record = Record(
            stage="train",
            status="failed",
            exit_code=ExitCode.STALLED,
            run_id=place.run_id,
            config_digest=digest(config),
            error=what,
        )
        write_record(record)

    return Watchdog(place.stall_minutes * 60, on_stall)
