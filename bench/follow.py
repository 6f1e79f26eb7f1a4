"""Every change of one kind of object, as dicts: a list, then its watch for as long as it is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec

from orchestrator.cluster.kube.client import Api
from orchestrator.errors import ClusterError

Object = dict[str, Any]
WATCH_S = 600.0
AGAIN_S = 1.0


def follow(api: Api, path: str, stop: threading.Event, selector: str = "") -> Iterator[tuple[str, Object]]:
    """(ADDED, MODIFIED or DELETED, object) until `stop`; after a fault all objects come as ADDED again."""
    query: dict[str, Any] = {"labelSelector": selector} if selector else {}
    version = ""
    while not stop.is_set():
        try:
            if not version:
                for page in api.pages(path, **query):
                    listed = msgspec.json.decode(page)
                    version = listed["metadata"]["resourceVersion"]
                    yield from (("ADDED", one) for one in listed["items"])
            watched = {**query, "resourceVersion": version, "allowWatchBookmarks": "true"}
            with api.watch(path, timeout_s=WATCH_S, **watched) as lines:
                for line in lines:
                    event = msgspec.json.decode(line)
                    if event["type"] == "ERROR":
                        version = ""
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]
                    if stop.is_set():
                        return
        except ClusterError:
            version = ""
            stop.wait(AGAIN_S)
