"""Things of which most are over, looked at without a look at those."""

from __future__ import annotations

from collections.abc import Set
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    """What says its name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class OpenIndex(Generic[T]):
    """Things by key, whose names stay; a look costs what is open, and what was closed since the last one.

    The set of `closed` names that `open` is given may only grow: what is not closed any more is another set,
    and all is looked at again. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._all: dict[str, T] = {}
        self._open: dict[str, T] = {}
        self._closed: Set[str] | None = None

    def __len__(self) -> int:
        return len(self._all)

    def set(self, key: str, one: T) -> None:
        self._all[key] = self._open[key] = one

    def drop(self, key: str) -> None:
        """Absent is fine."""
        self._all.pop(key, None)
        self._open.pop(key, None)

    def get(self, key: str) -> T | None:
        return self._all.get(key)

    def all(self) -> list[T]:
        return list(self._all.values())

    def open(self, closed: Set[str]) -> list[T]:
        """Those whose names are not `closed`, in the order of `all`."""
        known = self._open if closed is self._closed else self._all
        self._closed, self._open = closed, {key: one for key, one in known.items() if one.name not in closed}
        return list(self._open.values())
