"""What was fetched: done marks, and whether what they speak of is still whole. Torch-free, no network.

    $HF_HOME/
      hub/                              the hub library's cache: models, and the files datasets are made of
      orch/<kind>--<name>--<hash>.json  a done mark, written last
      orch/rows/<key>--<random>/<split> rows of a dataset in Arrow, read in place

Marks hold names and sizes and no path, so that the volume may be mounted anywhere, and read-only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.durable import read_json, write_json
from trainer.flags import UsageError

Kind = Literal["model", "rows", "task"]
STALE_S = 24 * 3600
"""What a killed fetch left unfinished is removed once nobody wrote to it for so long."""


@dataclass(frozen=True)
class Wanted:
    """What is fetched once: a model, a dataset's rows, or what an lm-eval task needs.

    revision: as asked for, a branch, tag or commit. subset: a dataset's configuration. options: further
    arguments of `datasets.load_dataset`, as JSON.
    """

    kind: Kind
    name: str
    revision: str = "main"
    subset: str | None = None
    options: str = "{}"

    @property
    def key(self) -> str:
        """Its name among files: readable, and different for different things."""
        readable = re.sub(r"[^\w.-]+", "--", "--".join(filter(None, (self.name, self.subset))))[:80]
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.kind}--{readable}--{digest[:12]}"


@dataclass(frozen=True)
class Mark:
    """That something was fetched whole.

    commit: what the revision was resolved to. folder: relative, see Store.path. files: size of each, by path
    in it. sources: the hub's own digest of each file it came from. parts: the rows a task needs.
    made_by: the version of lm-eval that named them.
    """

    wanted: Wanted
    commit: str | None = None
    folder: str = ""
    files: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Wanted, ...] = ()
    made_by: str = ""


@dataclass(frozen=True)
class Store:
    """Where fetched things lie: `home` is HF_HOME, `cache` the hub library's cache in it."""

    home: Path
    cache: Path

    @classmethod
    def here(cls) -> Store:
        """As the environment says (HF_HOME, HF_HUB_CACHE)."""
        from huggingface_hub import constants

        return cls(Path(constants.HF_HOME), Path(constants.HF_HUB_CACHE))

    @property
    def marks(self) -> Path:
        return self.home / "orch"

    @property
    def rows(self) -> Path:
        return self.marks / "rows"

    def mark_file(self, wanted: Wanted) -> Path:
        return self.marks / f"{wanted.key}.json"

    def path(self, mark: Mark) -> Path:
        """The folder a mark speaks of."""
        return (self.cache if mark.wanted.kind == "model" else self.rows) / mark.folder

    def read(self, wanted: Wanted) -> Mark | None:
        """The mark of what is wanted; None when there is none that can be read."""
        try:
            value: Any = read_json(self.mark_file(wanted))
            parts = tuple(Wanted(**part) for part in value["parts"])
            mark = Mark(**{**value["mark"], "wanted": Wanted(**value["wanted"]), "parts": parts})
        except (KeyError, TypeError, ValueError):
            return None
        return mark if mark.wanted == wanted else None

    def write(self, mark: Mark) -> None:
        """Publish a mark; what it speaks of must be durable already."""
        value = asdict(mark)
        wanted, parts = value.pop("wanted"), value.pop("parts")
        write_json(self.mark_file(mark.wanted), {"v": 1, "wanted": wanted, "parts": parts, "mark": value})

    def faults(self, mark: Mark) -> list[str]:
        """What is missing of a mark's files or has another size: cheap, one look at each."""
        found = []
        for name, size in mark.files.items():
            try:
                there = (self.path(mark) / name).stat().st_size
            except OSError:
                found.append(f"{name} is missing")
                continue
            if there != size:
                found.append(f"{name} must have {size} bytes, got {there}")
        return found

    def is_whole(self, wanted: Wanted) -> bool:
        """Whether it was fetched and every file of it is there in its size."""
        mark = self.read(wanted)
        return mark is not None and not self.faults(mark)

    def find(self, wanted: Wanted, place: str) -> Path | None:
        """The folder of what is wanted, None when it was never fetched.

        Raises UsageError, headed by `place`, when it was and is damaged since.
        """
        mark = self.read(wanted)
        if mark is None:
            return None
        faults = self.faults(mark)
        if faults:
            raise UsageError(
                f"{place}: {wanted.name} is damaged on the volume, got {'; '.join(faults[:3])}; "
                "fetch it again (`python -m trainer fetch`)"
            )
        return self.path(mark)


def sizes(folder: Path) -> dict[str, int]:
    """Size of each file in a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def weak_lock(path: str | Path, *, timeout: float | None = None) -> Iterator[None]:
    """Wait for others at `path` where the volume has locks; go on without where it has none.

    It only saves doing work twice: whatever is published appears by rename. So it is flock or nothing: the
    file that libraries fall back to, whose existence is the lock, outlives a killed pod for ever.
    `timeout` is there for the hub library's sake, which never gives one here.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_stale(paths: Iterable[Path], clock: Path) -> None:
    """Remove unfinished files and folders that nobody wrote to for STALE_S, by the volume's own clock.

    clock: a file written just now.
    """
    now = clock.stat().st_mtime
    for path in paths:
        with contextlib.suppress(OSError):
            inside = path.rglob("*") if path.is_dir() else ()
            if now - max(one.lstat().st_mtime for one in (path, *inside)) > STALE_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
