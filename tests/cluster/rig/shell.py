"""Runs a command to its end and says what it said when it fails."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.rig.settings import RigError


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    text: str | None = None,
) -> str:
    """Standard output of a command that must succeed; RigError with its last words otherwise."""
    command = [str(part) for part in argv]
    done = subprocess.run(command, cwd=cwd, env=env, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-15:]
        raise RigError(f"{' '.join(command)[:300]}: exit {done.returncode}:\n" + "\n".join(words))
    return done.stdout
