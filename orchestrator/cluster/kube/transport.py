"""How requests travel: the client's pooled connections, our identity, one more try after a 401."""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from urllib.parse import urlencode

import urllib3
from kubernetes.client.rest import RESTClientObject
from kubernetes.utils.keepalive import tcp_keepalive_socket_options
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError

from orchestrator.cluster.kube.credentials import Credentials
from orchestrator.cluster.kube.errors import Request, Unauthorized, refused, unreachable
from orchestrator.cluster.kube.paths import address
from orchestrator.errors import UserError

POOL_SIZE = 16
PEER_GONE_S = 45
"""A peer that acknowledges nothing for this long is given up, as client-go's HTTP/2 pings do."""
LONGEST_REFUSAL = 1 << 20
JSON_TYPE = "application/json"


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to connect (TLS included), between two reads, and beyond a watch's own end."""

    connect_s: float = 3.0
    read_s: float = 30.0
    watch_grace_s: float = 15.0


@dataclass(frozen=True)
class Sent:
    """A body and its media type."""

    body: bytes
    media: str


class Transport:
    """Requests as one user to one API server; safe to use from several threads.

    `requests` counts answers by (method, resource, status), status 0 for none.
    """

    def __init__(self, credentials: Credentials, timeouts: Timeouts | None = None) -> None:
        self.timeouts = timeouts or Timeouts()
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.on_warning: Callable[[str], None] | None = None
        self._credentials = credentials
        self._counting = threading.Lock()
        self._headers = {"User-Agent": _user_agent(), "Accept": JSON_TYPE}
        configuration = credentials.configuration
        configuration.connection_pool_maxsize = POOL_SIZE
        configuration.socket_options = _socket_options()
        self._pool = RESTClientObject(configuration).pool_manager

    @property
    def host(self) -> str:
        """`https://10.0.0.1:6443`."""
        return str(self._credentials.configuration.host)

    def open(
        self, request: Request, query: Mapping[str, str], sent: Sent | None = None, *, read_s: float | None
    ) -> urllib3.BaseHTTPResponse:
        """A 2xx answer whose body is still to be read. A 401 is asked again once with fresh credentials."""
        identity = self._authorization(request)
        response = self._exchange(request, query, sent, identity, read_s)
        if response.status == 401 and self._renewed(request, identity):
            response.close()
            response = self._exchange(request, query, sent, self._authorization(request), read_s)
        if not 200 <= response.status < 300:
            body = read(request, response, LONGEST_REFUSAL)
            raise refused(request, response.status, response.headers, body)
        if self.on_warning is not None:
            for text in _warnings(response.headers):
                self.on_warning(text)
        return response

    def open_stream(
        self, request: Request, query: Mapping[str, str], *, idle_s: float | None
    ) -> urllib3.BaseHTTPResponse:
        """As `open`, and then `idle_s` seconds between two reads of the body (None: no limit)."""
        response = self.open(request, query, read_s=self.timeouts.read_s)
        # The headers came within the time of any other answer; only the body may take its time.
        sock = getattr(response.connection, "sock", None)
        if sock is not None:
            sock.settimeout(idle_s)
        return response

    def _exchange(
        self,
        request: Request,
        query: Mapping[str, str],
        sent: Sent | None,
        identity: str | None,
        read_s: float | None,
    ) -> urllib3.BaseHTTPResponse:
        headers = dict(self._headers)
        if identity is not None:
            headers["Authorization"] = identity
        if sent is not None:
            headers["Content-Type"] = sent.media
        status = 0
        try:
            response = self._pool.urlopen(
                "GET" if request.method == "watch" else request.method,
                f"{self.host}{request.path}" + (f"?{urlencode(query)}" if query else ""),
                body=sent.body if sent else None,
                headers=headers,
                timeout=urllib3.Timeout(connect=self.timeouts.connect_s, read=read_s),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            status = response.status
        except (HTTPError, OSError) as error:
            raise unreachable(request, in_words(error)) from error
        finally:
            with self._counting:
                self.requests[request.method, address(request.path).resource, status] += 1
        return response

    def _authorization(self, request: Request) -> str | None:
        try:
            return self._credentials.authorization()
        except UserError as error:
            line = f"{request.failed}, not asked: {error}"
            raise Unauthorized(line, status=0, reason="NoCredentials") from error

    def _renewed(self, request: Request, identity: str | None) -> bool:
        try:
            renewed = self._credentials.renew(identity)
        except UserError as error:
            line = f"{request.failed}, got 401; {error}"
            raise Unauthorized(line, status=401, reason="Unauthorized") from error
        if renewed:
            # Client certificates belong to the connections: begin with new ones. Open streams keep theirs.
            self._pool = RESTClientObject(self._credentials.configuration).pool_manager
        return renewed


def read(request: Request, response: urllib3.BaseHTTPResponse, most: int | None = None) -> bytes:
    """The whole body, or its first `most` bytes. Unavailable when it ends early or stalls."""
    try:
        body = response.read(most)
        if most is not None:
            response.drain_conn()
        return body
    except (HTTPError, OSError) as error:
        response.close()
        raise unreachable(request, in_words(error)) from error


def in_words(error: Exception) -> str:
    """The fault without urllib3's wrapping."""
    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return "no connection in time"
    if isinstance(error, ReadTimeoutError):
        return "nothing read in time"
    return re.sub(r"^<?\w+(\(.*?\))?( object at \w+>)?: ", "", str(error)) or type(error).__name__


def _warnings(headers: urllib3.HTTPHeaderDict) -> Iterator[str]:
    """Texts of `Warning: 299 - "text"` headers."""
    for header in headers.getlist("Warning"):
        for text in re.findall(r'299 \S+ "((?:[^"\\]|\\.)*)"', header):
            yield re.sub(r"\\(.)", r"\1", text)


def _socket_options() -> list[tuple[int, int, int]]:
    options: list[tuple[int, int, int]] = tcp_keepalive_socket_options()
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_GONE_S * 1000))
    return options


def _user_agent() -> str:
    try:
        return f"orch/{metadata.version('orch')}"
    except metadata.PackageNotFoundError:
        return "orch"
