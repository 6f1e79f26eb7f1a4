"""The command line: what answers without torch, exit codes, records, several processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.__main__ import exit_code, main
from trainer.config import TrainConfig, TrainPlace
from trainer.data import DataError
from trainer.flags import parse
from trainer.layout import TERMINATION_LOG_ENV, RunFolder
from trainer.results import ExitCode, Record, TrainSummary, dump_record, load_record
from trainer.settings import digest, to_flags

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, make_tiny_folder) -> TrainConfig:
    folder = make_tiny_folder(tmp_path_factory.mktemp("model"))
    return TrainConfig(
        model_name=str(folder),
        dataset_name=str(folder / "rows.jsonl"),
        mixed_precision="fp32",
        group_size=32,
        lora_r=4,
        max_length=64,
        max_new_tokens=4,
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
    )


def start(
    config: TrainConfig, output: Path, *more: str, launcher: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    command = [sys.executable, *(launcher or ("-m", "trainer")), "train", *to_flags(config)]
    return subprocess.Popen(
        [*command, "--output-dir", str(output), *more],
        cwd=ROOT,
        env={**os.environ, TERMINATION_LOG_ENV: str(output) + ".record"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def record_of(output: Path) -> Record:
    record = load_record(Path(str(output) + ".record").read_bytes())
    assert record is not None
    return record


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--lmda", "1"], "--lmda: unknown flag, got '--lmda'; did you mean --lmbda?"),
        (["train", "--lmbda", "nan"], "--lmbda: must be a finite number, got 'nan'"),
        (["train", "--learning-rate", "inf"], "--learning-rate: must be a finite number, got 'inf'"),
        (["train", "--seed", "x"], "--seed: must be a valid integer"),
        (["train", "--quant-type", "int3"], "--quant-type: must be 'int4'"),
        (["trian"], "unknown command, got 'trian'"),
        (["train", "--no-seed"], "--no-seed: --no- is for switches"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_named_and_exits_64(words, told, capsys):
    assert main(words) == ExitCode.USAGE
    assert told in capsys.readouterr().err


def test_all_faults_of_a_command_line_are_told_at_once(capsys):
    assert main(["train", "--lmda", "1", "--beta", "2", "--seed", "x"]) == ExitCode.USAGE
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


def test_a_launchers_nonsense_is_a_message(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "x")
    assert main(["train"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("WORLD_SIZE: must be a positive number, got 'x'")


def test_print_config_is_the_resolved_config(capsys):
    assert main(["train", "--lmbda", "0.5", "--tags", "a", "--tags", "b", "--print-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {name: shown[name] for name in TrainConfig.model_fields} == TrainConfig(lmbda=0.5).model_dump()
    assert shown["tags"] == ["a", "b"]


def test_a_toml_file_stands_for_flags_and_later_flags_win(tmp_path, capsys):
    file = tmp_path / "off.toml"
    file.write_text('lmbda = 0.0\nlearning-rate = 5e-6\ntags = ["x", "y"]\nresume = false\n')
    config, place = parse([f"@{file}", "--lmbda", "0.25"], TrainConfig, TrainPlace)
    assert (config.lmbda, config.learning_rate) == (0.25, 5e-6)
    assert (place.tags, place.resume) == (["x", "y"], False)
    file.write_text("lmda = 1\n")
    assert main(["train", f"@{file}"]) == ExitCode.USAGE
    assert "lmda is no flag; did you mean lmbda?" in capsys.readouterr().err


def test_help_print_config_and_a_finished_run_load_no_torch(tiny_run, tmp_path):
    folder = RunFolder(tmp_path / "done")
    folder.adapter.mkdir(parents=True)
    (folder.adapter / "adapter_model.safetensors").touch()
    (folder.adapter / "adapter_config.json").write_text('{"r": 4}')
    folder.run.write_text(json.dumps({"digest": digest(tiny_run)}))
    summary = TrainSummary(step=3, max_steps=3, adapter_sha256=hashlib.sha256(b"").hexdigest())
    record = Record(stage="train", status="done", exit_code=0, config_digest=digest(tiny_run), train=summary)
    folder.done.write_bytes(dump_record(record))
    code = (
        "import sys; from trainer.__main__ import main\n"
        "main(['train', '--help']); main(['train', '--print-config'])\n"
        f"assert main(['train', *{to_flags(tiny_run)!r}, '--output-dir', {str(folder.root)!r}]) == 0\n"
        "loaded = {'torch', 'transformers', 'datasets', 'peft', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    log = tmp_path / "record"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, TERMINATION_LOG_ENV: str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert load_record(log.read_bytes()) == record


def test_a_model_folder_that_is_none_and_bad_data_have_their_codes(tiny_run, tmp_path, monkeypatch, capsys):
    log = tmp_path / "record"
    monkeypatch.setenv(TERMINATION_LOG_ENV, str(log))
    (tmp_path / "empty").mkdir()
    faulty = tiny_run.model_copy(update={"model_name": str(tmp_path / "empty")})
    assert main(["train", *to_flags(faulty), "--output-dir", str(tmp_path / "a")]) == ExitCode.USAGE
    assert str(tmp_path / "empty") in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text('{"question": "?"}\n')
    faulty = tiny_run.model_copy(update={"dataset_name": str(tmp_path / "rows.jsonl")})
    assert main(["train", *to_flags(faulty), "--output-dir", str(tmp_path / "b")]) == ExitCode.DATA
    record = load_record(log.read_bytes())
    assert record is not None
    assert (record.stage, record.status, record.exit_code) == ("train", "failed", 65)
    assert "a row needs messages" in (record.error or "")
    faulty = tiny_run.model_copy(update={"group_size": 48})
    assert main(["train", *to_flags(faulty), "--output-dir", str(tmp_path / "c")]) == ExitCode.USAGE
    assert "q_proj" in capsys.readouterr().err


def test_an_output_dir_that_cannot_be_written_is_said(tiny_run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert (
        main(["train", *to_flags(tiny_run), "--output-dir", str(tmp_path / "file" / "x")]) == ExitCode.USAGE
    )
    assert "cannot be written" in capsys.readouterr().err


def test_dry_run_shows_counts_memory_and_the_loss_mask(tiny_run, tmp_path, capsys):
    assert main(["train", *to_flags(tiny_run), "--output-dir", str(tmp_path / "d"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "frozen and" in shown
    assert "memory estimate, GiB:" in shown
    masked = [line for line in shown.splitlines() if line.startswith("* ")]
    assert masked[-1].endswith("'<|im_end|>'")
    assert list((tmp_path / "d").iterdir()) == [], "a dry run must not take the folder of a live one"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionError(13, "Permission denied", "/data/dump"), ExitCode.USAGE),
        (DataError("rows"), 65),
        (ValueError("model.x: must be y"), 64),
        (RuntimeError("boom"), 70),
        (KeyError("x"), 70),
        (json.JSONDecodeError("bad", "", 0), 70),
    ],
)
def test_exit_codes_follow_the_error(error, code):
    assert exit_code(error) == code


def test_every_flag_survives_the_command_line():
    config = TrainConfig(learning_rate=1 / 3, seq_kd=True, lmbda=0.1, dataset_name="--x", nproc=2)
    place = TrainPlace(tags=["a b", "c"], resume=False, output_dir="x=y", micro_batch_split=2)
    assert parse([*to_flags(config), *to_flags(place)], TrainConfig, TrainPlace) == [config, place]


def test_sigterm_ends_an_evaluation_with_75(monkeypatch, tmp_path):
    from trainer import evaluate

    monkeypatch.setenv(TERMINATION_LOG_ENV, str(tmp_path / "record"))
    monkeypatch.setattr(evaluate, "evaluate", lambda config, place: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["eval", "--lora-paths", "x"]) == ExitCode.AGAIN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert load_record((tmp_path / "record").read_bytes()).exit_code == ExitCode.AGAIN


@pytest.mark.slow
def test_two_processes_are_one_run_and_sigterm_reaches_them(tiny_run, tmp_path):
    """Bugs 8 and 10: with two gloo processes loss and gradient norm are those of one with the same batch."""
    two = tiny_run.model_copy(update={"nproc": 2, "lmbda": 0.5})
    one = two.model_copy(update={"nproc": 1, "gradient_accumulation_steps": 2})
    codes = {}
    for name, config in (("two", two), ("one", one)):
        process = start(config, tmp_path / name)
        text, _ = process.communicate()
        codes[name] = process.returncode
        assert codes[name] == 0, text
    metrics = {
        name: [json.loads(line) for line in RunFolder(tmp_path / name).metrics.read_text().splitlines()]
        for name in codes
    }
    for mine, other in zip(metrics["two"], metrics["one"], strict=True):
        for key in ("tokens", "on_policy", "rollout_tokens"):
            assert mine[key] == other[key]
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    # torch.distributed's own size, as the checkpoint noted it: accelerate once started one process for two.
    for name, size in (("two", 2), ("one", 1)):
        state = json.loads((RunFolder(tmp_path / name).checkpoint(3) / "state.json").read_text())
        assert state["conditions"]["processes"] == size
    assert record_of(tmp_path / "two").train.step == 3


@pytest.mark.slow
def test_sigterm_ends_a_launched_run_with_75_and_a_checkpoint(tiny_run, tmp_path):
    config = tiny_run.model_copy(update={"nproc": 2, "max_steps": 100_000, "lmbda": 0.0})
    process = start(config, tmp_path / "run")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[train] 2/"):
            break
    process.send_signal(signal.SIGTERM)
    text = process.communicate()[0]
    assert process.returncode == ExitCode.AGAIN, text
    assert RunFolder(tmp_path / "run").checkpoints()
    assert record_of(tmp_path / "run").exit_code == ExitCode.AGAIN


@pytest.mark.slow
def test_a_real_kill_resumes_to_the_same_bytes(tiny_run, tmp_path):
    config = tiny_run.model_copy(update={"max_steps": 12, "save_steps": 2, "lmbda": 1.0})
    whole = start(config, tmp_path / "whole")
    assert whole.communicate()[0] is not None
    cut = start(config, tmp_path / "cut")
    assert cut.stdout is not None
    for line in cut.stdout:
        if line.startswith("[train] 5/"):
            break
    cut.kill()
    cut.communicate()
    again = start(config, tmp_path / "cut")
    text = again.communicate()[0]
    assert again.returncode == 0, text
    adapter = [RunFolder(tmp_path / name).adapter / "adapter_model.safetensors" for name in ("whole", "cut")]
    assert adapter[0].read_bytes() == adapter[1].read_bytes()


@pytest.mark.slow
def test_it_runs_under_accelerate_launch(tiny_run, tmp_path):
    """accelerate with --num_processes 2 on a CPU starts one process only: the world size is asserted."""
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "trainer")
    process = start(tiny_run, tmp_path / "run", launcher=launcher)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert record_of(tmp_path / "run").status == "done"
    assert json.loads(RunFolder(tmp_path / "run").run.read_text())["config"]["nproc"] == 1
