"""`orch gc`: what may go from dump/, and the command or the Job that removes it.

The trainer's gc decides by the marks on the volume; told to it is what runs, is fenced or given up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.client.local import LocalSession
from orchestrator.client.session import Session
from orchestrator.client.view import look
from orchestrator.controller.observed import Unit
from orchestrator.controller.world import World
from orchestrator.errors import ClusterError, UserError
from orchestrator.render import DUMP_MOUNT
from orchestrator.render.tidy import render_tidy
from trainer.config import GcConfig
from trainer.flags import describe
from trainer.layout import Dump
from trainer.results import ExitCode, Tidied
from trainer.settings import explicit, to_flags


def asked(session: Session, sweeps: Sequence[str], *, older_than: str, runs: bool, delete: bool) -> GcConfig:
    """The settings of the trainer's gc for this place. UserError for an age or a sweep that is none.

    `runs`: folders of cancelled, failed and removed runs may go, too.
    """
    dump = DUMP_MOUNT if not isinstance(session, LocalSession) else str(session.dump)
    try:
        given = GcConfig(dump=dump, older_than=older_than, delete=delete, sweeps=list(sweeps))
    except ValidationError as error:
        raise UserError("\n".join(describe(error, "--", {"older_than": older_than}))) from error
    here = Dump(session.dump).sweeps() if isinstance(session, LocalSession) else []
    for name in set(sweeps) - set(here):
        session.sweep(name)
    keep: list[str] = []
    unfinished: list[str] = []
    now = time.time()
    for stored in session.sweeps():
        if not sweeps or stored.name in sweeps:
            world = look(session, stored, now, led=True).world
            keep += [f"{stored.name}/{run}" for run in sorted(kept(world))]
            unfinished += [f"{stored.name}/{run}" for run in sorted(over(world)) if runs]
    return given.model_copy(update={"keep": keep, "unfinished": unfinished})


def kept(world: World) -> set[str]:
    """Ids of the runs that a Job or a pod may still write to or measure: PURE."""
    found: set[str] = set()
    for unit, history in world.histories.items():
        if history.job or history.fenced:
            found |= {unit.id} if unit.stage == "train" else set(history.runs)
    return found


def over(world: World) -> set[str]:
    """Ids of the runs that are not trained and will not be unless someone asks: PURE.

    They were cancelled, have failed for good, or are no longer in the sweep's file.
    """
    removed = {unit.id for unit in world.histories if unit.stage == "train"} - set(world.runs.by_id)
    ended = {run for run, step in world.trains.items() if step.verb == "failed"} | world.cancelled
    return {run for run in (ended | removed) - kept(world) if world.next(Unit("train", run)).verb != "done"}


def tidy(session: LocalSession, config: GcConfig) -> Tidied:
    """What goes here, by the trainer's gc and of the local cluster's own state."""
    found = _by_trainer(config)
    own = session.cluster.tidy(time.time() - config.age_s, config.sweeps, delete=config.delete)
    return found.model_copy(update={"items": [*found.items, *own]})


def _by_trainer(config: GcConfig) -> Tidied:
    """Ask the trainer, in a process of its own; its settings may be too many for a command line."""
    if not Path(config.dump).is_dir():
        return Tidied(deleted=config.delete)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write("".join(_toml(config.model_copy(update={"json_output": True}))))
        file.flush()
        command = [sys.executable, "-m", "trainer", "gc", f"@{file.name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == ExitCode.USAGE:
        raise UserError(done.stderr.strip())
    try:
        return Tidied.model_validate_json(done.stdout)
    except ValidationError as error:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise ClusterError(
            f"trainer gc: must say what goes, got exit {done.returncode} and {last[0]}; "
            f"run `python -m trainer gc --dump {config.dump}` to see"
        ) from error


def _toml(config: GcConfig) -> Iterator[str]:
    for name, value in explicit(config).items():
        yield f"{name} = {json.dumps(value)}\n"


def manifest(session: Session, config: GcConfig) -> dict[str, Any]:
    """The Job that does it in a cluster. RenderError when there is too much for one: name sweeps."""
    return render_tidy(["gc", *to_flags(config)], session.profile, session.namespace)
