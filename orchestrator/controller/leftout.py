"""What of a status its place does not keep, as a set of paths: PURE.

An older definition of Sweeps refuses a status with a field it lacks, or drops the field without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]
Paths = frozenset[Path]

NOTHING: Paths = frozenset()
NEWER: Paths = frozenset({("owed",)})
"""Fields that the first definition of Sweeps had not."""
WORDS: Paths = NEWER | {("failures",), ("conditions", "message")}
"""All that is long."""


def without(value: Any, paths: Paths) -> Any:
    """A JSON value but for what is at these paths; a list stands for each of its items."""
    if not paths:
        return value
    if isinstance(value, list):
        return [without(one, paths) for one in value]
    if not isinstance(value, Mapping):
        return value
    below = {key: frozenset(path[1:] for path in paths if path[0] == key and len(path) > 1) for key in value}
    return {key: without(one, below[key]) for key, one in value.items() if (key,) not in paths}


def dropped(sent: Any, kept: Any) -> Paths:
    """The paths of what was sent and is not kept."""
    return frozenset(_dropped(sent, kept, ()))


def _dropped(sent: Any, kept: Any, place: Path) -> Iterator[Path]:
    if isinstance(sent, Mapping) and isinstance(kept, Mapping):
        for key, one in sent.items():
            if key in kept:
                yield from _dropped(one, kept[key], (*place, key))
            else:
                yield (*place, key)
    elif isinstance(sent, list) and isinstance(kept, list):
        for one, other in zip(sent, kept, strict=False):
            yield from _dropped(one, other, place)
