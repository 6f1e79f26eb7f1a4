"""Changes that a process makes to the files under a folder, as Python reports them. Imports no package."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


class Hook:
    """Sees changes to files under `root` while armed; `point` is told of each before it is made."""

    def __init__(self, point: Callable[[str], None]) -> None:
        self.root: str | None = None
        self._point = point
        sys.addaudithook(self._audit)  # for good: there is no way to take one away

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self.root is None or event not in _CHANGES:
            return
        path = str(args[0])
        inside = path.startswith(self.root) or not path.startswith("/")  # relative: within rmtree
        if inside and _CHANGES[event](args):
            self._point(f"{event} {path.removeprefix(self.root)}")


def _opens(args: tuple[Any, ...]) -> bool:
    path, _, flags = args
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) and not str(path).endswith("lock")


_CHANGES: Mapping[str, Callable[[tuple[Any, ...]], bool]] = {
    "open": _opens,
    "os.mkdir": lambda args: not os.path.exists(args[0]),
    "os.rename": lambda args: True,
    "os.remove": lambda args: args[1] != -1 or os.path.lexists(args[0]),
    "os.rmdir": lambda args: True,
}
