"""Starting the supervisor of a local Job, and ending what an ended one left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil

from orchestrator.cluster.container import JOB_UID_ENV

START_TIMEOUT_S = 60.0


def start(folder: Path, devices: tuple[str, ...]) -> str:
    """Start the supervisor of the Job in `folder`; returns once it has taken the Job, else what went wrong.

    It gets a session of its own: Ctrl-C here is not meant for it.
    """
    command = [sys.executable, "-P", "-m", "orchestrator.cluster.shim", str(folder), *devices]
    with open(folder / "shim.log", "ab") as log:
        try:
            code = subprocess.run(
                command,
                env=_with_our_code(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                timeout=START_TIMEOUT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"the supervisor did not start within {START_TIMEOUT_S:.0f} s"
    if code == 0:
        return ""
    said = (folder / "shim.log").read_text(encoding="utf-8", errors="replace")[-1000:]
    return f"the supervisor did not start, exit {code}: {said}"


def end_stragglers(uid: str) -> None:
    """SIGKILL every process of the Job `uid`, wherever it hangs in the process tree."""
    killed = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(JOB_UID_ENV) == uid:
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=5)


def _with_our_code() -> dict[str, str]:
    """The environment in which a child finds this very code, also when it is no installed package."""
    root = Path(__file__).resolve().parents[2]
    if root.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else str(root)}
