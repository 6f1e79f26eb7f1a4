"""`python -m trainer fetch`: models and data to the volume, once per name and revision.

What is already there is seen without torch, so that a repeated fetch ends in under a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from trainer.attempt import report
from trainer.config import OWN_TASKS, FetchConfig, digest
from trainer.flags import UsageError
from trainer.layout import ATTEMPT_ENV, read_json, write_json
from trainer.models import (
    PACKAGE_PREFIX,
    ModelError,
    convert_package_file,
    default_models_dir,
    find_package_file,
    is_local,
    local_path,
)
from trainer.results import Progress, Record

WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")


def fetch(config: FetchConfig) -> Record:
    """Bring the model, the dataset and the tasks' rows here unless they are; returns the record of it.

    Raises ModelError or UsageError when one of them does not exist.
    """
    models_dir = Path(config.models_dir) if config.models_dir else default_models_dir()
    wanted: list[tuple[str, Callable[[], None]]] = []
    if config.model_name:
        name, revision = config.model_name, config.model_revision
        wanted.append((name, lambda: fetch_model(name, revision, models_dir)))
    if config.dataset_name:
        dataset, data_revision = config.dataset_name, config.dataset_revision
        wanted.append((dataset, lambda: fetch_dataset(dataset, data_revision, models_dir)))
    for task in config.tasks:
        if task not in OWN_TASKS:
            wanted.append((task, partial(fetch_task, task, models_dir)))
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
    """Convert a package's model, download a hub's, check a folder. Raises ModelError."""
    if name.startswith(PACKAGE_PREFIX):
        convert_package_file(find_package_file(name), models_dir)
    elif is_local(name):
        local_path(name, revision, models_dir)
    else:
        # A bad name is refused before anything is asked over the network.
        local_path(name, revision, models_dir)
        _once(models_dir, "model", name, revision, lambda: _download_model(name, revision))


def fetch_dataset(name: str, revision: str, models_dir: Path) -> None:
    """Download and prepare a hub dataset; local files and the built-in text are only checked."""
    if name == "pydoc_topics":
        return
    if Path(name).suffix in (".jsonl", ".parquet"):
        if not Path(name).is_file():
            raise UsageError(f"dataset_name: no such file, got {name!r}; give an existing file")
        return
    _once(models_dir, "dataset", name, revision, lambda: _download_dataset(name, revision))


def fetch_task(name: str, models_dir: Path) -> None:
    """Bring an lm-eval task's rows into the cache of `datasets`; local task files are left alone."""
    if name.endswith((".yaml", ".yml")):
        return
    _once(models_dir, "task", name, "main", lambda: _download_task(name))


def _once(models_dir: Path, kind: str, name: str, revision: str, bring: Callable[[], str]) -> None:
    """Call `bring` unless its mark says that what it brought is still where it was put."""
    mark = models_dir / ".fetched" / f"{kind}--{name.replace('/', '--')}--{revision.replace('/', '--')}.json"
    known: dict[str, Any] = read_json(mark) or {}
    if known.get("path") and Path(known["path"]).is_dir():
        return
    write_json(mark, {"v": 1, "name": name, "revision": revision, "path": bring()})


def _download_model(name: str, revision: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        # Configs, tokenizer and safetensors: the same weights in other formats double the download.
        return snapshot_download(
            name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(_reason("model_name", name, revision, error)) from error


def _download_dataset(name: str, revision: str) -> str:
    from datasets import config, load_dataset

    path, subset = WIKITEXT if name == "wikitext" else (name, None)
    try:
        load_dataset(path, subset, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(_reason("dataset_name", name, revision, error)) from error
    return str(config.HF_DATASETS_CACHE)


def _download_task(name: str) -> str:
    from datasets import config

    from trainer.harness import load_benchmarks

    try:
        load_benchmarks([name])  # the harness loads a task's rows when it makes the task
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(_reason("tasks", name, "main", error)) from error
    return str(config.HF_DATASETS_CACHE)


def _reason(field: str, name: str, revision: str, error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{field}: cannot be fetched, got {name!r} at {revision}: {first}; check its name and the network"
