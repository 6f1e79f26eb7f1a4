"""`python -m trainer export`: find the adapter, refuse what cannot be, write, read back, publish."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.bases import BASE_FIELDS, AdapterSource, check_codes, find_adapter, resolve_base
from trainer.config import ExportConfig, ExportFormat, ExportPlace, LoraOrder, TrainConfig
from trainer.durable import new_folder, read_object, write_bytes
from trainer.export.card import card, license_of
from trainer.export.manifest import holds, is_export, write_manifest
from trainer.export.rules import FORMATS, architecture_refusal, possible, refusal
from trainer.fetch import fetch_model
from trainer.flags import UsageError
from trainer.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ATTEMPT_ENV, EXPORT_CARD, RunFolder
from trainer.models import (
    PACKAGE_PREFIX,
    default_models_dir,
    find_package_file,
    local_path,
    resolve_device,
)
from trainer.results import Record
from trainer.settings import digest

if TYPE_CHECKING:
    from trainer.export.shipped import Format, Shipped

Fill = Callable[[Path], dict[str, float]]
"""Writes an export's files to a folder, reads them back, and returns what was measured."""


@dataclass(frozen=True)
class Job:
    """One export, known before anything is loaded."""

    kind: ExportFormat
    source: AdapterSource
    base: TrainConfig
    order: LoraOrder
    files: Mapping[str, bytes]
    target: Path

    @property
    def about(self) -> dict[str, Any]:
        """What it is: equal values, equal files."""
        base = self.base.model_dump(mode="json", include={*BASE_FIELDS, "mixed_precision"})
        return {
            "format": self.kind,
            "run": self.source.name,
            "adapter": {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()},
            "base": {**base, "lora_order": self.order},
            "codes_sha256": (self.source.run or {}).get("codes_sha256"),
        }


def export(config: ExportConfig, place: ExportPlace) -> Record:
    """Write an adapter in one format to its folder, which appears whole, and return the record.

    Raises UsageError and ModelError for the user's faults, all of settings before a model is loaded.
    """
    job = plan(config, place)
    if holds(job.target, job.about):
        print(f"{job.target}: done already, nothing to export")  # noqa: T201
    else:
        _write(job, place)
        print(f"{job.target}: {job.kind} of {job.source.name}")  # noqa: T201
    return Record(
        stage="export",
        status="done",
        exit_code=0,
        run_id=place.run_id,
        config_digest=digest(config),
        attempt=os.environ.get(ATTEMPT_ENV),
    )


def plan(config: ExportConfig, place: ExportPlace) -> Job:
    """What is to be done. Reads the adapter, loads nothing; raises UsageError."""
    source = _find(config)
    base = resolve_base(config, [source])
    order = source.lora_order
    if config.format is None:
        able = ", ".join(possible(base, order))
        raise UsageError(f"format: is not said, got none of {', '.join(FORMATS)}; this run can be {able}")
    fault = refusal(config.format, base, order)
    if fault:
        raise UsageError(fault)
    target = Path(place.output_dir) if place.output_dir else _default_target(source, config)
    if target.exists() and not is_export(target) and any(target.iterdir()):
        raise UsageError(f"output_dir: must be empty or an export, got {target}; give another folder")
    return Job(config.format, source, base, order, adapter_files(source), target)


def _find(config: ExportConfig) -> AdapterSource:
    if config.lora_path is None:
        raise UsageError("lora_path: nothing is exported, got no adapter; give --lora-path RUN_FOLDER")
    if config.checkpoint is not None:
        return find_adapter(str(RunFolder(Path(config.lora_path).expanduser()).checkpoint(config.checkpoint)))
    source = find_adapter(config.lora_path)
    if source.note:
        # What leaves the volume is a result, unless another was asked for.
        step = source.folder.name.removeprefix("checkpoint-")
        raise UsageError(
            f"lora_path: the run is not done, got {config.lora_path!r} without adapter/; "
            f"let it finish, or give --checkpoint {step}"
        )
    return source


