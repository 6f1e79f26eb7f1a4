"""Whole lists of one kind of object, trimmed while they are read: no page becomes dicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import msgspec

from orchestrator.cluster.kube import wire
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import Gone, Request
from orchestrator.cluster.kube.store import Item

LOG = logging.getLogger(__name__)
T = TypeVar("T")
PAGE = 500


@dataclass
class Stats:
    """Counts since the start.

    `dropped` events told what was known already; `relists` are lists after the first; `drift` counts objects
    that a check found to differ from the server's, and should stay 0.
    """

    lists: int = 0
    watches: int = 0
    events: int = 0
    dropped: int = 0
    relists: int = 0
    drift: int = 0
    errors: int = 0
    undecodable: int = 0


class Listed(NamedTuple, Generic[T]):
    """All objects as of a version."""

    items: dict[str, Item[T]]
    version: str


class Lister(Generic[T]):
    """Reads lists; `heard` is called at each sign of life from the server."""

    def __init__(
        self,
        api: Api,
        request: Request,
        decode: Callable[[bytes], Item[T]],
        query: dict[str, str],
        stats: Stats,
        heard: Callable[[], None],
    ) -> None:
        self._api = api
        self._request = request
        self._decode = decode
        self._query = query
        self._stats = stats
        self._heard = heard

    def paged(self, limit: int = PAGE, **query: str) -> Listed[T]:
        """The whole list, page by page."""
        items: dict[str, Item[T]] = {}
        version = ""
        self._stats.lists += 1
        try:
            for raw_page in self._api.pages(self._request.path, limit=limit, **self._query, **query):
                page = wire.page(self._request, raw_page)
                self._heard()
                version = page.metadata.resource_version
                for raw in page.items or ():
                    if (item := self.item(raw)) is not None:
                        items[item.key] = item
        except Gone:
            # The token expired between two pages: then all in one, as client-go's pager does.
            if not version or not limit:
                raise
            return self.paged(0, **query)
        return Listed(items, version)

    def streamed(self, events: Iterator[wire.Event]) -> Listed[T] | None:
        """The events of a watch up to the bookmark that ends its list; None when there was none."""
        items: dict[str, Item[T]] = {}
        for event in events:
            self._heard()
            if event.type == "BOOKMARK":
                meta = wire.meta(self._request, event.object)
                if meta.ends_the_list:
                    return Listed(items, meta.resource_version)
            elif (item := self.item(event.object)) is not None:
                items[item.key] = item
        return None

    def item(self, raw: msgspec.Raw) -> Item[T] | None:
        """One object; None, and counted, when it cannot be read."""
        try:
            return self._decode(bytes(raw))
        except msgspec.MsgspecError as error:
            self._stats.undecodable += 1
            LOG.warning("%s: skipped an object that cannot be read: %s", self._request.path, error)
            return None
