"""What an evaluation measures, as one hash known before anything loads: equal hashes, comparable numbers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import EvalConfig, TrainConfig
from trainer.flags import UsageError
from trainer.layout import measure_key
from trainer.models import model_fingerprint
from trainer.results import Protocol
from trainer.tasks import source_sha256
from trainer.text import Text, load_text

VERSION = 1
"""Bumped when the same settings measure something else."""


@dataclass(frozen=True)
class Plan:
    """One evaluation's measure: which tasks, which text, and how results are named.

    sha256 names everything that decides a number; `protocol` is the part people read.
    """

    tasks: tuple[str, ...]
    text: Text | None
    protocol: Protocol
    sha256: str

    def key(self, adapter_sha256: str = "") -> str:
        """Folder name of results: of the baselines, or of one adapter (16 hex)."""
        return measure_key(self.sha256, adapter_sha256)


def plan(config: EvalConfig, base: TrainConfig, device: str, models_dir: Path | None) -> Plan:
    """The measure that `config` asks for on `base`. Reads texts and rows, loads no model.

    Raises UsageError or ModelError for what is not there.
    """
    tasks = tuple(dict.fromkeys(task for task in config.tasks if task != "none"))
    text = None if config.perplexity_dataset == "none" else load_text(config.perplexity_dataset)
    if text and config.stride >= config.window:
        raise UsageError(
            f"stride: must be below the window {config.window}, got {config.stride}; half of it is usual"
        )
    if not tasks and text is None:
        raise UsageError(
            "tasks: nothing is measured, got no task and no perplexity_dataset; give one of them"
        )
    task_data = Path(config.task_data).expanduser() if config.task_data else None
    if task_data and not task_data.is_dir():
        raise UsageError(
            f"task_data: no such folder, got {config.task_data!r}; give a folder of .jsonl files"
        )
    protocol = Protocol(
        model=base.model_name,
        quant=quant_label(base),
        dtype=base.mixed_precision,
        batch_size=config.batch_size,
        limit=config.limit,
        text=text.name if text else None,
        text_sha256=text.sha256 if text else None,
    )
    identity: dict[str, Any] = {
        "version": VERSION,
        "model": model_fingerprint(base.model_name, base.model_revision, models_dir),
        "device": device,
        "tasks": {task: source_sha256(task, task_data) for task in tasks},
        "harness": importlib.metadata.version("lm-eval") if tasks else None,
        **protocol.model_dump(exclude={"model"}),
        "text_tokens": [config.perplexity_tokens, config.window, config.stride] if text else None,
    }
    canonical = json.dumps(identity, sort_keys=True)
    return Plan(tasks, text, protocol, hashlib.sha256(canonical.encode()).hexdigest())


def quant_label(base: TrainConfig) -> str:
    """`int4 g64`, with what differs from the usual: `fp32 qparams`, `head`."""
    parts: list[str] = [base.quant_type]
    if base.quant_type.startswith("int4"):
        parts.append(f"g{base.group_size}")
        parts += ["fp32 qparams"] if base.qparams_dtype == "fp32" else []
        parts += [base.ptq_init] if base.ptq_init != "rtn" else []
    return " ".join([*parts, *(["head"] if base.quantize_lm_head else [])])
