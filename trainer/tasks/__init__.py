"""Where the rows of tasks lie on this machine: the project's own task files and local copies. Torch-free."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trainer.flags import UsageError

FOLDER = Path(__file__).parent


def own_tasks() -> list[str]:
    """Names of the tasks written for this project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def task_file(name: str) -> Path | None:
    """The lm-eval task file meant by a path or by the name of an own task; None for the harness's tasks."""
    if name in own_tasks():
        return FOLDER / f"{name}.yaml"
    if not name.endswith((".yaml", ".yml")):
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"tasks: no such task file, got {name!r}; give the path of a .yaml file")
    return path


def rows_file(name: str, task_data: Path) -> Path:
    """NAME.jsonl or NAME.jsonl.gz in the folder of local copies. Raises UsageError when it is not there."""
    for file in (task_data / f"{name}.jsonl", task_data / f"{name}.jsonl.gz"):
        if file.is_file():
            return file
    there = sorted(path.name.split(".jsonl")[0] for path in task_data.glob("*.jsonl*")) or ["no task"]
    raise UsageError(
        f"task_data: {name}.jsonl[.gz] is missing, got {str(task_data)!r} with rows of {', '.join(there)}; "
        "add the file, or leave --task-data out to read the hub"
    )


def source_sha256(name: str, task_data: Path | None) -> str | None:
    """SHA-256 of what a task is read from locally; None for the hub's rows, which the harness's names fix."""
    digest = hashlib.sha256()
    file = task_file(name)
    if file:
        # The rows lie beside the task file; which of them it reads only the harness knows.
        for path in [file, *sorted(file.parent.glob("*.json*"))]:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    elif task_data and _has_rows(name, task_data):
        digest.update(rows_file(name, task_data).read_bytes())
    else:
        return None
    return digest.hexdigest()


def _has_rows(name: str, task_data: Path) -> bool:
    return any((task_data / f"{name}{suffix}").is_file() for suffix in (".jsonl", ".jsonl.gz"))
