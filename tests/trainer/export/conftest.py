"""Runs with a tiny model and an adapter that does something, in either order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from trainer.adapter import save_adapter
from trainer.config import ExportConfig, ExportPlace, TrainConfig
from trainer.durable import write_json
from trainer.layout import ADAPTER_WEIGHTS, RunFolder
from trainer.models import load_model
from trainer.student import Student, build_student

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def bases(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A folder with the saved models `llama` and `qwen3`."""
    root = tmp_path_factory.mktemp("bases")
    for kind in ("llama", "qwen3"):
        make_model(kind, seed=3).save_pretrained(root / kind)
        tiny_tokenizer.save_pretrained(root / kind)
    return root


Made = tuple[RunFolder, Student]


@pytest.fixture
def make_run(tmp_path: Path, bases: Path) -> Callable[..., Made]:
    """make_run(kind, order, **TrainConfig fields): a done run's folder and the student as it was trained."""

    def make(kind: str = "llama", order: str = "outside", **fields: Any) -> Made:
        usual = {"group_size": 32, "lora_r": 4, "mixed_precision": "bf16", "model_name": str(bases / kind)}
        config = TrainConfig(**{**usual, **fields})
        model = load_model(config.model_name, dtype=config.mixed_precision)
        student = build_student(model, config)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in student.lora_parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        run = RunFolder(tmp_path / "dump" / "sweep" / f"{kind}-{order}")
        run.adapter.mkdir(parents=True)
        save_adapter(student.lora_tensors(), run.adapter, config)
        about = {
            "run_id": "toy",
            "config": {**config.model_dump(mode="json"), "lora_order": order},
            "codes_sha256": student.codes_sha256,
            "adapter_sha256": hashlib.sha256((run.adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest(),
        }
        write_json(run.run, about)
        return run, student

    return make


@pytest.fixture
def export_run() -> Callable[..., Path]:
    """export_run(run, format): the folder that was written."""
    from trainer.export.stage import export

    def write(run: RunFolder, kind: Any) -> Path:
        record = export(ExportConfig(lora_path=str(run.root), format=kind), ExportPlace(device="cpu"))
        assert (record.stage, record.status, record.exit_code) == ("export", "done", 0)
        return run.export(kind)

    return write


@pytest.fixture
def ids_BT() -> torch.Tensor:
    return torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(3))
