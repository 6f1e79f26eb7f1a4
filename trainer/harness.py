"""lm-eval: tasks by the harness's own definitions, scored with our own batches. The one importer of lm_eval.

The harness reads rows and prompts and decides what is right; `StudentLM` only answers log-likelihoods, in
fixed batches, since scores depend on them in bf16.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lm_eval.tasks
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as run_harness
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from trainer.attempt import Diverged
from trainer.flags import UsageError
from trainer.likelihood import score_continuations
from trainer.mark import Wanted
from trainer.rows import open_rows
from trainer.tasks import own_tasks, rows_file, task_file
from trainer.text import read_rows

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

    from trainer.distributed import World
    from trainer.linear import Mode
    from trainer.student import Student

HARNESS_TASKS = Path(lm_eval.tasks.__file__).parent
FILES = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "mmlu": "mmlu/default/mmlu_*.yaml",
}
"""The lab's tasks, by the harness's files: found without its index of all tasks, which costs 7 s."""


class Item(NamedTuple):
    """One answered question: its number in its subtask, whether right, log-likelihood of each choice."""

    task: str
    subtask: str
    id: int
    correct: int
    loglikelihoods: list[float]


class StoredTask(ConfigurableTask):
    """A task of the harness whose rows fetch prepared: read from the volume by revision, without a cache."""

    rows: Wanted

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """The harness's own door for rows; it asks when the task is made."""
        if callable(self.config.custom_dataset):
            super().download(dataset_kwargs)
            return
        options = {key: value for key, value in (dataset_kwargs or {}).items() if key != "trust_remote_code"}
        revision = str(options.pop("revision", None) or "main")
        text = json.dumps(options, sort_keys=True)
        self.rows = Wanted("rows", str(self.DATASET_PATH), revision, self.DATASET_NAME, text)
        # In memory: the harness maps rows, and would keep what it makes beside them, where it may not write.
        self.dataset = open_rows(self.rows, "tasks", in_memory=True)


class StoredTasks(TaskFactory):
    """The harness's maker of tasks by name, making StoredTask of all that are not programs of their own."""

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Any:
        if entry.kind is not Kind.PY_TASK:
            overrides = {**(overrides or {}), "class": StoredTask}
        return super()._build_task(entry, overrides)


@dataclass(frozen=True)
class Benchmark:
    """A task as asked for: its name and the harness's tasks that make it up."""

    name: str
    tasks: dict[str, ConfigurableTask]


