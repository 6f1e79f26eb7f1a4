"""A small Hugging Face hub for tests: what huggingface_hub, datasets and lm-eval ask of the real one.

It serves a folder, `{models,datasets}/ORG/NAME/…` (`NAME@BRANCH` beside it is another branch), to clients
that find it by HF_ENDPOINT. It can refuse tokens, fail on demand, and tells what it was asked.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

from tests.hub.answers import Fault, Handler, Request
from tests.hub.repositories import Refusal, Repositories

__all__ = ["Fault", "Hub", "Request"]


class Hub:
    """The server, in threads of this process. `url` is its HF_ENDPOINT; `with Hub(folder) as hub`.

    token: the one that is good (None: any is). private: repositories that are hidden without it; with
    `token` given and nothing private, all are. gated: their files need it. strangers: good tokens without
    access to what is gated. page: entries of a listing. cdn: large files come from another origin.
    """

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        token: str | None = None,
        private: Collection[str] | None = None,
        gated: Collection[str] = (),
        strangers: Collection[str] = (),
        page: int = 1000,
        cdn: bool = False,
    ) -> None:
        self.repositories, self.page = Repositories(folder), page
        self.token, self.private, self.gated, self.strangers = token, private, gated, strangers
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.turn = threading.Condition()
        self.released = threading.Event()
        self._servers = [_serve(self, host, port, on_cdn=False)]
        self.url = _url(self._servers[0])
        if cdn:
            self._servers.append(_serve(self, host, 0, on_cdn=True))
        self.cdn_url = _url(self._servers[-1]) if cdn else None

    def __enter__(self) -> Hub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def release(self) -> None:
        """Let go of every answer that a fault holds back."""
        self.released.set()

    def wait_for(self, path: str, count: int = 1, timeout_s: float = 120.0) -> None:
        """Wait until the answers to so many GETs began whose path contains `path`."""

        def asked() -> bool:
            return sum(one.method == "GET" and path in one.path for one in self.requests) >= count

        with self.turn:
            if not self.turn.wait_for(asked, timeout_s):
                raise TimeoutError(f"{path} was not asked for {count} times in {timeout_s} s")

    def downloads(self) -> list[str]:
        """Paths of the files whose content was asked for, in order."""
        answered = [one for one in self.requests if one.method == "GET" and one.status in (200, 206)]
        return [one.path for one in answered if "/resolve/" in one.path or one.on_cdn]

    def note(self, request: Request) -> None:
        with self.turn:
            self.requests.append(request)
            self.turn.notify_all()

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault this request meets; it is used up."""
        with self.turn:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.path in path:
                    fault.times -= 1
                    return fault
        return None

    def check(self, kind: str, name: str, given: str | None, *, content: bool) -> None:
        """Raise the Refusal that the real hub gives to such a token (None: none was sent)."""
        known = self.repositories.commits(kind, name)
        hidden = self.token is not None if self.private is None else name in self.private
        if given is not None and self.token is not None and given not in (self.token, *self.strangers):
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        if given is None and (hidden or not known):
            raise Refusal(401, "", "Invalid username or password.")
        if not known or (hidden and given in self.strangers):
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if content and name in self.gated and (given is None or given in self.strangers):
            status = 401 if given is None else 403
            raise Refusal(status, "GatedRepo", f"Access to {name} is restricted. Ask for access.")


def _url(server: ThreadingHTTPServer) -> str:
    return f"http://{server.server_address[0]!s}:{server.server_address[1]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks DNS for the name of the address and may wait long for none.
        TCPServer.server_bind(self)


def _serve(hub: Hub, host: str, port: int, *, on_cdn: bool) -> ThreadingHTTPServer:
    return _Server((host, port), type("Bound", (Handler,), {"hub": hub, "on_cdn": on_cdn}))
