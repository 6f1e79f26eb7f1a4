"""What --dry-run says: parameter counts, a memory estimate, and the first example with its loss mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.config import TrainConfig
from trainer.data import MIN_COMPLETION_ROOM
from trainer.jsd import chunk_rows_of

if TYPE_CHECKING:
    from trainer.session import Session


def describe(session: Session) -> str:
    """A page of text about the run that would start."""
    config = session.config
    trained = sum(parameter.numel() for parameter in session.student.lora_parameters())
    frozen = sum(parameter.numel() for parameter in session.student.model.parameters()) - trained
    parts = memory_estimate(session)
    lines = [
        f"model {config.model_name}: {frozen:,} frozen and {trained:,} trained parameters",
        f"base {config.quant_type}, codes {session.student.codes_sha256[:12]}",
        f"steps {config.max_steps}, {config.global_batch} sequences each, at most "
        f"{config.max_steps * config.global_batch * longest(config):,} tokens",
        "memory estimate, GiB: "
        + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        + f"; in all {sum(parts.values()) / 2**30:.2f}",
        f"data {config.dataset_name}: {session.data.seen} rows looked at, {session.data.dropped} dropped, "
        f"{session.data.heldout} held out",
        "first example (a token a line; * counts in the loss):",
    ]
    example = session.data[0]
    for mark, ids in ((" ", example.prompt), ("*", example.completion)):
        lines += [f"{mark} {token:>7} {session.tokenizer.decode([token])!r}" for token in ids]
    return "\n".join(lines)


def longest(config: TrainConfig) -> int:
    """The longest sequence: rollouts follow any prompt that leaves room in max_length, and go beyond it."""
    sampled = config.lmbda > 0 or config.seq_kd
    rollout = config.max_length - MIN_COMPLETION_ROOM + config.max_new_tokens
    return max(config.max_length, rollout if sampled else 0)


def memory_estimate(session: Session) -> dict[str, float]:
    """Bytes by part: weights as they lie in memory, AdamW in float32, activations and loss by formula.

    Activations: about 34 values of hidden width for each token and layer kept for the backward pass
    (Korthikanti et al. 2022, arXiv:2205.05198, eq. 1 without attention scores), one with checkpointing.
    """
    config, model = session.config, session.student.model
    text = model.config.get_text_config()
    width, layers, vocabulary = text.hidden_size, text.num_hidden_layers, text.vocab_size
    itemsize = 2 if config.mixed_precision == "bf16" else 4
    trained = sum(parameter.numel() for parameter in session.student.lora_parameters())
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    linears = sum(linear.base.numel() for linear in session.student.linears.values())
    tokens = config.per_device_train_batch_size // session.place.micro_batch_split * longest(config)
    kept = 1 if config.gradient_checkpointing else 34
    return {
        "teacher": frozen * itemsize,
        "student": linears * itemsize,
        "rollout copy": linears * itemsize if config.lmbda > 0 else 0,
        "LoRA and AdamW": trained * 4 * 4,
        "activations": tokens * layers * width * kept * itemsize / 2,
        "loss": 3 * chunk_rows_of(session.student.head("student")) * vocabulary * 4,
    }