class StudentLM(TemplateLM):
    """A student in one mode, as the harness sees it: log-likelihoods of continuations, nothing else.

    The harness's own `rank` and `world_size` stay 0 and 1: it would deal questions, so that batches, and in
    bf16 the scores, would depend on the number of processes. `world` shares the batches that one would form.
    """

    def __init__(
        self,
        student: Student,
        tokenizer: PreTrainedTokenizerBase,
        mode: Mode,
        batch_size: int,
        world: World,
    ) -> None:
        super().__init__()
        self.student, self.tokenizer, self.mode = student, tokenizer, mode
        self.batch_size, self.world = batch_size, world
        self.max_length = int(getattr(student.model.config, "max_position_embeddings", None) or 2048)

    @property
    def eot_token_id(self) -> int:
        eos = self.tokenizer.eos_token_id
        return int(eos)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            # A prompt that spells the first token itself gets no second one.
            bos = str(self.tokenizer.decode(self.prefix_token_id))
            if not string.startswith(bos):
                return list(self.tokenizer.encode(string))
        return list(self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        # Without the bar, which would be written between the progress lines.
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        tokens = [(context, continuation) for _, context, continuation in requests]
        return score_continuations(
            self.student, self.mode, tokens, self.batch_size, self.max_length, self.world
        )

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise UsageError(
            "tasks: only multiple-choice tasks are measured, got one of rolling likelihood; leave it out"
        )

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise UsageError(
            "tasks: only multiple-choice tasks are measured, got one that generates; leave it out"
        )


def load_benchmarks(names: list[str], task_data: str | None = None) -> list[Benchmark]:
    """The tasks by name: the lab's five, `everyday`, a local task file (.yaml), or any the harness knows.

    With `task_data` the lab's five read NAME.jsonl[.gz] there instead of the hub. Raises UsageError for
    unknown names and for missing or malformed rows, all at once.
    """
    # The harness warns about every choice made here on purpose.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    faults: list[str] = []
    found: list[Benchmark] = []
    for name in names:
        try:
            found.append(_load_benchmark(name, Path(task_data) if task_data else None))
        except UsageError as error:
            faults.append(str(error))
    if faults:
        raise UsageError("\n".join(faults))
    return found


def _load_benchmark(name: str, task_data: Path | None) -> Benchmark:
    file = task_file(name)
    if file:
        return _from_file(file)
    if name in FILES:
        return _with_local_rows(name, task_data) if task_data else _from_hub(name, _configs(name))
    return _registered(name)


def _configs(name: str) -> list[dict[str, Any]]:
    """The harness's own definitions of one of FILES; tags lead to index entries that are not loaded."""
    configs = [load_yaml(path) for path in sorted(HARNESS_TASKS.glob(FILES[name]))]
    return [{key: value for key, value in config.items() if key != "tag"} for config in configs]


def _from_hub(name: str, configs: list[dict[str, Any]]) -> Benchmark:
    try:
        return Benchmark(name, {config["task"]: _task(config) for config in configs})
    except UsageError as error:
        raise UsageError(f"{error}; or give --task-data a folder with {name}.jsonl") from error


def _task(config: dict[str, Any]) -> ConfigurableTask:
    return StoredTask(config={**config, "num_fewshot": 0})


def _registered(name: str) -> Benchmark:
    manager = lm_eval.tasks.TaskManager()
    if name not in manager.all_tasks:
        raise UsageError(
            f"tasks: unknown task, got {name!r}; known are {', '.join([*FILES, *own_tasks()])}, the "
            f"{len(manager.all_tasks)} names of lm-eval (`lm-eval ls tasks`) and task files (.yaml)"
        )
    manager._factory = StoredTasks()
    loaded = manager.load([name])["tasks"]
    for task in loaded.values():
        task.set_config(key="num_fewshot", value=0)
    return Benchmark(name, dict(loaded))


def _from_file(path: Path) -> Benchmark:
    """A task file of the harness's format whose rows lie beside it."""
    config = load_yaml(path)
    files = (config.pop("dataset_kwargs", None) or {}).get("data_files") or {}
    if config.pop("dataset_path", None) != "json" or not files:
        raise UsageError(
            f"{path}: must read local rows, got no data_files; write dataset_path: json and "
            "dataset_kwargs: {data_files: {test: FILE.jsonl}}"
        )
    rows = {split: read_rows(path.parent / file) for split, file in files.items()}
    return Benchmark(config["task"], {config["task"]: _task(config | _rows(rows))})


def _with_local_rows(name: str, folder: Path) -> Benchmark:
    file = rows_file(name, folder)
    rows = read_rows(file)
    tasks: dict[str, ConfigurableTask] = {}
    for config in _configs(name):
        own = rows
        if name == "mmlu":
            own = [row for row in rows if row.get("subject") == config["dataset_name"]]
        if own:
            tasks[config["task"]] = _task(local_config(name, config, own))
    if not tasks:
        raise UsageError(f"{file}: must hold rows of {name}, got none it knows; see docs for the fields")
    return Benchmark(name, tasks)


def local_config(name: str, config: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The harness's definition with its rows taken from here; all else stays the harness's."""
    split = config.get("test_split") or config.get("validation_split")
    closed = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"))
    local = {**config, "dataset_path": None, "dataset_name": None, **closed}
    local["test_split" if config.get("test_split") else "validation_split"] = split
    if name == "hellaswag" and "gold" in rows[0]:
        # Rows in the form that the harness's process_docs makes of the hub's.
        local |= {"process_docs": None, "doc_to_target": "{{gold}}"}
    return local | _rows({str(split): rows})


def _rows(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The harness's door for rows in memory: no copy in a cache folder that could be stale."""
    from datasets import Dataset

    def dataset(**_: Any) -> dict[str, Any]:
        return {split: Dataset.from_list(own) for split, own in rows.items()}

    return {"custom_dataset": dataset}


def run(benchmark: Benchmark, model: StudentLM, limit: int | None) -> list[Item]:
    """Every item of a benchmark answered, 0-shot, by the harness: metric `acc`, in the harness's order.

    `limit`: items of each (sub)task. Raises Diverged when a log-likelihood is not finite.
    """
    results = run_harness(
        lm=model,
        task_dict={"tasks": benchmark.tasks, "groups": {}, "group_map": {}},
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    items: list[Item] = []
    for task, samples in results["samples"].items():
        for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
            if "acc" not in sample:
                raise UsageError(f"tasks: only tasks with metric acc are measured, got {task}; leave it out")
            likelihoods = [round(float(answer[0]), 6) for answer in sample["filtered_resps"]]
            items.append(Item(benchmark.name, task, int(sample["doc_id"]), int(sample["acc"]), likelihoods))
    if any(value != value or abs(value) == float("inf") for item in items for value in item.loglikelihoods):
        raise Diverged(
            f"{benchmark.name}: log-likelihoods must be finite, got nan or infinity; the weights are broken"
        )
    return items


def count(benchmark: Benchmark, limit: int | None) -> int:
    """Items that `run` answers."""
    return sum(min(len(task.eval_docs), limit or len(task.eval_docs)) for task in benchmark.tasks.values())
