"""`python -m trainer fetch`: models and data to the volume, once per name and revision.

What is marked done costs one look at the size of each of its files, without torch and without the network,
so that a repeated fetch ends in under a second. Digests are checked before a mark is written.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from trainer.attempt import report
from trainer.config import OWN_TASKS, FetchConfig
from trainer.flags import UsageError
from trainer.hub import Hub
from trainer.layout import ATTEMPT_ENV
from trainer.mark import Mark, Store, Wanted, weak_lock
from trainer.models import (
    PACKAGE_PREFIX,
    ModelError,
    check_hub_name,
    convert_package_file,
    default_models_dir,
    find_package_file,
    is_local,
    local_path,
)
from trainer.refusal import Asked
from trainer.results import Progress, Record
from trainer.rows import prepare, rows_of
from trainer.settings import digest

MODEL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
"""Besides the weights: configuration, tokenizer, chat templates."""


def fetch(config: FetchConfig) -> Record:
    """Bring the model, the dataset and the tasks' rows here unless they are; returns the record of it.

    Raises ModelError or UsageError when one of them does not exist or may not be read, HubFault when the hub
    fails, OSError when the disk does.
    """
    models_dir = Path(config.models_dir) if config.models_dir else default_models_dir()
    wanted: list[tuple[str, Callable[[], None]]] = []
    if config.model_name:
        name, revision = config.model_name, config.model_revision
        wanted.append((name, lambda: fetch_model(name, revision, models_dir)))
    if config.dataset_name:
        dataset, data_revision = config.dataset_name, config.dataset_revision
        wanted.append((dataset, lambda: fetch_dataset(dataset, data_revision)))
    for task in config.tasks:
        if task not in OWN_TASKS:
            wanted.append((task, partial(fetch_task, task)))
    if not wanted:
        raise UsageError("fetch: nothing to fetch; give --model-name, --dataset-name or --tasks")
    for number, (what, bring) in enumerate(wanted, 1):
        bring()
        report(Progress(stage="fetch", done=number, total=len(wanted), what=what))
    return Record(
        stage="fetch",
        status="done",
        exit_code=0,
        run_id=config.run_id,
        config_digest=digest(config),
        attempt=os.environ.get(ATTEMPT_ENV),
    )


def fetch_model(name: str, revision: str, models_dir: Path) -> None:
    """Convert a package's model, download a hub's, check a folder. Raises ModelError or UsageError."""
    if name.startswith(PACKAGE_PREFIX):
        convert_package_file(find_package_file(name), models_dir)
        return
    if is_local(name):
        local_path(name, revision, models_dir)
        return
    check_hub_name(name)
    store, wanted = Store.here(), Wanted("model", name, revision)
    if not store.is_whole(wanted):
        with weak_lock(store.marks / f".{wanted.key}.lock"):
            if not store.is_whole(wanted):
                _download_model(Hub(store), wanted)


def _download_model(hub: Hub, wanted: Wanted) -> None:
    asked = Asked("model_name", "model", wanted.name, wanted.revision)
    listed = hub.files(asked)
    files = [listed[path] for path in model_files(listed, wanted.name)]
    hub.download(asked, files)
    sizes, digests = {file.path: file.size for file in files}, {file.path: file.digest for file in files}
    hub.store.write(Mark(wanted, hub.commit(asked), hub.folder(asked), sizes, digests))


def model_files(paths: Iterable[str], name: str) -> list[str]:
    """What loading a model reads among its repository's files: one format of its weights, no subfolders.

    Raises ModelError for a repository that holds no model.
    """
    top = [path for path in paths if "/" not in path or path.startswith("additional_chat_templates/")]
    # Some repositories hold all weights a second time under this name, in the format of another program.
    weights = [path for path in top if fnmatch(path, "*.safetensors") and not path.startswith("consolidated")]
    weights = weights or [path for path in top if fnmatch(path, "pytorch_model*.bin")]
    missing = [] if "config.json" in top else ["config.json"]
    missing += [] if weights else ["weights (*.safetensors)"]
    if missing:
        raise ModelError(
            f"model_name: the repository holds no model, got {name!r}; missing: {', '.join(missing)}"
        )
    return [path for path in top if any(fnmatch(path, pattern) for pattern in MODEL_FILES)] + weights


def fetch_dataset(name: str, revision: str) -> None:
    """Download and prepare a hub dataset; local files and the built-in text are only checked."""
    if name == "pydoc_topics":
        return
    if Path(name).suffix in (".jsonl", ".parquet"):
        if not Path(name).is_file():
            raise UsageError(f"dataset_name: no such file, got {name!r}; give an existing file")
        return
    store, wanted = Store.here(), rows_of(name, revision)
    if not store.is_whole(wanted):
        prepare(Hub(store), wanted, "dataset_name")


def fetch_task(name: str) -> None:
    """Prepare the rows that an lm-eval task's definition names; local task files are left alone."""
    if name.endswith((".yaml", ".yml")):
        return
    store, wanted = Store.here(), Wanted("task", name)
    version = importlib.metadata.version("lm-eval")
    mark = store.read(wanted)
    if mark and mark.made_by == version and all(store.is_whole(part) for part in mark.parts):
        return
    from trainer.harness import StoredTask, load_benchmarks

    [benchmark] = load_benchmarks([name])  # a task opens its rows when it is made, which fetches them
    tasks = [task for task in benchmark.tasks.values() if isinstance(task, StoredTask)]
    store.write(Mark(wanted, parts=tuple(dict.fromkeys(task.rows for task in tasks)), made_by=version))
