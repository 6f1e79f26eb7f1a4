"""Evaluation end to end on a tiny model: which base, which files, what is measured again and what is not."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import torch

import trainer.models
from tests.trainer.eval_ranks import SIZES
from tests.trainer.worlds import ROOT, run_ranks
from trainer.adapter import save_adapter
from trainer.attempt import Diverged
from trainer.bases import AdapterSource, check_codes, find_adapter, find_adapters, resolve_base
from trainer.config import DEFAULT_TASKS, EvalConfig, EvalPlace, TrainConfig
from trainer.durable import write_json
from trainer.evaluate import Clock, evaluate
from trainer.flags import UsageError
from trainer.layout import TERMINATION_LOG_ENV, RunFolder
from trainer.models import load_model
from trainer.results import (
    ExitCode,
    Protocol,
    Record,
    TaskScore,
    TextScore,
    VariantResult,
    dump_record,
    load_record,
)
from trainer.settings import to_flags
from trainer.student import build_student

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

RUNS = ("lmbda0-11111111", "lmbda1-22222222")


@pytest.fixture(scope="module")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_model("llama", seed=3).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A sweep folder with two finished runs, as the trainer leaves them."""
    sweep = tmp_path_factory.mktemp("dump") / "sweep"
    config = TrainConfig(
        model_name=str(model_folder),
        mixed_precision="fp32",
        group_size=32,
        lora_r=4,
        dataset_name="pydoc_topics",
    )
    for number, run_id in enumerate(RUNS):
        student = build_student(load_model(str(model_folder), dtype="fp32"), config)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for linear in student.linears.values():
                linear.lora_B.copy_(torch.randn(linear.lora_B.shape, generator=generator) * 0.03)
        folder = RunFolder(sweep / run_id)
        folder.adapter.mkdir(parents=True)
        save_adapter(student.lora_tensors(), folder.adapter, config)
        about = {
            "v": 1,
            "run_id": run_id,
            "config": config.model_dump(mode="json"),
            "codes_sha256": student.codes_sha256,
        }
        write_json(folder.run, about)
    return sweep


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "sweep")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "held.txt"
    file.write_text("The quick brown fox jumps over the lazy dog; then it rests. " * 20)
    return file


@pytest.fixture
def config(sweep: Path, text: Path) -> EvalConfig:
    return EvalConfig(
        lora_paths=[str(sweep / run_id) for run_id in RUNS],
        tasks=["everyday"],
        limit=5,
        batch_size=8,
        perplexity_dataset=str(text),
        perplexity_tokens=640,
        window=128,
        stride=64,
    )


@pytest.fixture
def place(tmp_path: Path) -> EvalPlace:
    return EvalPlace(
        output_dir=str(tmp_path / "out"),
        baselines_dir=str(tmp_path / "baselines"),
        models_dir=str(tmp_path / "models"),
        run_id="eval-1",
        device="cpu",
    )


def no_model(*_: Any, **__: Any) -> Any:
    raise AssertionError("a model was loaded")


