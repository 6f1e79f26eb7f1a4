"""A small API server over real sockets: the rules our door depends on, and every fault a real one has shown.

Objects live in collections by path; each change has a version and is an event. `next` scripts what the coming
requests of a method get instead of a true answer.
"""

from __future__ import annotations

import contextlib
import copy
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

Json = dict[str, Any]
SERVED = ("configmaps", "jobs", "leases", "pods")
INITIAL_END = {"k8s.io/initial-events-end": "true"}


def status(code: int, reason: str, message: str, **details: Any) -> bytes:
    """The body of a refusal."""
    body = {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}
    return json.dumps(body | {"details": details}).encode()


@dataclass
class Asked:
    """A request as it arrived; a GET with `watch` is called so."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any = None
    closed_watches: int = 0


@dataclass
class Change:
    version: int
    collection: str
    kind: str
    object: Json


Fault = Callable[["Handler", Asked], None]


@dataclass
class World:
    """What is stored, and who looks at it."""

    objects: dict[str, dict[str, Json]] = field(default_factory=lambda: defaultdict(dict))
    history: list[Change] = field(default_factory=list)
    version: int = 100
    compacted: int = 0
    token: str | None = None
    streams_lists: bool = True
    closed_watches: int = 0
    asked: list[Asked] = field(default_factory=list)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    changed: threading.Condition = field(default_factory=threading.Condition)
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


def store(world: World, collection: str, name: str, body: Json) -> Json:
    world.version += 1
    kind = "MODIFIED" if name in world.objects[collection] else "ADDED"
    body = copy.deepcopy(body)
    body["metadata"]["resourceVersion"] = str(world.version)
    body["metadata"].setdefault("uid", f"uid-{world.version}")
    world.objects[collection][name] = body
    world.history.append(Change(world.version, collection, kind, body))
    world.changed.notify_all()
    return body


def drop(world: World, collection: str, name: str) -> None:
    world.version += 1
    body = copy.deepcopy(world.objects[collection].pop(name))
    body["metadata"]["resourceVersion"] = str(world.version)
    world.history.append(Change(world.version, collection, "DELETED", body))
    world.changed.notify_all()


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
        else:
            getattr(self, f"_{method.lower()}")(asked)

    # True answers

    def _get(self, asked: Asked) -> None:
        collection, _, name = asked.path.rpartition("/")
        with self.world.changed:
            if asked.path.endswith(SERVED):
                self._list(asked)
            elif name in self.world.objects.get(collection, {}):
                self.reply(200, json.dumps(self.world.objects[collection][name]).encode())
            elif collection.endswith(SERVED):
                self._not_found(collection, name)
            else:
                self.reply(404, b"404 page not found\n", [("Content-Type", "text/plain; charset=utf-8")])

    def _not_found(self, collection: str, name: str) -> None:
        kind = collection.rsplit("/", 1)[-1]
        message = f'{kind} "{name}" not found'
        self.reply(404, status(404, "NotFound", message, name=name, kind=kind))

    def _list(self, asked: Asked) -> None:
        token = json.loads(asked.query["continue"]) if "continue" in asked.query else {}
        exact = asked.query.get("resourceVersion") if "resourceVersionMatch" in asked.query else None
        version = int(token.get("version") or exact or self.world.version)
        if version < self.world.compacted and (token or exact):
            self.reply(410, status(410, "Expired", "the provided continue parameter is too old"))
            return
        if token and any(name.startswith("resourceVersion") for name in asked.query):
            self.reply(400, status(400, "BadRequest", "specifying resource version is not allowed"))
            return
        names = sorted(self._as_of(asked.path, version).items())
        names = [(name, one) for name, one in names if _matches(asked, one)]
        begin, limit = int(token.get("begin", 0)), int(asked.query.get("limit") or 0) or len(names) + 1
        metadata = {"resourceVersion": str(version)}
        if begin + limit < len(names):
            metadata["continue"] = json.dumps({"version": version, "begin": begin + limit})
        items = [one for _, one in names[begin : begin + limit]]
        self.reply(200, json.dumps({"kind": "List", "metadata": metadata, "items": items or None}).encode())

    def _as_of(self, collection: str, version: int) -> dict[str, Json]:
        if version >= self.world.version:
            return self.world.objects[collection]
        then: dict[str, Json] = {}
        for change in self.world.history:
            if change.collection == collection and change.version <= version:
                then[change.object["metadata"]["name"]] = change.object
                if change.kind == "DELETED":
                    del then[change.object["metadata"]["name"]]
        return then

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
                        if change.kind == "BOOKMARK" or _matches(asked, change.object):
                            self.chunk(_line(change.kind, change.object))
                        reached = change.version
                left_s = until - time.monotonic()
                if world.stopping or world.closed_watches > asked.closed_watches or left_s <= 0:
                    break
                world.changed.wait(left_s)
        self.chunk(b"")

    def _begin(self, asked: Asked) -> None:
        for one in self.world.objects[asked.path].values():
            if _matches(asked, one):
                self.chunk(_line("ADDED", one))
        metadata = {"resourceVersion": str(self.world.version), "annotations": INITIAL_END}
        self.chunk(_line("BOOKMARK", {"metadata": metadata}))

    def _post(self, asked: Asked) -> None:
        name = asked.body["metadata"]["name"]
        with self.world.changed:
            if name in self.world.objects[asked.path]:
                message = f'"{name}" already exists'
                self.reply(409, status(409, "AlreadyExists", message))
            else:
                self.reply(201, json.dumps(store(self.world, asked.path, name, asked.body)).encode())

    def _patch(self, asked: Asked) -> None:
        collection, _, name = asked.path.rpartition("/")
        with self.world.changed:
            stored = self.world.objects[collection].get(name)
            if stored is None:
                self._not_found(collection, name)
                return
            wanted = asked.body["metadata"].get("resourceVersion")
            if wanted not in (None, stored["metadata"]["resourceVersion"]):
                self.reply(409, status(409, "Conflict", "the object has been modified"))
                return
            merged = _merged(stored, asked.body)
            self.reply(200, json.dumps(store(self.world, collection, name, merged)).encode())

    def _delete(self, asked: Asked) -> None:
        collection, _, name = asked.path.rpartition("/")
        with self.world.changed:
            stored = self.world.objects[collection].get(name)
            if stored is None:
                self._not_found(collection, name)
                return
            for key, wanted in asked.body["preconditions"].items():
                if stored["metadata"][key] != wanted:
                    self.reply(409, status(409, "Conflict", f"the {key} in the precondition differs"))
                    return
            drop(self.world, collection, name)
            self.reply(200, status(200, "", ""))

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


def _merged(stored: Json, change: Json) -> Json:
    """RFC 7386."""
    merged = dict(stored)
    for key, value in change.items():
        if isinstance(value, dict):
            merged[key] = _merged(merged.get(key) or {}, value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _matches(asked: Asked, one: Json) -> bool:
    wanted = dict(part.split("=") for part in asked.query.get("labelSelector", "").split(",") if part)
    return wanted.items() <= one["metadata"].get("labels", {}).items()
