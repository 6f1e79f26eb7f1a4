"""A small API server over real sockets: the rules of `apistore`, and every fault a real one has shown.

`next` scripts what the coming requests of a method get instead of a true answer.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.orchestrator.cluster.kube.apistore import (
    ApiStore,
    Asked,
    Change,
    Json,
    drop,
    matches,
    respond,
    status,
    store,
)

INITIAL_END = {"k8s.io/initial-events-end": "true"}


Fault = Callable[["Handler", Asked], None]


@dataclass
class World(ApiStore):
    """What is stored, who looks at it, and what it does to them."""

    token: str | None = None
    streams_lists: bool = True
    closed_watches: int = 0
    asked: list[Asked] = field(default_factory=list)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    stopping: bool = False


class FakeApiServer:
    """Start it with `with`; `kubeconfig` writes a file that leads to it."""

    def __init__(self) -> None:
        self.world = World()
        handler = type("Bound", (Handler,), {"world": self.world})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> FakeApiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.world.changed:
            self.world.stopping = True
            self.world.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def asked(self) -> list[Asked]:
        with self.world.changed:
            return list(self.world.asked)

    def wait_asked(self, method: str, count: int) -> list[Asked]:
        """Wait until so many requests of a method have come."""
        with self.world.changed:
            assert self.world.changed.wait_for(lambda: len(self._of(method)) >= count, 30), self.world.asked
            return self._of(method)

    def _of(self, method: str) -> list[Asked]:
        return [one for one in self.world.asked if one.method == method]

    def kubeconfig(self, folder: Path, user: Json | None = None, namespace: str | None = "ml") -> Path:
        context = {"cluster": "lab", "user": "me"} | ({"namespace": namespace} if namespace else {})
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": user or {"token": "secret-token"}}],
            "contexts": [{"name": "lab", "context": context}],
        }
        file = folder / "config"
        file.write_text(json.dumps(config), encoding="utf-8")
        return file

    # What a test does to the world

    def next(self, method: str, *faults: Fault) -> None:
        """What the coming requests of a method (`GET`, `watch`, `POST`, …) get instead."""
        with self.world.changed:
            self.world.faults[method].extend(faults)

    def put(self, collection: str, name: str, **fields: Any) -> Json:
        """Create or change an object."""
        with self.world.changed:
            return store(self.world, collection, name, {"metadata": {"name": name}} | fields)

    def remove(self, collection: str, name: str) -> None:
        with self.world.changed:
            drop(self.world, collection, name)

    def compact(self) -> None:
        """Forget the past: whoever watches from before gets 410."""
        with self.world.changed:
            self.world.compacted = self.world.version

    def bookmark(self) -> None:
        """Something happens elsewhere, and every watch is told how far it has come."""
        with self.world.changed:
            self.world.version += 1
            metadata = {"resourceVersion": str(self.world.version)}
            self.world.history.append(Change(self.world.version, "*", "BOOKMARK", {"metadata": metadata}))
            self.world.changed.notify_all()

    def end_watches(self) -> None:
        """End the open ones, cleanly."""
        with self.world.changed:
            self.world.closed_watches += 1
            self.world.changed.notify_all()

    def restore(self, version: int) -> None:
        """Go back to a backup: the objects stay, versions begin again lower."""
        with self.world.changed:
            self.world.version = version
            self.world.history.clear()
            for objects in self.world.objects.values():
                for one in objects.values():
                    one["metadata"]["resourceVersion"] = str(version)
            self.world.closed_watches += 1
            self.world.changed.notify_all()


# Faults


def answer(code: int, body: bytes, **headers: str) -> Fault:
    """An answer of our own; header names with `_` for `-`."""

    def fault(handler: Handler, asked: Asked) -> None:
        handler.reply(code, body, [(name.replace("_", "-"), value) for name, value in headers.items()])

    return fault


def refuse(code: int, reason: str, message: str = "no", **headers: str) -> Fault:
    return answer(code, status(code, reason, message), **headers)


def cut(body: bytes, promised: int) -> Fault:
    """Promise more bytes than come, then reset the connection."""

    def fault(handler: Handler, asked: Asked) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % promised + body)
        handler.reset()

    return fault


def hang(handler: Handler, asked: Asked) -> None:
    """Take the request and never say a word."""
    handler.wait_for_the_end()


def stream(*lines: bytes, end: str = "eof") -> Fault:
    """A 200 with these lines, then the end: `eof`, `reset`, or `hang` as a half-open connection does."""

    def fault(handler: Handler, asked: Asked) -> None:
        handler.begin_stream()
        for line in lines:
            handler.chunk(line)
        if end == "hang":
            handler.wait_for_the_end()
        elif end == "reset":
            handler.reset()
        else:
            handler.chunk(b"")

    return fault


def event(kind: str, name: str, version: int, **fields: Any) -> bytes:
    """A line of a watch."""
    body = {"metadata": {"name": name, "resourceVersion": str(version)}} | fields
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def error_event(code: int, reason: str, message: str, **details: Any) -> bytes:
    """What a watch that began well says when it cannot go on."""
    body = json.loads(status(code, reason, message, **details))
    return json.dumps({"type": "ERROR", "object": body}).encode() + b"\n"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    world: World

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client left: its right
            self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        method = "watch" if query.get("watch") else self.command
        asked = Asked(method, url.path, query, dict(self.headers), body)
        world = self.world
        with world.changed:
            asked.closed_watches = world.closed_watches
            fault = world.faults[method].popleft() if world.faults[method] else None
            world.asked.append(asked)
            world.changed.notify_all()
        if fault is not None:
            fault(self, asked)
        elif world.token is not None and asked.headers.get("Authorization") != f"Bearer {world.token}":
            self.reply(401, status(401, "Unauthorized", "Unauthorized"))
        elif method == "watch":
            self._watch(asked)
        else:
            self.respond(asked)

    def respond(self, asked: Asked) -> None:
        """A true answer."""
        code, said, plain = respond(self.world, asked)
        self.reply(code, said, [("Content-Type", "text/plain; charset=utf-8")] if plain else [])

    def _watch(self, asked: Asked) -> None:
        world = self.world
        initial = asked.query.get("sendInitialEvents") == "true"
        if initial and not world.streams_lists:
            message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch"
            self.reply(422, status(422, "Invalid", message))
            return
        until = time.monotonic() + float(asked.query["timeoutSeconds"])
        self.begin_stream()
        with world.changed:
            reached = world.version if initial else int(asked.query["resourceVersion"])
            if reached < world.compacted:
                self.chunk(error_event(410, "Expired", f"too old resource version: {reached}"))
                self.chunk(b"")
                return
            if initial:
                self._begin(asked)
            while True:
                for change in world.history:
                    if change.version > reached and change.collection in (asked.path, "*"):
                        if change.kind == "BOOKMARK" or matches(asked, change.object):
                            self.chunk(_line(change.kind, change.object))
                        reached = change.version
                left_s = until - time.monotonic()
                if world.stopping or world.closed_watches > asked.closed_watches or left_s <= 0:
                    break
                world.changed.wait(left_s)
        self.chunk(b"")

    def _begin(self, asked: Asked) -> None:
        for one in self.world.objects[asked.path].values():
            if matches(asked, one):
                self.chunk(_line("ADDED", one))
        metadata = {"resourceVersion": str(self.world.version), "annotations": INITIAL_END}
        self.chunk(_line("BOOKMARK", {"metadata": metadata}))

    # Bytes

    def reply(self, code: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def reset(self) -> None:
        """RST instead of FIN."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def wait_for_the_end(self) -> None:
        self.wfile.flush()
        with self.world.changed:
            self.world.changed.wait_for(lambda: self.world.stopping, 60)
        self.close_connection = True


def _line(kind: str, body: Json) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"
