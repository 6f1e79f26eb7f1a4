"""Tasks: the project's own, the harness's from local rows, and our log-likelihoods against lm-eval's."""

from __future__ import annotations

import copy
import functools
import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval.tasks
import pytest
import torch

from tests.trainer.worlds import ALONE, played
from trainer.attempt import Diverged
from trainer.config import TrainConfig
from trainer.distributed import World
from trainer.flags import UsageError
from trainer.harness import Item, StudentLM, load_benchmarks, run
from trainer.likelihood import input_batches
from trainer.student import Student, build_student
from trainer.tasks import FOLDER, own_tasks, source_sha256
from trainer.text import read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ROWS: dict[str, list[dict[str, Any]]] = {
    "arc_easy": [
        {
            "question": "Is ice cold?",
            "choices": {"text": ["yes", "no"], "label": ["A", "B"]},
            "answerKey": "A",
        },
        {
            "question": "Is fire cold?",
            "choices": {"text": ["yes", "no"], "label": ["A", "B"]},
            "answerKey": "B",
        },
    ],
    "arc_challenge": [
        {
            "question": "1 + 1?",
            "choices": {"text": ["1", "2", "3"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        }
    ],
    "winogrande": [
        {"sentence": "Ann met Bea and _ smiled.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        {"sentence": "Tom saw Max so _ ran off.", "option1": "Tom", "option2": "Max", "answer": "1"},
    ],
    "hellaswag": [
        {"query": "A man sits. he", "gold": 3, "choices": ["flies.", "melts.", "sings.", "stands up."]}
    ],
    "mmlu": [
        {"question": "Bones?", "subject": "anatomy", "choices": ["1", "2", "3", "4"], "answer": 1},
        {"question": "Nerves?", "subject": "anatomy", "choices": ["5", "6", "7", "8"], "answer": 0},
        {"question": "Stars?", "subject": "astronomy", "choices": ["9", "8", "7", "6"], "answer": 2},
    ],
}


@pytest.fixture(scope="module")
def student(make_model: Callable[..., PreTrainedModel]) -> Student:
    built = build_student(make_model("llama", seed=3), TrainConfig(group_size=32, lora_r=4))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for linear in built.linears.values():
            linear.lora_B.copy_(torch.randn(linear.lora_B.shape, generator=generator) * 0.02)
    return built


@pytest.fixture
def task_data(tmp_path: Path) -> Path:
    for number, (name, rows) in enumerate(ROWS.items()):
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        packed = number % 2 == 0
        file = tmp_path / (name + (".jsonl.gz" if packed else ".jsonl"))
        file.write_bytes(gzip.compress(lines) if packed else lines)
    return tmp_path


def test_everyday_is_well_made() -> None:
    rows = read_rows(FOLDER / "everyday.jsonl")
    assert len(rows) >= 48
    assert len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        assert len(row["choices"]) == len(set(row["choices"])) == 4, row
        assert all(len(f"{row['question']} {choice}".split()) <= 25 for choice in row["choices"]), row
        assert 0 <= row["answer"] < 4
    # No position may be a good guess.
    assert max(Counter(row["answer"] for row in rows).values()) < 0.35 * len(rows)
    # Nor may the longest choice.
    longest = sum(len(max(row["choices"], key=len)) == len(row["choices"][row["answer"]]) for row in rows)
    assert longest < 0.5 * len(rows)


def test_everyday_runs_by_its_name_with_every_item(
    student: Student, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    (benchmark,) = load_benchmarks(["everyday"])
    items = run(benchmark, StudentLM(student, tiny_tokenizer, "ptq", 16, ALONE), None)
    assert [item.id for item in items] == list(range(len(read_rows(FOLDER / "everyday.jsonl"))))
    for item, row in zip(items, read_rows(FOLDER / "everyday.jsonl"), strict=True):
        best = max(range(4), key=item.loglikelihoods.__getitem__)
        assert item.correct == (best == row["answer"])


def test_loglikelihood_of_one_question_worked_by_hand(
    student: Student, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    (benchmark,) = load_benchmarks(["everyday"])
    (item,) = run(benchmark, StudentLM(student, tiny_tokenizer, "student", 4, ALONE), 1)
    row = read_rows(FOLDER / "everyday.jsonl")[0]
    prompt = f"Question: {row['question']}\nAnswer:"
    for choice, answered in zip(row["choices"], item.loglikelihoods, strict=True):
        # The tiny tokenizer's tokens are bytes.
        ids = tiny_tokenizer.encode(f"{prompt} {choice}")
        assert len(ids) == len(f"{prompt} {choice}")
        with torch.no_grad():
            hidden = student.hidden(torch.tensor([ids]), mode="student")[0]
            log_probs = torch.log_softmax((hidden @ student.head("student").T).double(), -1)
        start = len(prompt)
        expected = sum(float(log_probs[at - 1, ids[at]]) for at in range(start, len(ids)))
        assert answered == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["everyday", "arc_easy", "hellaswag", "winogrande", "mmlu"])
def test_answers_equal_those_of_lm_evals_own_model(
    name: str,
    make_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    task_data: Path,
) -> None:
    from lm_eval.models.huggingface import HFLM

    original = make_model("llama", seed=3)
    teacher = build_student(copy.deepcopy(original), TrainConfig(quant_type="none", lora_r=1))
    (benchmark,) = load_benchmarks([name], str(task_data))
    ours = run(benchmark, StudentLM(teacher, tiny_tokenizer, "teacher", 3, ALONE), 12)
    theirs = run(benchmark, HFLM(pretrained=original, tokenizer=tiny_tokenizer, batch_size=5), 12)  # type: ignore[arg-type]
    assert [item[:4] for item in ours] == [item[:4] for item in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.loglikelihoods == pytest.approx(other.loglikelihoods, abs=2e-4)


def test_local_rows_are_asked_as_the_harness_asks(
    task_data: Path, student: Student, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    benchmarks = {benchmark.name: benchmark for benchmark in load_benchmarks(list(ROWS), str(task_data))}
    asked = {
        name: [instance.args for task in benchmark.tasks.values() for instance in _built(task)]
        for name, benchmark in benchmarks.items()
    }
    assert asked["arc_easy"][0] == ("Question: Is ice cold?\nAnswer:", " yes")
    assert asked["arc_challenge"][1] == ("Question: 1 + 1?\nAnswer:", " 2")
    assert asked["hellaswag"][3] == ("A man sits. he", " stands up.")
    assert asked["winogrande"][:2] == [
        ("Ann met Bea and Ann", " smiled."),
        ("Ann met Bea and Bea", " smiled."),
    ]
    assert asked["mmlu"][0] == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "Bones?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
        " A",
    )
    assert sorted(benchmarks["mmlu"].tasks) == ["mmlu_anatomy", "mmlu_astronomy"]
    items = run(benchmarks["mmlu"], StudentLM(student, tiny_tokenizer, "ptq", 8, ALONE), None)
    assert [(item.subtask, item.id) for item in items] == [
        ("mmlu_anatomy", 0),
        ("mmlu_anatomy", 1),
        ("mmlu_astronomy", 0),
    ]


def _built(task: Any) -> list[Any]:
    task.build_all_requests(limit=None, rank=0, world_size=1)
    instances: list[Any] = task.instances
    return instances


def test_a_task_file_of_ones_own_runs(
    tmp_path: Path, student: Student, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    own = (FOLDER / "everyday.yaml").read_text().replace("everyday", "mine")
    (tmp_path / "mine.yaml").write_text(own)
    (tmp_path / "mine.jsonl").write_text('{"question": "Up?", "choices": ["no", "yes"], "answer": 1}\n')
    (benchmark,) = load_benchmarks([str(tmp_path / "mine.yaml")])
    (item,) = run(benchmark, StudentLM(student, tiny_tokenizer, "teacher", 8, ALONE), None)
    assert (item.task, len(item.loglikelihoods)) == ("mine", 2)


def test_equal_inputs_share_a_row_and_batches_depend_on_nothing_but_the_requests() -> None:
    requests = [([1, 2], [3]), ([5], [6, 7]), ([1, 2], [4]), ([9], [9])]
    assert input_batches(requests, 2, 100) == [{(1, 2): [0, 2], (5, 6): [1]}, {(9,): [3]}]
    assert input_batches(requests, 2, 1) == [{(2,): [0, 2], (6,): [1]}, {(9,): [3]}]


def test_scores_of_a_task_do_not_depend_on_the_batch_size_in_float32(
    student: Student, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    (benchmark,) = load_benchmarks(["everyday"])
    one, many = (
        run(benchmark, StudentLM(student, tiny_tokenizer, "merged", size, ALONE), 6) for size in (1, 32)
    )
    for a, b in zip(one, many, strict=True):
        assert a.loglikelihoods == pytest.approx(b.loglikelihoods, abs=2e-4)


@pytest.mark.parametrize("size", [2, 3, 50])
def test_answers_are_to_the_bit_those_of_one_process(
    student: Student, tiny_tokenizer: PreTrainedTokenizerFast, size: int
) -> None:
    """Batches of three: dealt otherwise, rows would be padded otherwise. 50: some have nothing to do."""

    def answers(world: World) -> list[Item]:
        (benchmark,) = load_benchmarks(["everyday"])
        return run(benchmark, StudentLM(student, tiny_tokenizer, "student", 3, world), 12)

    assert played(size, answers) == answers(ALONE)


def test_loglikelihoods_that_are_not_finite_are_an_error(
    student: Student, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    broken = copy.deepcopy(student)
    with torch.no_grad():
        next(iter(broken.linears.values())).lora_B.fill_(float("nan"))
    (benchmark,) = load_benchmarks(["everyday"])
    with pytest.raises(Diverged, match="everyday: log-likelihoods must be finite"):
        run(benchmark, StudentLM(broken, tiny_tokenizer, "student", 8, ALONE), 2)


def test_unknown_tasks_and_missing_rows_are_all_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The index of all the harness's tasks takes 8 s to read, and holds none of these either.
    few = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", few)
    (tmp_path / "arc_easy.jsonl").write_text("{broken\n")
    (tmp_path / "winogrande.jsonl").write_text("")
    with pytest.raises(UsageError) as raised:
        load_benchmarks(["evryday", "nothing.yaml", "mmlu", "arc_easy", "winogrande"], str(tmp_path))
    unknown, file, missing, broken, empty = str(raised.value).splitlines()
    assert "unknown task, got 'evryday'" in unknown
    assert all(name in unknown for name in ("hellaswag", "mmlu", "everyday"))
    assert "no such task file, got 'nothing.yaml'" in file
    assert "mmlu.jsonl[.gz] is missing" in missing
    assert "arc_easy, winogrande" in missing
    assert "arc_easy.jsonl:1: not JSON" in broken
    assert "must hold rows, got an empty file" in empty


def test_source_sha256_follows_the_rows(task_data: Path) -> None:
    before = source_sha256("mmlu", task_data)
    assert before == source_sha256("mmlu", task_data) != source_sha256("arc_easy", task_data)
    (task_data / "mmlu.jsonl.gz").write_bytes(gzip.compress(b'{"question": "other"}\n'))
    assert source_sha256("mmlu", task_data) != before
    assert source_sha256("boolq", task_data) is None
    assert own_tasks() == ["everyday"]
    assert source_sha256("everyday", None) is not None
