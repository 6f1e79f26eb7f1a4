"""What a Job's container is on this machine: its command, environment and paths, as in Kubernetes.

Pure, standard library only: the supervisor of a Job imports it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.sweep.quantity import read_quantity
from trainer.layout import READY_FILE_ENV, TERMINATION_LOG_ENV

JOB_UID_ENV = "ORCH_JOB_UID"
"""In the environment of every process of a Job, so that stragglers can be told from strangers."""
DUMP_MOUNT = "/data/dump"
SECRETS = "/var/run/secrets/"
"""Nothing is mounted here: a variable that points there is left out, the user's own holds."""
GRACE_S = 30
"""Kubernetes' default terminationGracePeriodSeconds."""

_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
# A mounted path stands at the start of a word, or after the sign that ends a flag or parts two paths.
_MOUNTED = re.compile(rf"(?:(?<=[=:])|^){re.escape(DUMP_MOUNT)}(?=/|:|$)")


@dataclass(frozen=True)
class Container:
    """A process to start. Times in seconds; no deadline is None."""

    argv: list[str]
    env: dict[str, str]
    cwd: str | None
    grace_s: float
    deadline_s: float | None


def container_of(job: Mapping[str, Any], folder: Path, devices: tuple[str, ...]) -> Container:
    """The first container of job.json in `folder` (dump/.orch/jobs/NAME), on `devices`."""
    pod = job["manifest"]["spec"]["template"]["spec"]
    spec = pod["containers"][0]
    dump = str(folder.resolve().parents[2])
    declared = declared_env(spec.get("env") or [], job["uid"])
    words = [expand(word, declared) for word in [*(spec.get("command") or []), *(spec.get("args") or [])]]
    argv = [mapped(word, dump) for word in words]
    if argv and argv[0] in ("python", "python3"):
        argv[0] = sys.executable
    env = _surroundings() | {
        name: mapped(value, dump) for name, value in declared.items() if not value.startswith(SECRETS)
    }
    env |= {
        TERMINATION_LOG_ENV: str(folder / "termination"),
        READY_FILE_ENV: str(folder / "ready"),
        JOB_UID_ENV: job["uid"],
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
    }
    cpu = spec.get("resources", {}).get("requests", {}).get("cpu")
    if cpu and not devices:  # more threads than cores would only hinder the Jobs beside it
        cores = max(1, int(read_quantity(str(cpu))))
        env.setdefault("OMP_NUM_THREADS", str(min(cores, len(os.sched_getaffinity(0)))))
    cwd = job.get("cwd")
    return Container(
        argv=argv,
        env=env,
        cwd=cwd if cwd and Path(cwd).is_dir() else None,
        grace_s=pod.get("terminationGracePeriodSeconds", GRACE_S),
        deadline_s=pod.get("activeDeadlineSeconds"),
    )


def declared_env(entries: list[Mapping[str, Any]], uid: str) -> dict[str, str]:
    """The manifest's variables in order; each may refer to earlier ones, and metadata.uid is the Job's."""
    env: dict[str, str] = {}
    for entry in entries:
        source = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        if source == "metadata.uid":
            env[entry["name"]] = uid
        elif "valueFrom" not in entry:
            env[entry["name"]] = expand(entry.get("value", ""), env)
    return env


def expand(text: str, env: Mapping[str, str]) -> str:
    """Kubernetes' expansion: `$$` is `$`, `$(NAME)` is its value, an unknown reference stays as it is."""
    return _REFERENCE.sub(
        lambda match: "$" if match[1] is None else env.get(match[1], match[0]),
        text,
    )


def mapped(text: str, dump: str) -> str:
    """`text` with the mount path of the volume replaced by the dump folder."""
    return _MOUNTED.sub(lambda _: dump, text)


def _surroundings() -> dict[str, str]:
    """This process's environment, with the means by which it found its own code."""
    env = dict(os.environ)
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env.setdefault("PYTHONUNBUFFERED", "1")
    # A trainer.py in the user's folder is not the trainer.
    env["PYTHONSAFEPATH"] = "1"
    return env
