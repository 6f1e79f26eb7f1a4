"""The hub's answers, route by route, with the headers and the refusals of the real one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub.repositories import Blob, Refusal

if TYPE_CHECKING:
    from tests.hub import Hub

CHUNK = 1 << 16


@dataclass(frozen=True)
class Request:
    """One request as it was answered. `token`: none, good or bad; the token itself is never kept."""

    method: str
    path: str
    status: int
    token: str = "none"
    range: str | None = None
    on_cdn: bool = False


@dataclass
class Fault:
    """What happens to the next `times` requests whose path contains `path` (and whose method is `method`).

    status: answered instead. cut_after: the connection ends after so many bytes of the body. hold_after: so
    many bytes, and the rest at `Hub.release`. damage: the first byte is another. short_by: so many bytes are
    missing, and nothing tells. slow_start_s: a wait.
    """

    path: str
    times: int = 1
    method: str = "GET"
    status: int | None = None
    cut_after: int | None = None
    hold_after: int | None = None
    damage: bool = False
    short_by: int = 0
    slow_start_s: float = 0.0


class Handler(BaseHTTPRequestHandler):
    """Routes and answers; every answer is noted in `hub.requests` before its body is sent."""

    hub: Hub
    on_cdn = False
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `hub.requests` tells."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.form = self.rfile.read(length)
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        self.fault = self.hub.fault(self.command, self.route) or Fault("", times=0)
        if self.fault.slow_start_s:
            self.hub.released.wait(self.fault.slow_start_s)
        try:
            if self.fault.status:
                raise Refusal(self.fault.status, "", "The hub is out of order")
            for pattern, act in ROUTES:
                if match := re.fullmatch(pattern, self.route):
                    return act(self, **match.groupdict())
            raise Refusal(404, "", "Sorry, we can't find the page you are looking for.")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            self._json({"error": refusal.message}, refusal.status, headers)

    @property
    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self._send(status, {"Content-Type": "application/json", **(headers or {})}, data)

    def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
        token = "none" if self._token is None else "good"
        if self._token is not None and self._token not in (self.hub.token, *self.hub.strangers):
            token = "bad" if self.hub.token else "good"
        wanted = self.headers.get("Range")
        if self.route not in ("/requests", "/faults", "/release"):
            self.hub.note(Request(self.command, self.route, status, token, wanted, self.on_cdn))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(ConnectionError):  # whoever asked was ended, which is what some tests do
            self._body(data)

    def _body(self, data: bytes) -> None:
        if self.fault.damage:
            data = bytes([data[0] ^ 1]) + data[1:]
        if self.fault.cut_after is not None:
            data, self.close_connection = data[: self.fault.cut_after], True
        held = self.fault.hold_after
        if held is not None:
            self.wfile.write(data[:held])
            self.wfile.flush()
            self.hub.released.wait()
            data = data[held:]
        for start in range(0, len(data), CHUNK):
            self.wfile.write(data[start : start + CHUNK])

    def _listing(self, entries: list[Any]) -> None:
        """A page of entries, and where the next one is."""
        start = int(self.query.get("cursor", ["0"])[0])
        end = start + self.hub.page
        rest = "&".join(f"{key}={value[0]}" for key, value in self.query.items() if key != "cursor")
        following = f'<{self.hub.url}{quote(self.route)}?{rest}&cursor={end}>; rel="next"'
        self._json(entries[start:end], headers={"Link": following} if end < len(entries) else None)

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        self.hub.check(kind, name, self._token, content=False)
        commit, files = self.hub.repositories.files(kind, name, revision or "main")
        private = name in (self.hub.private or ())
        about = {"_id": commit[:24], "id": name, "modelId": name, "sha": commit, "private": private}
        siblings = [{"rfilename": path} for path in files]
        self._json({**about, "gated": "manual" if name in self.hub.gated else False, "siblings": siblings})

    def tree(self, kind: str, name: str, revision: str, path: str | None = None) -> None:
        self.hub.check(kind, name, self._token, content=False)
        _, files = self.hub.repositories.files(kind, name, revision)
        prefix = f"{path}/" if path else ""
        entries: dict[str, dict[str, Any]] = {}
        for blob in (blob for name, blob in files.items() if name.startswith(prefix)):
            inner = blob.path[len(prefix) :].split("/")
            folders = ["/".join(inner[: i + 1]) for i in range(len(inner) - 1)]
            for folder in folders:
                oid = hashlib.sha1(folder.encode()).hexdigest()
                listed = {"type": "directory", "oid": oid, "size": 0, "path": prefix + folder}
                entries.setdefault(prefix + folder, listed)
            entries[blob.path] = blob.entry()
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            entries = {key: entry for key, entry in entries.items() if "/" not in key[len(prefix) :]}
        if path and not entries:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist")
        self._listing(list(entries.values()))

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        self.hub.check(kind, name, self._token, content=False)
        _, files = self.hub.repositories.files(kind, name, revision)
        asked = parse_qs(self.form.decode()).get("paths", [])
        found: list[dict[str, Any]] = [files[path].entry() for path in asked if path in files]
        for path in asked:
            if any(other.startswith(f"{path}/") for other in files):
                found.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
        self._json(found)

    def refs(self, kind: str, name: str) -> None:
        self.hub.check(kind, name, self._token, content=False)
        commits = self.hub.repositories.commits(kind, name).items()
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit} for n, commit in commits]
        self._json({"branches": branches, "converts": [], "tags": []})

    def search(self, kind: str) -> None:
        author, text = self.query.get("author", [""])[0], self.query.get("search", [""])[0]
        seen = [n for n in self.hub.repositories.names(kind) if n not in (self.hub.private or ())]
        fits = [name for name in seen if (not author or name.startswith(f"{author}/")) and text in name]
        self._listing([{"_id": name, "id": name, "modelId": name} for name in fits])

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        kind = kind or "models"
        self.hub.check(kind, name, self._token, content=True)
        commit, files = self.hub.repositories.files(kind, name, revision)
        if path not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        blob, headers = files[path], {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if blob.is_large and self.hub.cdn_url:
            to = {"Location": f"{self.hub.cdn_url}/cdn/{kind}/{name}/{revision}/{path}"}
            linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
            return self._send(302, headers | to | linked, b"")
        self._content(blob, headers)

    def cdn(self, kind: str, name: str, revision: str, path: str) -> None:
        if not self.on_cdn:
            raise Refusal(404, "", "This is not the CDN")
        self._content(self.hub.repositories.files(kind, name, revision)[1][path], {"Accept-Ranges": "bytes"})

    def _content(self, blob: Blob, headers: dict[str, str]) -> None:
        headers = {**headers, "ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream"}
        start, size = 0, blob.size
        data = blob.data[: size - self.fault.short_by]
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
            span = {"Content-Range": f"bytes {start}-{end}/{size}"}
            return self._send(206, headers | span, data[start : end + 1])
        self._send(200, headers, data)

    def tell(self) -> None:
        self._json([asdict(request) for request in list(self.hub.requests)])

    def release(self) -> None:
        self.hub.release()
        self._json({})

    def add_fault(self) -> None:
        self.hub.faults.append(Fault(**json.loads(self.form)))
        self._json({})


_REPO = r"(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_FILE = r"(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"/requests", Handler.tell),
    (r"/faults", Handler.add_fault),
    (r"/release", Handler.release),
    (rf"/cdn/{_REPO}/(?P<revision>[^/]+)/(?P<path>.+)", Handler.cdn),
    (r"/api/(?P<kind>models|datasets)", Handler.search),
    (rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", Handler.tree),
    (rf"/api/{_REPO}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    (rf"/api/{_REPO}/refs", Handler.refs),
    (rf"/api/{_REPO}/revision/(?P<revision>.+)", Handler.info),
    (rf"/api/{_REPO}", Handler.info),
    (rf"/{_FILE}", Handler.resolve),
]
