"""A record as it is kept: its text."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping
from typing import Any

import msgspec

_OBJECT = msgspec.json.Decoder(dict[str, Any])


class RecordText(Mapping[str, Any]):
    """The JSON text of an object, decoded at every look: a quarter of the memory that its dicts take.

    `items` is one look, however many are read. ValueError for what is no JSON object.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text
        self._decoded()

    def __getitem__(self, key: str) -> Any:
        return self._decoded()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RecordText) and self._text == other._text:
            return True
        return isinstance(other, Mapping) and self._decoded() == dict(other.items())

    def items(self) -> ItemsView[str, Any]:
        return self._decoded().items()

    def _decoded(self) -> dict[str, Any]:
        return _OBJECT.decode(self._text)