def files_of(
    variant: VariantResult, sweep: Path, place: EvalPlace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    root = sweep / variant.run_id / "eval" if variant.run_id else Path(str(place.baselines_dir))
    (result,) = root.glob(f"*/{variant.variant}.json")
    value = json.loads(result.read_text())
    with gzip.open(result.with_name(value["items"]), "rt") as file:
        return value, [json.loads(line) for line in file]


def test_evaluate_measures_baselines_and_every_form_of_every_adapter(
    config: EvalConfig, place: EvalPlace, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = evaluate(config, place)
    assert (record.stage, record.status, record.run_id) == ("eval", "done", "eval-1")
    assert [(v.variant, v.run_id) for v in record.variants] == [
        ("teacher", None),
        ("ptq", None),
        *((form, run_id) for run_id in RUNS for form in ("adapter", "merged")),
    ]
    assert record.protocol is not None
    assert record.protocol.quant == "int4 g32"
    assert (record.protocol.dtype, record.protocol.batch_size, record.protocol.limit) == ("fp32", 8, 5)
    assert record.protocol.block_tokens == 64
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[eval]")]
    assert len(lines) == 12
    assert lines[0].startswith("[eval] 1/12 teacher: text · ")
    assert lines[-1] == f"[eval] 12/12 {RUNS[1]} merged: everyday · 0 s left"
    assert load_record(dump_record(record)) is not None
    written = Record.model_validate_json((Path(str(place.output_dir)) / "results.json").read_bytes())
    assert written.variants == record.variants


def test_paired_numbers_equal_those_counted_from_the_files(
    config: EvalConfig, place: EvalPlace, sweep: Path
) -> None:
    record = evaluate(config, place)
    teacher, ptq, *adapters = record.variants
    ptq_file, ptq_items = files_of(ptq, sweep, place)
    assert teacher.text is not None
    assert teacher.text.kl == 0.0
    for variant in adapters:
        file, items = files_of(variant, sweep, place)
        score, answers = variant.tasks["everyday"], [item["correct"] for item in items]
        before = [item["correct"] for item in ptq_items]
        assert score.acc == sum(answers) / 5
        assert score.better == sum(a > b for a, b in zip(answers, before, strict=True))
        assert score.worse == sum(a < b for a, b in zip(answers, before, strict=True))
        assert variant.text is not None
        assert variant.text.tokens == sum(file["blocks"]["tokens"]) == 639
        assert variant.text.kl == pytest.approx(sum(file["blocks"]["kl"]) / 639)
        differences = np.subtract(file["blocks"]["kl"], ptq_file["blocks"]["kl"])
        assert variant.text.kl_diff == pytest.approx(differences.sum() / 639)
        per_block = differences[:-1] / 64
        # Nine full blocks and one of 63: nearly the closed form of equal blocks.
        expected = per_block.std(ddof=1) / np.sqrt(len(per_block) + 1)
        assert variant.text.kl_diff_se == pytest.approx(expected, rel=0.35)
    assert ptq.tasks["everyday"].better is None
    assert ptq.text is not None
    assert ptq.text.nll_diff is None
    values = [variant.text.kl for variant in adapters if variant.text]
    assert len({round(value, 6) for value in values if value is not None}) == 4


@pytest.mark.slow
def test_several_processes_share_the_work_and_leave_the_files_of_one(
    config: EvalConfig, trained: Path, tmp_path: Path
) -> None:
    """To the byte: answers with their log-likelihoods, block sums, scores; and nothing besides."""
    for size in SIZES:
        shutil.copytree(trained, tmp_path / str(size) / "sweep")
    own = config.model_copy(update={"lora_paths": [f"sweep/{RUNS[0]}"], "batch_size": 3})
    place = EvalPlace(output_dir="out", baselines_dir="baselines", run_id="eval-1", device="cpu")
    settings = {"config": own.model_dump(mode="json"), "place": place.model_dump(mode="json")}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    run_ranks("tests.trainer.eval_ranks", tmp_path, max(SIZES))
    one, *others = (
        {
            str(file.relative_to(tmp_path / str(size))): file.read_bytes()
            for file in (tmp_path / str(size)).rglob("*")
            if file.is_file()
        }
        for size in SIZES
    )
    assert len([name for name in one if ".items." in name]) == 4
    for other in others:
        assert other == one
    forwards = {
        size: [int((tmp_path / f"forwards-{size}-{rank}").read_text()) for rank in range(size)]
        for size in SIZES
    }
    for shares in forwards.values():
        assert sum(shares) == forwards[1][0]
        # Each cell deals a text and a task: as many times may one process have one more.
        assert max(shares) - min(shares) <= 4 * 2
    spoken = [line for rank in (1, 2) for line in (tmp_path / f"{rank}.log").read_text().splitlines()]
    assert not [line for line in spoken if line.startswith("[eval]")]


def launched(config: EvalConfig, place: EvalPlace) -> subprocess.Popen[str]:
    """`python -m trainer eval --nproc 2`, which leaves its record beside the output folder."""
    flags = [*to_flags(config), *to_flags(place.model_copy(update={"nproc": 2}))]
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "eval", *flags],
        cwd=ROOT,
        env={**os.environ, TERMINATION_LOG_ENV: f"{place.output_dir}.record"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def record_of(place: EvalPlace) -> Record:
    record = load_record(Path(f"{place.output_dir}.record").read_bytes())
    assert record is not None
    return record


@pytest.mark.slow
def test_the_command_line_starts_them_and_tells_everything_once(
    config: EvalConfig, place: EvalPlace, sweep: Path
) -> None:
    one = config.model_copy(update={"lora_paths": config.lora_paths[:1], "variants": ["adapter"]})
    process = launched(one, place)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    lines = [line for line in text.splitlines() if line.startswith("[eval]")]
    assert [line.split()[1] for line in lines] == [f"{number}/6" for number in range(1, 7)]
    again = evaluate(one, place)
    assert again is not None
    assert record_of(place) == load_record(dump_record(again)), "by one process, from the files"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "code"),
    [("the launcher is told to", ExitCode.AGAIN), ("a rank is killed", 128 + signal.SIGKILL)],
)
def test_processes_end_together(
    config: EvalConfig, place: EvalPlace, tmp_path: Path, stop: str, code: int
) -> None:
    """The second part takes far longer than a signal does."""
    rows = [
        {
            "question": f"Is {number} odd?",
            "choices": {"text": ["yes", "no"], "label": ["A", "B"]},
            "answerKey": "A",
        }
        for number in range(1000)
    ]
    (tmp_path / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    long = {"tasks": ["arc_easy"], "task_data": str(tmp_path), "limit": None, "batch_size": 1}
    process = launched(config.model_copy(update=long), place)
    assert process.stdout is not None
    assert any(line.startswith("[eval] 1/") for line in process.stdout)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    if stop == "a rank is killed":
        ranks[1].kill()
    else:
        process.send_signal(signal.SIGTERM)
    text = process.communicate()[0]
    assert process.returncode == code, text
    assert not [rank for rank in ranks if rank.is_running()]
    assert not Path(str(place.baselines_dir)).exists(), "nothing was measured whole"
    if code == ExitCode.AGAIN:
        assert record_of(place).exit_code == code


def test_a_second_evaluation_loads_no_model_and_says_the_same(
    config: EvalConfig, place: EvalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(config, place)
    monkeypatch.setattr(trainer.models, "load_model", no_model)
    assert evaluate(config, place) == first


def test_an_evaluation_that_was_killed_measures_only_the_rest(
    config: EvalConfig, place: EvalPlace, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = evaluate(config, place)
    capsys.readouterr()
    (lost,) = (sweep / RUNS[1] / "eval").glob("*/adapter.json")
    # The answers are written before the result: a kill between leaves them alone.
    lost.unlink()
    assert evaluate(config, place) == first
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[eval]")]
    assert [line.split(" · ")[0] for line in lines] == [
        f"[eval] 1/2 {RUNS[1]} adapter: text",
        f"[eval] 2/2 {RUNS[1]} adapter: everyday",
    ]


def test_baselines_are_shared_and_compared_with_though_not_asked_for(
    config: EvalConfig, place: EvalPlace, monkeypatch: pytest.MonkeyPatch, sweep: Path
) -> None:
    both = evaluate(config, place)
    baseline = evaluate(
        config.model_copy(
            update={
                "lora_paths": [],
                "model_name": resolve_base(config, find_adapters(config.lora_paths)).model_name,
                "quant_type": "int4",
                "group_size": 32,
                "mixed_precision": "fp32",
            }
        ),
        place,
    )
    assert baseline.stage == "baseline"
    assert baseline.variants == both.variants[:2]
    alone = evaluate(config.model_copy(update={"eval_teacher": False, "eval_ptq": False}), place)
    assert alone.variants == both.variants[2:]


def test_another_protocol_or_another_adapter_is_measured_anew(
    config: EvalConfig, place: EvalPlace, sweep: Path
) -> None:
    one = config.model_copy(update={"lora_paths": config.lora_paths[:1], "variants": ["adapter"]})
    evaluate(one, place)
    evaluate(one.model_copy(update={"limit": 4}), place)
    folders = list((sweep / RUNS[0] / "eval").iterdir())
    assert len(folders) == 2
    assert len(list(Path(str(place.baselines_dir)).iterdir())) == 2
    shutil.copytree(sweep / RUNS[1] / "adapter", sweep / RUNS[0] / "adapter", dirs_exist_ok=True)
    evaluate(one, place)
    assert len(list((sweep / RUNS[0] / "eval").iterdir())) == 3


def test_a_foreign_adapter_is_measured_with_its_folder_left_alone(
    config: EvalConfig, place: EvalPlace, sweep: Path, tmp_path: Path
) -> None:
    foreign = shutil.copytree(sweep / RUNS[0] / "adapter", tmp_path / "foreign")
    files = sorted(foreign.rglob("*"))
    alone = {"lora_paths": [str(foreign)], "variants": ["adapter"]}
    with pytest.raises(UsageError, match="does not say its quant_type"):
        evaluate(config.model_copy(update=alone), place)
    said = {"quant_type": "int4", "group_size": 32, "mixed_precision": "fp32"}
    record = evaluate(config.model_copy(update=alone | said), place)
    own = evaluate(config.model_copy(update=alone | {"lora_paths": config.lora_paths[:1]}), place)
    assert record.variants[-1].text == own.variants[-1].text
    assert record.variants[-1].run_id == "foreign"
    assert sorted(foreign.rglob("*")) == files
    assert list((Path(str(place.output_dir)) / "foreign").glob("*/adapter.json"))


def test_an_adapter_trained_on_other_codes_is_refused(
    config: EvalConfig, place: EvalPlace, sweep: Path
) -> None:
    run = RunFolder(sweep / RUNS[0]).run
    about = json.loads(run.read_text())
    write_json(run, about | {"codes_sha256": "0" * 64})
    with pytest.raises(UsageError, match=r"trained on another Q\(W\), codes 000000000000 there"):
        evaluate(config, place)
    assert not Path(str(place.baselines_dir)).exists()


def test_scores_that_are_not_finite_are_an_error_and_leave_no_result(
    config: EvalConfig, place: EvalPlace, sweep: Path
) -> None:
    student = build_student(
        load_model(
            json.loads(RunFolder(sweep / RUNS[0]).run.read_text())["config"]["model_name"], dtype="fp32"
        ),
        TrainConfig(group_size=32, lora_r=4),
    )
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in student.lora_tensors().items()}
    save_adapter(broken, RunFolder(sweep / RUNS[0]).adapter, TrainConfig(group_size=32, lora_r=4))
    with pytest.raises(Diverged, match="must be finite"):
        evaluate(config, place)
    assert not (sweep / RUNS[0] / "eval").exists()


def test_an_adapter_of_another_model_is_the_users_fault(
    config: EvalConfig, place: EvalPlace, sweep: Path
) -> None:
    config_of = TrainConfig(group_size=32, lora_r=4)
    save_adapter(
        {
            "model.layers.0.mlp.up_proj.lora_A": torch.zeros(4, 7),
            "model.layers.0.mlp.up_proj.lora_B": torch.zeros(9, 4),
        },
        RunFolder(sweep / RUNS[0]).adapter,
        config_of,
    )
    with pytest.raises(UsageError, match="does not fit its base"):
        evaluate(config, place)


def test_damaged_results_are_said_and_measured_again(
    config: EvalConfig, place: EvalPlace, sweep: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second evaluation only compares with ptq, whose files are mended all the same."""
    record = evaluate(config, place)
    (items,) = (sweep / RUNS[0] / "eval").glob("*/adapter.items.*.jsonl.gz")
    items.write_bytes(items.read_bytes()[:20])
    (ptq,) = Path(str(place.baselines_dir)).glob("*/ptq.json")
    ptq.write_text("")
    alone = config.model_copy(update={"eval_teacher": False, "eval_ptq": False})
    assert evaluate(alone, place).variants == [one for one in record.variants if one.run_id]
    assert "adapter.json: results are damaged, got ValueError('a changed adapter.items." in caplog.text
    assert "ptq.json: results are damaged" in caplog.text
    assert evaluate(config, place).variants == record.variants


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param(
            {"stride": 128}, "stride: must be below the window 128, got 128", id="a stride too long"
        ),
        pytest.param(
            {"tasks": ["none"], "perplexity_dataset": "none"}, "nothing is measured", id="no measure"
        ),
        pytest.param({"task_data": "nowhere"}, "task_data: no such folder", id="a data folder not there"),
        pytest.param({"tasks": ["gone.yaml"]}, "no such task file", id="a task file not there"),
    ],
)
def test_faults_of_the_measure_are_said_before_a_model_loads(
    changes: dict[str, Any],
    says: str,
    config: EvalConfig,
    place: EvalPlace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer.models, "load_model", no_model)
    with pytest.raises(ValueError, match=says):
        evaluate(config.model_copy(update=changes), place)


def test_a_hub_model_that_was_not_fetched_is_said_offline(config: EvalConfig, place: EvalPlace) -> None:
    hub = {"lora_paths": [], "model_name": "no-such-lab/no-such-net"}
    with pytest.raises(
        UsageError, match=r"not fetched yet, got 'no-such-lab/no-such-net' at main, .*OFFLINE"
    ):
        evaluate(config.model_copy(update=hub), place)


def test_a_window_beyond_the_models_positions_is_refused(config: EvalConfig, place: EvalPlace) -> None:
    with pytest.raises(UsageError, match="window: must be at most the model's 256 positions, got 512"):
        evaluate(config.model_copy(update={"window": 512}), place)


def test_find_adapter_prefers_the_result_then_the_newest_checkpoint(sweep: Path) -> None:
    run = sweep / RUNS[0]
    for step in (4, 12):
        shutil.copytree(run / "adapter", run / f"checkpoint-{step}")
    assert find_adapter(str(run)).folder == run / "adapter"
    assert find_adapter(str(run)).note == ""
    checkpoint = find_adapter(str(run / "checkpoint-4"))
    assert (checkpoint.home, checkpoint.name) == (run, f"{RUNS[0]}@checkpoint-4")
    assert find_adapter(str(run / "adapter")).name == RUNS[0]
    shutil.rmtree(run / "adapter")
    newest = find_adapter(str(run))
    assert newest.folder == run / "checkpoint-12"
    assert newest.note.endswith("has no adapter/ yet, taking checkpoint-12")


def test_adapters_that_are_missing_are_all_named(sweep: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    (half / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError) as raised:
        find_adapters([str(sweep / "gone"), str(sweep), str(half), *[str(sweep / RUNS[0])] * 2])
    gone, none, incomplete, twice = str(raised.value).splitlines()
    assert "no such folder" in gone
    assert "no adapter here" in none
    assert "has no adapter_model.safetensors" in incomplete
    assert "twice" in twice


def source(name: str, **fields: Any) -> AdapterSource:
    config = TrainConfig(**{"model_name": "lab/net", "quant_type": "int4", **fields}).model_dump(mode="json")
    return AdapterSource(name, Path(name), Path(name), {"config": config})


@pytest.mark.parametrize(
    ("flags", "sources", "says"),
    [
        pytest.param(
            {"quant_type": "int4"},
            [source("a", quant_type="bnb_fp4")],
            ["a was trained with quant_type bnb_fp4, got --quant-type int4"],
            id="a bnb adapter is not measured as int4",
        ),
        pytest.param(
            {"model_name": "lab/other", "group_size": 64},
            [source("a")],
            ["model_name lab/net, got --model-name lab/other", "group_size 128, got --group-size 64"],
            id="every contradiction at once",
        ),
        pytest.param(
            {},
            [source("a"), source("b", quant_type="bnb_nf4")],
            ["different quant_type (a: int4, b: bnb_nf4)"],
            id="adapters on two bases",
        ),
        pytest.param(
            {},
            [source("a"), source("b", model_revision="v2")],
            ["different model_revision"],
            id="two revisions",
        ),
        pytest.param(
            {},
            [source("a"), source("b", mixed_precision="fp32")],
            ["different mixed_precision"],
            id="two dtypes and no flag that chooses",
        ),
    ],
)
def test_resolve_base_refuses(flags: dict[str, Any], sources: list[AdapterSource], says: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        resolve_base(EvalConfig(**flags), sources)
    lines = str(raised.value).splitlines()
    assert len(lines) == len(says)
    assert all(part in line for part, line in zip(says, lines, strict=True))


@pytest.mark.parametrize(
    ("flags", "sources", "expected"),
    [
        pytest.param({}, [], {"quant_type": "int4", "group_size": 128}, id="no adapter: the defaults"),
        pytest.param(
            {},
            [source("a", quant_type="int4", group_size=64, qparams_dtype="fp32", quantize_lm_head=True)],
            {"group_size": 64, "qparams_dtype": "fp32", "quantize_lm_head": True, "model_name": "lab/net"},
            id="the adapter's own base",
        ),
        pytest.param(
            {},
            [
                source("a", quant_type="bnb_nf4", group_size=64),
                source("b", quant_type="bnb_nf4", group_size=32),
            ],
            {"quant_type": "bnb_nf4"},
            id="bnb has no groups to differ in",
        ),
        pytest.param(
            {"mixed_precision": "fp32"},
            [source("a"), source("b", mixed_precision="fp32")],
            {"mixed_precision": "fp32"},
            id="the dtype of measuring may be chosen",
        ),
        pytest.param(
            {"quant_type": "int4", "group_size": 128},
            [source("a")],
            {"quant_type": "int4"},
            id="flags that agree",
        ),
    ],
)
def test_resolve_base_takes(
    flags: dict[str, Any], sources: list[AdapterSource], expected: dict[str, Any]
) -> None:
    base = resolve_base(EvalConfig(**flags), sources)
    assert {name: getattr(base, name) for name in expected} == expected


def test_check_codes_lets_runs_without_a_hash_pass() -> None:
    check_codes([source("a")], "f" * 64)


def test_an_evaluation_of_nothing_is_refused(config: EvalConfig, place: EvalPlace, sweep: Path) -> None:
    base = resolve_base(config, find_adapters(config.lora_paths))
    nothing = {"lora_paths": [], "eval_teacher": False, "eval_ptq": False, "model_name": base.model_name}
    with pytest.raises(UsageError, match="got no adapter and no baseline"):
        evaluate(config.model_copy(update=nothing), place)


def test_clock_counts_parts_and_never_goes_below_zero(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock("baseline", 2, ["text", "mmlu"])
    for variant in ("teacher", "ptq"):
        for part in ("text", "mmlu"):
            clock.done(variant, part)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[0] for line in lines] == [
        "[baseline] 1/4 teacher: text",
        "[baseline] 2/4 teacher: mmlu",
        "[baseline] 3/4 ptq: text",
        "[baseline] 4/4 ptq: mmlu",
    ]
    assert all(line.endswith("0 s left") for line in lines)


def test_a_record_of_three_adapters_on_all_tasks_fits_a_termination_message() -> None:
    score, text = TaskScore(0.123456, 0.0123456, 14042, 1234, 1234), TextScore(299078, *[1.234567e-3] * 8)
    run_id = "lmbda1-bs32-lr5e5-beta05-tok512-0123abcd"
    tasks = dict.fromkeys(DEFAULT_TASKS, score)
    variants = [VariantResult(variant="teacher", tasks=tasks, text=text)]
    variants += [VariantResult(variant="ptq", tasks=tasks, text=text)]
    variants += [VariantResult(variant="merged", run_id=run_id, tasks=tasks, text=text)] * 6
    protocol = Protocol(model="Qwen/Qwen3-4B-Instruct-2507", quant="int4 g128", dtype="bf16", batch_size=32)
    record = Record(stage="eval", status="done", exit_code=0, variants=variants, protocol=protocol)
    assert len(dump_record(record)) <= 4096


def test_an_adapter_is_compared_with_the_function_trained(
    config: EvalConfig, place: EvalPlace, sweep: Path, model_folder: Path
) -> None:
    """Equal bits are recorded; a file that computes something else is refused before anything is measured."""
    from trainer import probe
    from trainer.adapter import load_adapter

    folder = RunFolder(sweep / RUNS[0])
    own = TrainConfig(**json.loads(folder.run.read_text())["config"])
    student = build_student(load_model(str(model_folder), dtype="fp32"), own)
    student.set_adapter(load_adapter(folder.adapter))
    write_json(folder.probe, probe.take(student, own))
    one = config.model_copy(update={"lora_paths": [str(sweep / RUNS[0])], "tasks": ["none"]})
    record = evaluate(one, place)
    (variant,) = (v for v in record.variants if v.variant == "adapter")
    value = json.loads(next((sweep / RUNS[0]).glob("eval/*/adapter.json")).read_text())
    assert variant.run_id == RUNS[0]
    assert value["probe"] == {
        "equal": True,
        "kl": pytest.approx(0, abs=1e-9),
        "max_difference": 0,
        "changed": [],
    }

    tensors = {name: tensor * 3 for name, tensor in student.lora_tensors().items()}
    save_adapter(tensors, folder.adapter, own)
    with pytest.raises(UsageError, match="does not compute what was trained"):
        evaluate(one, place)
