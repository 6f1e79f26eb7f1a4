"""What may go from the volume: checkpoints of done runs, named unfinished runs, what is cached or left over.

Torch-free, and useful without the orchestrator. Nothing goes that a run could still need: a run is done when
its done mark is there and its adapter is the one that was marked, never by its age; a folder that someone has
written to lately stays.
Adapters of done runs, baselines, models and evaluations never go.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainer.config import GcConfig
from trainer.durable import is_aside, read_object, remove
from trainer.flags import UsageError
from trainer.folder import done_record, fault_of_result
from trainer.layout import Dump, RunFolder
from trainer.results import Leftover, LeftoverKind, Record, Tidied, in_words

TEMPORARY_S = 24 * 3600.0
"""What is written aside, or cached, stays at least this long after its last write, whatever was asked."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Found:
    """A file or folder that may go, and the check that is made again just before it does.

    With a `fault` it stays, and that is said.
    """

    path: Path
    kind: LeftoverKind
    why: str
    still: Callable[[], bool]
    fault: str | None = None


def tidy(config: GcConfig, now: float | None = None) -> Tidied:
    """Find what may go and, with `delete`, remove it; `now` in Unix seconds.

    UsageError, all faults at once, for a dump that is none and for names that are no SWEEP/RUN.
    """
    _check(config)
    items, faults = [], []
    for one in find(config, time.time() if now is None else now):
        name = one.path.relative_to(config.dump).as_posix()
        about = Leftover(path=name, kind=one.kind, bytes=size(one.path), why=one.why)
        fault = one.fault or (_remove(one) if config.delete else None)
        if fault:
            faults.append(f"{name}: {fault}")
        else:
            items.append(about)
    return Tidied(deleted=config.delete, items=items, faults=faults)


def find(config: GcConfig, now: float) -> Iterator[Found]:
    """Everything that may go, run by run, then what killed writers left."""
    dump, age_s = Dump(Path(config.dump)), config.age_s
    for sweep in config.sweeps or dump.sweeps():
        for folder in dump.runs(sweep):
            name = f"{sweep}/{folder.root.name}"
            if name in config.keep:
                continue
            yield from _checkpoints(folder, now, age_s)
            if name in config.unfinished:
                yield from _unfinished(folder, now, age_s)
    if not config.sweeps:  # all sweeps share it
        yield from _teacher(dump, now, max(age_s, TEMPORARY_S))
    yield from _temporary(dump, config, now, max(age_s, TEMPORARY_S))


def done_mark(folder: RunFolder) -> tuple[Record, float] | None:
    """A run's done record and when it was done (Unix seconds); None when its marks do not agree on that."""
    run = read_object(folder.run)
    record = done_record(folder, str(run.get("digest")))
    if record is None:
        return None
    finished = run.get("finished")
    return record, float(finished) if isinstance(finished, (int, float)) else folder.done.stat().st_mtime


def _checkpoints(folder: RunFolder, now: float, age_s: float) -> Iterator[Found]:
    mark = done_mark(folder)
    paths = [path for path in folder.checkpoints() if not path.is_symlink()]
    if mark is None or now - mark[1] < age_s or not paths:
        return
    if fault := _fault(folder, mark[0]):
        fault = (
            f"is marked done, and has {fault}: its checkpoints stay; train it again, and it goes on from them"
        )
        yield Found(folder.root, "run", "", lambda: False, fault)
        return
    for path in paths:
        yield Found(path, "checkpoint", f"its run is done for {_span(now - mark[1])}", partial(_done, folder))


def _done(folder: RunFolder) -> bool:
    mark = done_mark(folder)
    return mark is not None and _fault(folder, mark[0]) is None


def _fault(folder: RunFolder, record: Record) -> str | None:
    """What is wrong with the result of a run that is marked done: it may have to be made again."""
    try:
        return fault_of_result(folder, record)
    except OSError as error:
        return f"an adapter that cannot be read ({error.strerror or error})"


