"""What an API server stores, and how it answers: the rules our door depends on, without a socket.

Objects live in collections by path; each change has a version and is an event.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Json = dict[str, Any]


class Answer(NamedTuple):
    """A status and a body, which is JSON unless `plain`."""

    code: int
    body: bytes
    plain: bool = False


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


@dataclass
class ApiStore:
    """What is stored. `served` are the kinds there are.

    `collects`: somebody plays the garbage collector, so a Foreground deletion only marks the object.
    `unknown` are fields of a status that the definition lacks: an apply of them is refused, or they are
    dropped where it `prunes`. A change of more than `most_bytes` is refused.
    `full` are the kinds of which a quota allows no more objects.
    """

    objects: dict[str, dict[str, Json]] = field(default_factory=lambda: defaultdict(dict))
    history: list[Change] = field(default_factory=list)
    version: int = 100
    compacted: int = 0
    served: tuple[str, ...] = ("configmaps", "jobs", "leases", "pods")
    collects: bool = False
    unknown: frozenset[str] = frozenset()
    prunes: bool = False
    most_bytes: int = 1_572_864
    full: set[str] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)


def status(code: int, reason: str, message: str, **details: Any) -> bytes:
    """The body of a refusal."""
    body = {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}
    return json.dumps(body | {"details": details}).encode()


def store(world: ApiStore, collection: str, name: str, body: Json) -> Json:
    """Create or replace; the object as it is stored."""
    stored = world.objects[collection].get(name)
    body = json.loads(json.dumps(body))
    world.version += 1
    body["metadata"]["resourceVersion"] = str(world.version)
    body["metadata"].setdefault("uid", f"uid-{world.version}")
    world.objects[collection][name] = body
    world.history.append(Change(world.version, collection, "MODIFIED" if stored else "ADDED", body))
    world.changed.notify_all()
    return body


def drop(world: ApiStore, collection: str, name: str) -> None:
    world.version += 1
    body = json.loads(json.dumps(world.objects[collection].pop(name)))
    body["metadata"]["resourceVersion"] = str(world.version)
    world.history.append(Change(world.version, collection, "DELETED", body))
    world.changed.notify_all()


def respond(world: ApiStore, asked: Asked) -> Answer:
    """What is done and said on a request other than a watch."""
    with world.changed:
        return _RULES[asked.method](world, asked)


def _get(world: ApiStore, asked: Asked) -> Answer:
    collection, _, name = asked.path.rpartition("/")
    if asked.path.endswith(world.served):
        return _list(world, asked)
    if name in world.objects.get(collection, {}):
        return Answer(200, json.dumps(world.objects[collection][name]).encode())
    if collection.endswith(world.served):
        return _not_found(collection, name)
    return Answer(404, b"404 page not found\n", plain=True)


def _not_found(collection: str, name: str) -> Answer:
    kind = collection.rsplit("/", 1)[-1]
    return Answer(404, status(404, "NotFound", f'{kind} "{name}" not found', name=name, kind=kind))


def _list(world: ApiStore, asked: Asked) -> Answer:
    token = json.loads(asked.query["continue"]) if "continue" in asked.query else {}
    exact = asked.query.get("resourceVersion") if "resourceVersionMatch" in asked.query else None
    version = int(token.get("version") or exact or world.version)
    if version < world.compacted and (token or exact):
        return Answer(410, status(410, "Expired", "the provided continue parameter is too old"))
    if token and any(name.startswith("resourceVersion") for name in asked.query):
        return Answer(400, status(400, "BadRequest", "specifying resource version is not allowed"))
    names = sorted(_as_of(world, asked.path, version).items())
    names = [(name, one) for name, one in names if matches(asked, one)]
    begin, limit = int(token.get("begin", 0)), int(asked.query.get("limit") or 0) or len(names) + 1
    metadata = {"resourceVersion": str(version)}
    if begin + limit < len(names):
        metadata["continue"] = json.dumps({"version": version, "begin": begin + limit})
    items = [one for _, one in names[begin : begin + limit]]
    return Answer(200, json.dumps({"kind": "List", "metadata": metadata, "items": items or None}).encode())


def _as_of(world: ApiStore, collection: str, version: int) -> dict[str, Json]:
    if version >= world.version:
        return world.objects[collection]
    then: dict[str, Json] = {}
    for change in world.history:
        if change.collection == collection and change.version <= version:
            then[change.object["metadata"]["name"]] = change.object
            if change.kind == "DELETED":
                del then[change.object["metadata"]["name"]]
    return then


def _post(world: ApiStore, asked: Asked) -> Answer:
    name, kind = asked.body["metadata"]["name"], asked.path.rsplit("/", 1)[-1]
    if kind in world.full:  # asked before the storage: the object may well exist
        return Answer(403, status(403, "Forbidden", f'{kind} "{name}" is forbidden: exceeded quota: q'))
    if name in world.objects[asked.path]:
        return Answer(409, status(409, "AlreadyExists", f'"{name}" already exists'))
    return Answer(201, json.dumps(store(world, asked.path, name, asked.body)).encode())


def _patch(world: ApiStore, asked: Asked) -> Answer:
    path, part = asked.path, ""
    if len(json.dumps(asked.body)) > world.most_bytes:
        return Answer(413, status(413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728"))
    if path.endswith("/status"):
        path, _, part = path.rpartition("/")
    collection, _, name = path.rpartition("/")
    stored = world.objects[collection].get(name)
    if stored is None:
        return _not_found(collection, name)
    for key in ("uid", "resourceVersion"):
        if asked.body.get("metadata", {}).get(key) not in (None, stored["metadata"][key]):
            return Answer(409, status(409, "Conflict", f"the object has been modified: {key}"))
    if part:  # what its one manager applied before and leaves out now goes
        known = {key: value for key, value in asked.body[part].items() if key not in world.unknown}
        if known != asked.body[part] and not world.prunes:
            [field, *_] = sorted(asked.body[part].keys() - known.keys())
            said = f".{part}.{field}: field not declared in schema"
            return Answer(500, status(500, "", f"failed to create typed patch object (ml/demo): {said}"))
        merged = {**stored, part: known}
    elif stored.get("immutable") and "data" in asked.body:
        return Answer(422, status(422, "Invalid", "data: Forbidden: field is immutable"))
    else:
        merged = _merged(stored, asked.body)
    if merged == stored:  # nothing is written, and nobody told
        return Answer(200, json.dumps(stored).encode())
    return Answer(200, json.dumps(store(world, collection, name, merged)).encode())


def _delete(world: ApiStore, asked: Asked) -> Answer:
    collection, _, name = asked.path.rpartition("/")
    stored = world.objects[collection].get(name)
    if stored is None:
        return _not_found(collection, name)
    for key, wanted in asked.body["preconditions"].items():
        if stored["metadata"][key] != wanted:
            return Answer(409, status(409, "Conflict", f"the {key} in the precondition differs"))
    if world.collects and asked.body["propagationPolicy"] == "Foreground":
        if "deletionTimestamp" not in stored["metadata"]:
            going = {**stored["metadata"], "deletionTimestamp": "2026-11-24T08:00:00Z"}
            store(world, collection, name, {**stored, "metadata": going})
    else:
        drop(world, collection, name)
    return Answer(200, status(200, "", ""))


_RULES = {"GET": _get, "POST": _post, "PATCH": _patch, "DELETE": _delete}


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


def matches(asked: Asked, one: Json) -> bool:
    """Whether an object has the labels that were asked for."""
    labels = one["metadata"].get("labels", {})
    parts = (part.partition("=") for part in asked.query.get("labelSelector", "").split(",") if part)
    return all(labels.get(key) == value if equal else key in labels for key, equal, value in parts)
