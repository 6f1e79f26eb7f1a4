"""Lists and watch events as they come over the wire; the objects in them stay raw JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from orchestrator.cluster.kube.errors import Request, broken, refused_event

S = TypeVar("S")
INITIAL_END = "k8s.io/initial-events-end"


class Meta(msgspec.Struct, rename="camel"):
    """What every object, list and bookmark carries."""

    resource_version: str = ""
    annotations: dict[str, str] | None = None

    @property
    def ends_the_list(self) -> bool:
        """Whether this bookmark ends a streamed list."""
        return (self.annotations or {}).get(INITIAL_END) == "true"


class Page(msgspec.Struct):
    """A list, or a page of one."""

    metadata: Meta
    items: list[msgspec.Raw] | None = None


class Event(msgspec.Struct):
    """ADDED, MODIFIED, DELETED or BOOKMARK, and its object."""

    type: str
    object: msgspec.Raw


class _Object(msgspec.Struct):
    metadata: Meta


_PAGE = msgspec.json.Decoder(Page)
_EVENT = msgspec.json.Decoder(Event)
_OBJECT = msgspec.json.Decoder(_Object)


def page(request: Request, raw: bytes) -> Page:
    """One page. Unavailable when it is no whole JSON."""
    return _decoded(request, _PAGE, raw)


def meta(request: Request, raw: msgspec.Raw) -> Meta:
    """The metadata alone."""
    return _decoded(request, _OBJECT, raw).metadata


def events(request: Request, lines: Iterable[bytes]) -> Iterator[Event]:
    """Events as they come; an ERROR event is raised as the error it describes."""
    for line in lines:
        if line:
            event = _decoded(request, _EVENT, line)
            if event.type == "ERROR":
                raise refused_event(request, event.object)
            yield event


def _decoded(request: Request, decoder: msgspec.json.Decoder[S], raw: bytes | msgspec.Raw) -> S:
    try:
        return decoder.decode(raw)
    except msgspec.MsgspecError as error:
        raise broken(request, str(error)) from error