def _unfinished(folder: RunFolder, now: float, age_s: float) -> Iterator[Found]:
    # A new attempt takes the folder before anything else, and that is a write.
    over = partial(_given_up, folder, now, age_s)
    if over():
        why = f"not done, and not written to for {_span(now - last_write(folder.root))}"
        yield Found(folder.root, "run", why, over)


def _given_up(folder: RunFolder, now: float, age_s: float) -> bool:
    return not folder.done.exists() and _old(folder.root, now, age_s)


def _teacher(dump: Dump, now: float, age_s: float) -> Iterator[Found]:
    # A run touches the folder at every step that reads it.
    for path in sorted(dump.teacher.glob("*")):
        over = partial(_old, path, now, age_s)
        if not path.is_symlink() and not is_aside(path) and over():
            why = f"no run has used it for {_span(now - last_write(path))}; it can be computed again"
            yield Found(path, "teacher", why, over)


def _temporary(dump: Dump, config: GcConfig, now: float, age_s: float) -> Iterator[Found]:
    kept = [dump.root / name for name in config.keep]
    for root in [dump.root / sweep for sweep in config.sweeps] or [dump.root]:
        for path in _asides(dump, root):
            if _old(path, now, age_s) and not any(path.is_relative_to(one) for one in kept):
                why = f"a writer left it {_span(now - last_write(path))} ago"
                yield Found(path, "temporary", why, partial(_old, path, now, age_s))


def _old(path: Path, now: float, age_s: float) -> bool:
    return now - last_write(path) >= age_s


def _asides(dump: Dump, root: Path) -> Iterator[Path]:
    """What is written aside below `root`; the local cluster and the hub's cache keep their own house."""
    for here, folders, files in os.walk(root):
        yield from (Path(here, name) for name in (*folders, *files) if is_aside(Path(name)))
        into = [name for name in folders if not is_aside(Path(name))]
        folders[:] = [name for name in into if Path(here, name) not in (dump.orch, dump.hub)]


def last_write(path: Path) -> float:
    """When anything in a file or folder was written last (Unix seconds), 0 when it is gone."""
    return max((one.st_mtime for one in _stats(path)), default=0.0)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(one.st_size for one in _stats(path) if stat.S_ISREG(one.st_mode))


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Of the path and all in it; links are not followed, and what goes meanwhile is passed over."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    for one in (path, *inside):
        with contextlib.suppress(FileNotFoundError):
            yield one.lstat()


def _remove(one: Found) -> str | None:
    """Remove it unless it is needed again by now; what kept it from going."""
    try:
        if not one.still():
            return "stays, for it changed meanwhile"
        remove(one.path, wholly=True)
    except OSError as error:
        return f"cannot be removed, got {error.strerror or error}; remove it as its owner"
    return None


def _check(config: GcConfig) -> None:
    faults = []
    if not Path(config.dump).is_dir():
        faults.append(f"--dump: no such folder, got {config.dump!r}; name the folder of all artefacts")
    lists = {"--sweeps": config.sweeps, "--keep": config.keep, "--unfinished": config.unfinished}
    for flag, names in lists.items():
        shape = "SWEEP" if flag == "--sweeps" else "SWEEP/RUN"
        for name in names:
            words = name.split("/")
            if len(words) != len(shape.split("/")) or not all(map(_NAME.fullmatch, words)):
                faults.append(f"{flag}: must be {shape}, got {name!r}; write it as its folder is called")
    if faults:
        raise UsageError("\n".join(faults))


def _span(seconds: float) -> str:
    """Whole days, else whole hours."""
    return f"{seconds // 86400:.0f} d" if seconds >= 86400 else f"{seconds // 3600:.0f} h"


def lines(tidied: Tidied) -> Iterator[str]:
    """What it says to people: a line each, then the sum."""
    for one in tidied.items:
        yield one.line()
    yield from tidied.faults
    verb = "gone" if tidied.deleted else "would go"
    end = "" if tidied.deleted or not tidied.items else "; --delete removes it"
    yield f"{len(tidied.items)} {verb}, {in_words(tidied.bytes)}{end}"
