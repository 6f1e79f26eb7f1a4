"""What a reflector holds: the newest known version of each object, whatever order the news comes in.

Three kinds of news meet here: whole lists, events of a watch, and the answers to our own writes (`put`,
`forget`), which may be ahead of the watch or behind it. Within one kind of object resourceVersions are
integers that grow with every change (guaranteed since Kubernetes 1.35, true before); others are taken as they
come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Item(NamedTuple, Generic[T]):
    """An object as it is kept: trimmed, under a key of its own."""

    key: str
    resource_version: str
    value: T


OnChange = Callable[[str, T | None, T | None], None]
"""(key, before, now); None for absent."""


class Store(Generic[T]):
    """Items by key. `on_change` is called under the store's lock, so in the order of the changes.

    It may read the store, and must be quick. A deletion is told in two steps where the event knows more than
    the store did: to the last state, then to None.
    """

    def __init__(self, on_change: OnChange[T]) -> None:
        self._on_change = on_change
        self._lock = threading.RLock()
        self._items: dict[str, Item[T]] = {}
        self._deleted: dict[str, int] = {}
        self._listed = 0
        self._seen = 0

    def get(self, key: str) -> T | None:
        """The object as last known."""
        item = self._items.get(key)
        return item.value if item else None

    def items(self) -> dict[str, T]:
        """A snapshot of all."""
        with self._lock:
            return {key: item.value for key, item in self._items.items()}

    def __len__(self) -> int:
        return len(self._items)

    def reached(self, resource_version: str) -> None:
        """The watch has told everything up to this version."""
        with self._lock:
            self._seen = max(self._seen, _number(resource_version) or 0)

    def upsert(self, item: Item[T]) -> bool:
        """An ADDED or MODIFIED event; False when something newer, or the same, is known."""
        with self._lock:
            self.reached(item.resource_version)
            if self._known(item):
                return False
            self._set(item)
            return True

    def delete(self, item: Item[T]) -> bool:
        """A DELETED event, with the object's last state; False when it is older than what is known."""
        version = _number(item.resource_version)
        with self._lock:
            self.reached(item.resource_version)
            cached = self._items.get(item.key)
            if cached is None and self._known(item):
                return False
            if cached is not None and _older(version, _number(cached.resource_version)):
                return False
            if cached is None or cached.resource_version != item.resource_version:
                self._set(item)
            self._drop(item.key, version)
            return True

    def put(self, item: Item[T]) -> bool:
        """The answer to our own write; False when the watch is past it, and so may even have seen its end."""
        version = _number(item.resource_version)
        with self._lock:
            if self._known(item) or (version is not None and version <= self._seen):
                return False
            self._set(item)
            return True

    def forget(self, key: str, resource_version: str) -> bool:
        """We deleted it as of this version: older news of it changes nothing any more."""
        version = _number(resource_version)
        with self._lock:
            cached = self._items.get(key)
            if cached is not None and _older(version, _number(cached.resource_version)):
                return False
            self._drop(key, version)
            return cached is not None

    def swap(self, items: Mapping[str, Item[T]], resource_version: str) -> None:
        """A whole list as of a version: what it lacks is gone, save for what was put since."""
        version = _number(resource_version)
        with self._lock:
            if version is None or version < self._seen:
                # Versions went back: a cluster restored from a backup. Nothing known before counts.
                self._deleted.clear()
                self._listed = self._seen = 0
                keep: set[str] = set()
            else:
                keep = {
                    key
                    for key, item in self._items.items()
                    if _older(version, _number(item.resource_version))
                }
            for key in self._items.keys() - items.keys() - keep:
                self._drop(key, None)
            for key, item in items.items():
                before = self._items.get(key)
                same = before is not None and before.resource_version == item.resource_version
                if not same and key not in keep and not self._forgotten(item):
                    self._set(item)
            self._listed = self._seen = version or 0
            self._deleted = {key: at for key, at in self._deleted.items() if at > self._listed}

    def differences(self, items: Mapping[str, Item[T]], resource_version: str) -> int:
        """Objects on which the store and a list of exactly that version disagree; should be 0."""
        version = _number(resource_version)
        with self._lock:
            then = {
                key: item.resource_version
                for key, item in self._items.items()
                if not _older(version, _number(item.resource_version))
            }
            ahead = self._items.keys() - then.keys()
            listed = {
                key: item.resource_version
                for key, item in items.items()
                if key not in ahead and not self._forgotten(item)
            }
            return sum(then.get(key) != listed.get(key) for key in then.keys() | listed.keys())

    def _known(self, item: Item[T]) -> bool:
        """Whether this, or something newer, is known of the key."""
        version = _number(item.resource_version)
        if version is None:
            return False
        cached = self._items.get(item.key)
        at = _number(cached.resource_version) if cached else None
        return version <= max(self._listed, at or 0) or self._forgotten(item)

    def _forgotten(self, item: Item[T]) -> bool:
        version = _number(item.resource_version)
        return version is not None and version <= self._deleted.get(item.key, -1)

    def _set(self, item: Item[T]) -> None:
        before = self.get(item.key)
        self._items[item.key] = item
        self._on_change(item.key, before, item.value)

    def _drop(self, key: str, version: int | None) -> None:
        if version is not None:
            self._deleted[key] = version
        before = self._items.pop(key, None)
        if before is not None:
            self._on_change(key, before.value, None)


def later(one: str | None, other: str) -> str:
    """The later of two versions; the other where they cannot be compared."""
    return one if one is not None and _older(_number(other), _number(one)) else other


def _number(resource_version: str) -> int | None:
    return int(resource_version) if resource_version.isdecimal() else None


def _older(one: int | None, other: int | None) -> bool:
    """Whether one is certainly older."""
    return one is not None and other is not None and one < other
