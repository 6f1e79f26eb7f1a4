"""Every trainer setting: what a run is, where it runs, how it is measured.

Torch-free. A run's identity is its TrainConfig and nothing else; places, devices and tags never enter it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from trainer.settings import Float, Int, Settings

QuantType = Literal["int4", "int4_sym", "bnb_nf4", "bnb_fp4", "none"]
Dtype = Literal["bf16", "fp32"]
LoraOrder = Literal["outside", "inside"]
RolloutEngine = Literal["auto", "native", "plain", "vllm"]
AdapterForm = Literal["adapter", "merged"]
ExportFormat = Literal["peft", "bf16", "compressed-tensors", "gguf", "gguf-lora"]
OWN_TASKS = frozenset({"everyday"})
"""Tasks that ship with the trainer: nothing is fetched for them."""
DEFAULT_TASKS = ["hellaswag", "arc_easy", "arc_challenge", "winogrande", "mmlu"]


class ModelSettings(Settings):
    """Which teacher, and how the student is made of it."""

    model_name: str = Field(
        "Qwen/Qwen3-4B-Instruct-2507",
        min_length=1,
        description="Teacher: a hub repository, a local folder, or package:NAME/FILE.gguf "
        "(a GGUF file inside an installed Python package, converted once).",
    )
    model_revision: str = Field("main", min_length=1, description="Hub revision of the teacher.")
    mixed_precision: Dtype = Field("bf16", description="Dtype the models compute in.")
    quant_type: QuantType = Field("int4", description="How the student's base is quantised.")
    group_size: Int = Field(128, ge=8, le=4096, description="int4: weights sharing one scale.")
    qparams_dtype: Dtype = Field(
        "bf16", description="int4: dtype of scale and zero point; bf16 is what int4 kernels hold."
    )
    quantize_lm_head: bool = Field(False, description="Quantise the output head too.")
    ptq_init: Literal["rtn", "mse"] = Field(
        "rtn",
        description="int4: range of a group; rtn: all of it, mse: the share that gives its weights the "
        "least squared error.",
    )

    @field_validator("ptq_init")
    @classmethod
    def _ranges_are_int4s(cls, value: str, info: ValidationInfo) -> str:
        if value == "mse" and not str(info.data.get("quant_type", "int4")).startswith("int4"):
            raise ValueError(f"mse chooses ranges of int4 groups, quant_type is {info.data['quant_type']}")
        return value


class TrainConfig(ModelSettings):
    """One run: everything that decides what is trained. Its digest is the run's identity."""

    dataset_name: str = Field(
        "allenai/tulu-3-sft-mixture",
        min_length=1,
        description="A hub dataset, a local .jsonl or .parquet file, or pydoc_topics "
        "(the English text every Python carries).",
    )
    dataset_revision: str = Field("main", min_length=1, description="Hub revision of the data.")
    dataset_split: str = Field("train", min_length=1, description="Split of a hub dataset.")
    max_length: Int = Field(1024, ge=8, description="Longest prompt + completion, in tokens.")
    prompt_length: Int = Field(
        32, ge=1, description="Rows of plain text: the first tokens that serve as the prompt."
    )
    seed: Int = Field(42, ge=0, lt=2**32, description="Seed of data order, λ draws and sampling.")
    nproc: Int = Field(1, ge=1, le=64, description="Processes (one per GPU); part of the batch.")
    max_steps: Int = Field(1000, ge=1, description="Optimiser steps.")
    per_device_train_batch_size: Int = Field(4, ge=1, description="Sequences per micro-batch.")
    gradient_accumulation_steps: Int = Field(2, ge=1, description="Micro-batches per step.")
    learning_rate: Float = Field(1e-5, gt=0, lt=1, description="Peak learning rate of AdamW.")
    weight_decay: Float = Field(0.0, ge=0, lt=1, description="Decoupled weight decay.")
    warmup_ratio: Float = Field(0.2, ge=0, le=1, description="Share of steps with rising rate.")
    max_grad_norm: Float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    lmbda: Float = Field(1.0, ge=0, le=1, description="Share of sequences the student samples.")
    beta: Float = Field(1.0, ge=0, le=1, description="0 forward KL, 1 reverse KL, between: JSD.")
    seq_kd: bool = Field(False, description="Off-policy completions are written by the teacher.")
    teacher_topk: Int = Field(
        0, ge=0, description="lmbda 0: of the teacher this many likeliest tokens, kept and shared; 0 for all."
    )
    temperature: Float = Field(0.9, gt=0, le=10, description="Sampling temperature of rollouts.")
    loss_temperature: Float = Field(1.0, gt=0, le=10, description="Temperature inside the loss.")
    max_new_tokens: Int = Field(128, ge=1, description="Longest rollout, in tokens.")
    min_new_tokens: Int = Field(
        16, ge=0, description="No end of turn before this many tokens (or max_new_tokens)."
    )
    allow_cut_rollouts: bool = Field(
        False, description="Go on where most of the first rollouts are cut off at max_new_tokens."
    )
    lora_r: Int = Field(32, ge=1, le=1024, description="Rank of the adapter.")
    lora_alpha: Int = Field(0, ge=0, description="LoRA scale is alpha / r; 0 means 2 r.")
    lora_order: LoraOrder = Field(
        "outside",
        description="outside trains Q(W)x + s·BAx (4-bit base plus adapter), inside Q(W + s·BA)x straight "
        "through (one merged 4-bit model).",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    base_memory: Literal["fast", "small"] = Field(
        "fast", description="small keeps 4-bit codes and dequantises a layer when it is used."
    )
    eval_steps: Int = Field(
        0, ge=0, description="Steps between held-out KL and perplexity (and after the last); 0 for none."
    )
    eval_rows: Int = Field(32, ge=1, description="Held-out examples they are taken on.")
    early_stopping_patience: Int = Field(
        0, ge=0, description="Stop after so many held-out KLs without a better one; the best is published."
    )
    save_steps: Int = Field(100, ge=1, description="Steps between checkpoints.")
    save_total_limit: Int = Field(3, ge=1, description="Checkpoints kept.")

    @field_validator("teacher_topk")
    @classmethod
    def _rows_are_the_datas(cls, value: int, info: ValidationInfo) -> int:
        if value and (info.data.get("lmbda", 0) > 0 or info.data.get("seq_kd")):
            raise ValueError(
                "is kept for the data's own completions alone, and others are trained on with "
                f"lmbda {info.data.get('lmbda')} and seq_kd {info.data.get('seq_kd')}; set lmbda 0 without "
                "seq_kd, or leave teacher_topk at 0"
            )
        return value

    @field_validator("early_stopping_patience")
    @classmethod
    def _needs_evaluations(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("eval_steps", 0):
            raise ValueError("needs held-out evaluations, eval_steps is 0")
        return value

    @property
    def effective_batch(self) -> int:
        """Sequences per optimiser step and process, as in the lab's bs16 and bs32."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def global_batch(self) -> int:
        """Sequences per optimiser step over all processes."""
        return self.effective_batch * self.nproc

    @property
    def lora_scale(self) -> float:
        """Factor on B·A: alpha / r."""
        return (self.lora_alpha or 2 * self.lora_r) / self.lora_r


class TrainPlace(Settings):
    """Where and how a run is executed; never part of its identity."""

    output_dir: str | None = Field(None, description="Run folder; default dump/solo/<run id>.")
    run_id: str | None = Field(None, description="Name of the run in its records.")
    resume: bool = Field(True, description="Go on from the newest good checkpoint.")
    tags: list[str] = Field(default_factory=list, description="Free labels, kept in run.json.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute.")
    models_dir: str | None = Field(None, description="Where fetched models lie.")
    micro_batch_split: Int = Field(1, ge=1, description="Parts of each micro-batch (out-of-memory remedy).")
    loss_kernel: Literal["auto", "torch", "triton"] = Field(
        "auto", description="auto: Triton's on CUDA if it agrees with torch's on the first rows."
    )
    stall_minutes: Float = Field(
        10.0, gt=0, description="Exit 77 after no progress for so long (or 20 steps)."
    )
    length_buckets: bool = Field(True, description="Micro-batches of like length: less padding.")
    rollout: RolloutEngine = Field(
        "auto",
        description="Who decodes: our decoder, its plain twin, or auto (plain where it must be); vllm for "
        "rollouts, where the image has it, and auto for the rest.",
    )
    vllm_memory: Float = Field(
        0.3, gt=0, lt=1, description="rollout vllm: share of the GPU's memory it may take while it writes."
    )
    cuda_graphs: bool = Field(True, description="CUDA: replay decode steps once they agree with plain ones.")
    deterministic: bool = Field(False, description="CUDA: refuse operations that vary by run.")


class BaseChoice(Settings):
    """On which quantised base adapters stand: their own run says it, flags fill in what no run says."""

    model_name: str | None = Field(None, description="Teacher; default: the adapters' own.")
    model_revision: str = Field("main", min_length=1, description="Hub revision of the teacher.")
    quant_type: QuantType | None = Field(
        None, description="Base of ptq; default: the adapters' own. A conflict is an error."
    )
    group_size: Int | None = Field(None, ge=8, description="int4 group; default: the adapters'.")
    qparams_dtype: Dtype | None = Field(None, description="Default: the adapters' own.")
    quantize_lm_head: bool | None = Field(None, description="Default: the adapters' own.")
    ptq_init: Literal["rtn", "mse"] | None = Field(None, description="Default: the adapters' own.")
    mixed_precision: Dtype | None = Field(None, description="Default: the adapters' own.")


class EvalConfig(BaseChoice):
    """What an evaluation measures, and on which models."""

    lora_paths: list[str] = Field(
        default_factory=list, description="Run folders, checkpoints or PEFT adapters to evaluate."
    )
    eval_teacher: bool = Field(True, description="Measure the teacher.")
    eval_ptq: bool = Field(True, description="Measure the quantised model without an adapter.")
    variants: list[AdapterForm] = Field(
        default=["adapter", "merged"],
        description="Forms of each adapter: as trained; merged and quantised again.",
    )
    tasks: list[str] = Field(
        default=DEFAULT_TASKS,
        description="lm-eval tasks, or local task files (.yaml); `none` for no task.",
    )
    task_data: str | None = Field(
        None, description="Folder with local copies of the tasks' rows, NAME.jsonl[.gz]."
    )
    limit: Int | None = Field(None, ge=1, description="Items per task; default all.")
    batch_size: Int = Field(32, ge=1, description="Fixed: scores depend on it in bf16.")
    perplexity_dataset: str = Field(
        "wikitext", description="wikitext, pydoc_topics, a local .txt file, or none."
    )
    perplexity_tokens: Int | None = Field(None, ge=256, description="Tokens of it; default all.")
    window: Int = Field(1024, ge=32, description="Perplexity window, in tokens.")
    stride: Int = Field(512, ge=16, description="Tokens each window adds.")


class EvalPlace(Settings):
    """Where an evaluation runs and where its results go; never part of what it measures."""

    output_dir: str | None = Field(None, description="Results folder; default dump/solo/eval-<hash>.")
    baselines_dir: str | None = Field(None, description="Shared teacher and ptq results.")
    run_id: str | None = Field(None, description="Name of the evaluation in its records.")
    tags: list[str] = Field(default=["eval"], description="Free labels.")
    nproc: Int = Field(
        1, ge=1, le=64, description="Processes (one per GPU) that share the work; no number depends on it."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute.")
    models_dir: str | None = Field(None, description="Where fetched models lie.")


class ExportConfig(BaseChoice):
    """Which adapter leaves the volume, and in which format."""

    lora_path: str | None = Field(None, description="Run folder, checkpoint or PEFT adapter to export.")
    format: ExportFormat | None = Field(None, description="What is written; see docs/export.md.")
    checkpoint: Int | None = Field(
        None, ge=1, description="Step of the run's checkpoint to export; default: its result."
    )


class ExportPlace(Settings):
    """Where an export is made and goes to."""

    output_dir: str | None = Field(None, description="Folder; default <run folder>/export/<format>.")
    run_id: str | None = Field(None, description="Name of the export in its records.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute.")
    models_dir: str | None = Field(None, description="Where fetched models lie.")


class ReportConfig(Settings):
    """Which sweeps are compared, and how."""

    sweeps: list[str] = Field(default_factory=list, description="Folders of sweeps: dump/SWEEP.")
    baselines: str | None = Field(None, description="Teacher and ptq; default: .baselines beside a sweep.")
    reference: str | None = Field(None, description="Arm that others are compared with; default: the best.")
    margin: Float = Field(0.03, gt=0, lt=1, description="Shares recovered that differ less count as alike.")
    forms: list[AdapterForm] = Field(default=["adapter", "merged"], description="Forms to compare.")
    output_dir: str = Field("dump/report", min_length=1, description="Folder of page, numbers and plots.")
    records: str | None = Field(None, description="Copy what the report is made from to this folder.")


class FetchConfig(Settings):
    """What a fetch brings to the volume, once per name and revision."""

    model_name: str | None = Field(None, description="As in train.")
    model_revision: str = Field("main", min_length=1, description="Hub revision of the model.")
    dataset_name: str | None = Field(None, description="As in train.")
    dataset_revision: str = Field("main", min_length=1, description="Hub revision of the data.")
    tasks: list[str] = Field(default_factory=list, description="lm-eval tasks whose rows are wanted.")
    models_dir: str | None = Field(None, description="Where fetched models go.")
    run_id: str | None = Field(None, description="Name of the fetch in its records.")


class GcConfig(Settings):
    """What may go from the volume. A done adapter, a baseline, a model and an evaluation never do."""

    dump: str = Field("dump", min_length=1, description="The folder of all artefacts.")
    sweeps: list[str] = Field(default_factory=list, description="Only folders of these sweeps; default all.")
    older_than: str = Field(
        "14d", pattern=r"^[0-9]{1,5}[smhd]$", description="Only what is over for so long: 36h, 14d."
    )
    keep: list[str] = Field(
        default_factory=list, description="SWEEP/RUN of which nothing goes: what runs or is needed."
    )
    unfinished: list[str] = Field(
        default_factory=list, description="SWEEP/RUN whose whole folder goes if it holds no done run."
    )
    delete: bool = Field(False, description="Remove it. Default: only say what would go.")
    json_output: bool = Field(False, description="Say it as one JSON value.")

    @property
    def age_s(self) -> float:
        """`older_than` in seconds."""
        return float(self.older_than[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[self.older_than[-1]]