def adapter_files(source: AdapterSource) -> dict[str, bytes]:
    """The adapter's files, read once; a run's result must be what its run.json says."""
    files = {name: (source.folder / name).read_bytes() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    is_result = source.home is not None and source.folder == RunFolder(source.home).adapter
    expected = (source.run or {}).get("adapter_sha256") if is_result else None
    found = hashlib.sha256(files[ADAPTER_WEIGHTS]).hexdigest()
    if expected not in (None, found):
        raise UsageError(
            f"lora_path: {source.folder / ADAPTER_WEIGHTS} changed since the run ended, got {found[:12]} "
            f"instead of {expected[:12]}; run `python -m trainer train` again, it publishes its result anew"
        )
    return files


def _default_target(source: AdapterSource, config: ExportConfig) -> Path:
    assert config.format is not None
    if source.home is not None:
        of = source.folder.name if source.folder.name.startswith("checkpoint-") else None
        return RunFolder(source.home).export(config.format, of)
    return _dump() / "solo" / f"export-{source.sha256()[:8]}" / config.format


def _dump() -> Path:
    return Path(os.environ.get("ORCH_DUMP") or "dump")


def _write(job: Job, place: ExportPlace) -> None:
    """Fill a folder aside, read it back, then let it appear under its name."""
    folder = _base_folder(job.base, Path(place.models_dir) if place.models_dir else None)
    fill = _adapter_alone(job) if job.kind == "peft" else _model(job, place, folder)
    with new_folder(job.target) as aside:
        figures = fill(aside)
        text = card(job, figures, _dump(), license_of(folder, gguf_source(job.base)))
        write_bytes(aside / EXPORT_CARD, text.encode())
        # safetensors writes files only their owner may read; the volume is shared.
        for file in aside.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        write_manifest(aside, job.about, figures)


def _base_folder(base: TrainConfig, models_dir: Path | None) -> Path | None:
    """Where the teacher's files lie, brought there if need be."""
    folder = local_path(base.model_name, base.model_revision, models_dir)
    if folder is None:
        fetch_model(base.model_name, base.model_revision, models_dir or default_models_dir())
        folder = local_path(base.model_name, base.model_revision, models_dir)
    return folder


def gguf_source(base: TrainConfig) -> Path | None:
    """The GGUF file that a teacher came from, if it did."""
    is_package = base.model_name.startswith(PACKAGE_PREFIX)
    return find_package_file(base.model_name).file if is_package else None


def _adapter_alone(job: Job) -> Fill:
    from trainer.adapter import load_adapter
    from trainer.export.checkpoint import check_adapter, write_adapter

    try:
        adapter = load_adapter(job.source.folder)
    except ValueError as error:
        raise UsageError(str(error)) from error

    def fill(aside: Path) -> dict[str, float]:
        write_adapter(job.files, aside)
        check_adapter(adapter, aside)
        return {}

    return fill


def _model(job: Job, place: ExportPlace, folder: Path | None) -> Fill:
    """Loads the trained weights; what GGUF has no words for is refused before."""
    if job.kind.startswith("gguf"):
        fault = architecture_refusal(read_object(folder / "config.json")) if folder else None
        if fault:
            raise UsageError(fault)
    shipped = _shipped(job, place)
    form = _format(job.kind)

    def fill(aside: Path) -> dict[str, float]:
        form.write(shipped, aside)
        return form.check(shipped, aside)

    return fill


def _format(kind: ExportFormat) -> Format:
    if kind in ("gguf", "gguf-lora"):
        from trainer.export.gguf_files import MODEL, WITH_ADAPTER

        return MODEL if kind == "gguf" else WITH_ADAPTER
    from trainer.export.checkpoint import BF16, PACKED

    return BF16 if kind == "bf16" else PACKED


def _shipped(job: Job, place: ExportPlace) -> Shipped:
    from trainer.adapter import load_adapter
    from trainer.export.shipped import Shipped
    from trainer.models import load_model, load_tokenizer
    from trainer.student import build_student

    base, models_dir = job.base, Path(place.models_dir) if place.models_dir else None
    device = resolve_device(place.device)
    model = load_model(base.model_name, base.model_revision, base.mixed_precision, models_dir, device)
    tokenizer = load_tokenizer(base.model_name, base.model_revision, models_dir)
    try:
        student = build_student(model, base)
        check_codes([job.source], student.codes_sha256)
        adapter = load_adapter(job.source.folder)
        student.set_adapter(adapter, job.order)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"lora_path: {job.source.given} does not fit its base\n{error}") from error
    if adapter_files(job.source) != job.files:
        raise UsageError(f"lora_path: {job.source.given} changed while it was read; export again")
    return Shipped(student, adapter, job.files, job.order, tokenizer, gguf_source(base))
