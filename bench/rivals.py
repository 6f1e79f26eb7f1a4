"""TRL's distillation trainers on our data, LoRA and quantised base: what ours is compared with.

Only what a user can set is set: nothing of TRL is patched here. Prompts and completions come as token ids,
so that every trainer sees the same ones whatever it makes of text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.data import Example
from trainer.quant import quantise_weight, quantised_linears


def fold(model: nn.Module, config: TrainConfig) -> None:
    """Replace each W by Q(W) in place, once: the student's base as ours has it (the fair rival)."""
    for linear in quantised_linears(model, config.quantize_lm_head).values():
        quantised = quantise_weight(linear.weight, config.quant_type, config.group_size, config.qparams_dtype)
        linear.weight.data.copy_(quantised.weight)


def fake_quantise(model: nn.Module, config: TrainConfig) -> None:
    """torchao's way to train for int4: W is quantised anew in each forward pass."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_
    from torchao.quantization.qat import QATConfig

    wanted = quantised_linears(model, config.quantize_lm_head)
    base = Int4WeightOnlyConfig(group_size=config.group_size)
    quantize_(model, QATConfig(base, step="prepare"), filter_fn=lambda module, name: name in wanted)


def with_lora(model: Any, config: TrainConfig, initial: Mapping[str, Tensor] | None = None) -> Any:
    """PEFT's LoRA on the decoder's linears; `initial`: A and B as `Student.lora_tensors` names them."""
    from peft import LoraConfig, get_peft_model

    names = sorted({name.rpartition(".")[2] for name in quantised_linears(model)})
    settings = LoraConfig(
        r=config.lora_r,
        lora_alpha=round(config.lora_scale * config.lora_r),
        lora_dropout=0.0,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, settings)
    for name, value in (initial or {}).items():
        lora_weight(wrapped, name).data.copy_(value)
    return wrapped


def lora_weight(wrapped: Any, name: str) -> nn.Parameter:
    """PEFT's parameter for a name of ours, `model.layers.0.mlp.up_proj.lora_A`."""
    module, _, part = name.rpartition(".")
    parameter: nn.Parameter = wrapped.get_submodule(f"base_model.model.{module}.{part}.default").weight
    return parameter


def common_arguments(config: TrainConfig, folder: Path, device: str) -> dict[str, Any]:
    """TrainingArguments that mean what `config` means: same batch, optimiser, schedule, clipping, order."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": config.warmup_ratio,  # below 1 it is a share in transformers 5
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch",
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": config.mixed_precision == "bf16",  # TRL's default: autocast around a bf16 model
        "seed": config.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "beta": config.beta,
    }


def gkd(
    config: TrainConfig,
    teacher: Any,
    student: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    folder: Path,
    *,
    device: str = "cpu",
    callbacks: Sequence[Any] = (),
    kind: type[Any] | None = None,
    **changes: Any,
) -> Any:
    """trl.experimental.gkd.GKDTrainer (or `kind`, a subclass) over `examples`, in their order."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    arguments = common_arguments(config, folder, device) | {
        "train_sampling_strategy": "sequential",
        "lmbda": config.lmbda,
        "temperature": config.temperature,
        "max_new_tokens": config.max_new_tokens,
    }
    trainer = (kind or GKDTrainer)(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(**arguments | changes),
        data_collator=IdsCollator(examples, tokenizer.pad_token_id),
        train_dataset=Dataset.from_dict({"row": list(range(len(examples)))}),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    # A field of GenerationConfig that GKDConfig has no name for.
    trainer.generation_config.min_new_tokens = config.min_new_tokens
    return trainer


class IdsCollator:
    """What TRL's ChatML collator returns, made of token ids: padded on the left, labels on completions."""

    def __init__(self, examples: Sequence[Example], pad: int) -> None:
        self.examples, self.pad = examples, pad

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        chosen = [self.examples[row["row"]] for row in rows]
        whole = [[*one.prompt, *one.completion] for one in chosen]
        labels = [[*[-100] * len(one.prompt), *one.completion] for one in chosen]
        prompts = [list(one.prompt) for one in chosen]
        ones = [[1] * len(ids) for ids in whole]
        return {
            "input_ids": _left(whole, self.pad),
            "attention_mask": _left(ones, 0),
            "labels": _left(labels, -100),
            "prompts": _left(prompts, self.pad),
            "prompt_attention_mask": _left([[1] * len(ids) for ids in prompts], 0),
        }


def _left(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[fill] * (longest - len(row)) + list(row) for row in rows])


def distillation(
    config: TrainConfig,
    teacher: Any,
    student: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    folder: Path,
    *,
    device: str = "cpu",
    callbacks: Sequence[Any] = (),
) -> Any:
    """trl.DistillationTrainer, which is on-policy alone; its prompts are looked up by their number."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    class ByNumber(DistillationTrainer):
        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [list(examples[int(number)].prompt) for number in prompts], None, {}

    arguments = common_arguments(config, folder, device) | {
        "shuffle_dataset": False,
        "temperature": config.temperature,
        "max_completion_length": config.max_new_tokens,
        "generation_kwargs": {"min_new_tokens": config.min_new_tokens},
        "disable_dropout": True,
    }
    return ByNumber(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(**arguments),
        train_dataset=Dataset.from_dict({"prompt": [str(number) for number in range(len(examples))]}),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
