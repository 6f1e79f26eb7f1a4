"""What Python imports first in every process of a test that has this folder on PYTHONPATH.

`python -m trainer` becomes a stub that trains by making a file. ORCH_KILL, a JSON object {program, root, at,
once}, kills the first process of `program` that comes so far, at its change number `at` to files
under `root`; `once` is made then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from changes import Hook  # type: ignore[import-not-found]


def stub_trainer(words: list[str]) -> int:
    """A trainer that fails its first attempt of run r1, and emits the record again of what is done."""
    stage = words[0]
    run_id = next(words[n + 1] for n, word in enumerate(words) if word.replace("_", "-") == "--run-id")
    output = next((words[n + 1] for n, word in enumerate(words) if word == "--output-dir"), None)
    folder = Path(output) if output else Path(os.environ["STUB_DUMP"]) / ".stub" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    code, tried, done = 0, folder / "tried", folder / "done"
    if run_id.startswith("r1-") and not tried.exists():
        tried.touch()
        code = 70
    elif not done.exists():
        with open(folder / "trainings", "a") as file:
            file.write("trained\n")
        done.touch()
    record = {
        "v": 1,
        "stage": stage,
        "run_id": run_id,
        "status": "failed" if code else "done",
        "exit_code": code,
    }
    Path(os.environ["ORCH_TERMINATION_LOG"]).write_text(json.dumps(record))
    return code


def die_at(program: str, root: str, at: int, once: str) -> None:
    count = 0

    def point(what: str) -> None:
        nonlocal count
        if count == at and not os.path.exists(once):
            hook.root = None
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    hook = Hook(point)
    hook.root = root


if sys.orig_argv[1:3] == ["-m", "trainer"]:
    code = stub_trainer(sys.orig_argv[3:])
    sys.stdout.flush()
    os._exit(code)
wanted = json.loads(os.environ.get("ORCH_KILL", "null"))
if wanted and wanted["program"] in sys.orig_argv:
    die_at(**wanted)
