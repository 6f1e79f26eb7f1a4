"""The one door to the API server: raw bytes in and out, a timeout on every call, every refusal an ApiError.

It takes the official client's configuration and pooled transport (TLS, proxies, credential plugins, OIDC,
token rotation) and leaves its models alone: they cost 5 to 8 ms of CPU per POST and 80 kB per cached Job.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from orchestrator.cluster.kube.credentials import Credentials, find
from orchestrator.cluster.kube.errors import NotFound, Request, TooMany, broken, unreachable
from orchestrator.cluster.kube.stream import Stream
from orchestrator.cluster.kube.transport import JSON_TYPE, Sent, Timeouts, Transport, read

Body = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Pace(Protocol):
    """What slows writes down: `limiter.Limiter`."""

    def acquire(self) -> bool:
        """Wait for one's turn; False when there will be none: orch is stopping, or leads no more."""

    def throttled(self, retry_after_s: float | None) -> None:
        """The server sheds load."""

    def succeeded(self) -> None:
        """A write was taken."""


class _ListMeta(msgspec.Struct):
    next_page: str | None = msgspec.field(default=None, name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta


_PAGE = msgspec.json.Decoder(_List)


class Api:
    """The API server as one user; safe to use from several threads. Paths come from `paths`.

    `namespace` is the one given, else the context's, else the pod's, else `default`.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        namespace: str | None = None,
        on_warning: Callable[[str], None] | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.namespace = namespace or credentials.source.namespace
        self.context = credentials.source.context
        self._limiter: Pace | None = None
        self._transport = Transport(credentials, timeouts)
        self._transport.on_warning = on_warning

    @classmethod
    def connect(
        cls,
        *,
        context: str | None = None,
        namespace: str | None = None,
        kubeconfig: Path | None = None,
        on_warning: Callable[[str], None] | None = None,
        timeouts: Timeouts | None = None,
    ) -> Api:
        """The API server kubectl would talk to, else the one this pod runs under; asks nothing of it yet.

        `on_warning` gets what the server warns of (Warning headers), e.g. of a Pod Security level that a Job
        would break. UserError when there is no kubeconfig, no such context, or no credentials in it.
        """
        return cls(
            Credentials(find(context, kubeconfig)),
            namespace=namespace,
            on_warning=on_warning,
            timeouts=timeouts,
        )

    @property
    def host(self) -> str:
        """`https://10.0.0.1:6443`, for messages."""
        return self._transport.host

    @property
    def requests(self) -> Counter[tuple[str, str, int]]:
        """Answers so far by (method, `jobs` or `sweeps/status`, status).

        `watch` is a method of its own, status 0 is no answer.
        """
        return Counter(self._transport.requests)

    def paced(self, limiter: Pace) -> Api:
        """The same door for writes that ask `limiter` for their turn."""
        other = copy.copy(self)
        other._limiter = limiter
        return other

    def get(self, path: str, *, timeout_s: float | None = None, **query: str) -> bytes:
        """The object, or a whole list in one answer."""
        return self._read(Request("GET", path, self.host), query, timeout_s)

    def post(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None, **query: str
    ) -> bytes:
        """Create; AlreadyExists when the name is taken. Unknown fields are refused, not dropped."""
        return self._write("POST", path, body, JSON_TYPE, query, timeout_s)

    def apply(
        self, path: str, body: Mapping[str, Any], *, manager: str, force: bool = False, **query: str
    ) -> bytes:
        """Server-side apply: `body` is all that `manager` wants; Conflict when another owns a field."""
        query |= {"fieldManager": manager, "force": "true" if force else "false"}
        return self._write("PATCH", path, body, "application/apply-patch+yaml", query)

    def patch(
        self,
        path: str,
        body: Body,
        *,
        kind: Literal["merge", "json"] = "merge",
        timeout_s: float | None = None,
        **query: str,
    ) -> bytes:
        """Change what `body` names: a merge patch, or a list of JSON patch operations."""
        media = "application/merge-patch+json" if kind == "merge" else "application/json-patch+json"
        return self._write("PATCH", path, body, media, query, timeout_s)

    def delete(
        self,
        path: str,
        *,
        uid: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
        resource_version: str | None = None,
    ) -> None:
        """Delete, if it is still the one meant (Conflict if not); absent is fine."""
        conditions = {"uid": uid, "resourceVersion": resource_version}
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            # Without a policy the API server orphans a Job's running pod.
            "propagationPolicy": propagation,
            "preconditions": {key: value for key, value in conditions.items() if value is not None},
        }
        try:
            self._write("DELETE", path, options, JSON_TYPE, {})
        except NotFound:
            return

    def watch(self, path: str, *, timeout_s: float, **query: str) -> Stream:
        """Events as raw JSON lines, ERROR events too, until the server ends it after `timeout_s`."""
        request = Request("watch", path, self.host)
        query |= {"watch": "1", "timeoutSeconds": str(max(1, round(timeout_s)))}
        idle_s = timeout_s + self._transport.timeouts.watch_grace_s
        return Stream(request, self._transport.open_stream(request, query, idle_s=idle_s), whole_lines=True)

    def stream(self, path: str, *, idle_s: float | None = None, **query: str) -> Stream:
        """Lines of a text that may go on for ever, such as a log; `idle_s` of silence are a fault."""
        request = Request("GET", path, self.host)
        return Stream(request, self._transport.open_stream(request, query, idle_s=idle_s), whole_lines=False)

    def pages(self, path: str, *, limit: int = 500, **query: str) -> Iterator[bytes]:
        """A list as raw pages of `limit` objects (0: all at once); Gone when it took too long between two."""
        request = Request("GET", path, self.host)
        if limit:
            query["limit"] = str(limit)
        while True:
            page = self._read(request, query)
            try:
                token = _PAGE.decode(page).metadata.next_page
            except msgspec.MsgspecError as error:
                raise broken(request, str(error)) from error
            yield page
            if not token:
                return
            # A token stands for the version it was made at: to name one beside it is refused.
            query = {name: value for name, value in query.items() if not name.startswith("resourceVersion")}
            query["continue"] = token

    def _read(self, request: Request, query: Mapping[str, str], timeout_s: float | None = None) -> bytes:
        read_s = timeout_s or self._transport.timeouts.read_s
        return read(request, self._transport.open(request, query, read_s=read_s))

    def _write(
        self,
        method: str,
        path: str,
        body: Body,
        media: str,
        query: dict[str, str],
        timeout_s: float | None = None,
    ) -> bytes:
        request = Request(method, path, self.host)
        sent = Sent(json.dumps(body, allow_nan=False, separators=(",", ":"), default=dict).encode(), media)
        if method != "DELETE":
            query = {"fieldValidation": "Strict", **query}
        if self._limiter is None:
            return self._answer(request, query, sent, timeout_s)
        if not self._limiter.acquire():
            raise unreachable(request, "not asked, for orch is stopping or leads no more")
        try:
            answer = self._answer(request, query, sent, timeout_s)
        except TooMany as error:
            self._limiter.throttled(error.retry_after_s)
            raise
        self._limiter.succeeded()
        return answer

    def _answer(
        self, request: Request, query: Mapping[str, str], sent: Sent, timeout_s: float | None
    ) -> bytes:
        read_s = timeout_s or self._transport.timeouts.read_s
        return read(request, self._transport.open(request, query, sent, read_s=read_s))
