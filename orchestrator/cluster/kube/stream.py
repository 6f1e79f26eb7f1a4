"""An answer that goes on, line by line, until it ends or someone closes it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType

import urllib3
from urllib3.exceptions import HTTPError

from orchestrator.cluster.kube.errors import Request, broken, unreachable

CHUNK = 65536


class Stream(Iterator[bytes]):
    """Lines without their line ends. `close` may come from another thread and ends a read that waits.

    Unavailable when the connection breaks, nothing comes in time or, with `whole_lines`, the last one is cut.
    """

    def __init__(self, request: Request, response: urllib3.BaseHTTPResponse, *, whole_lines: bool) -> None:
        self._request = request
        self._response = response
        self._whole_lines = whole_lines
        self._lines = self._split()
        self._lock = threading.Lock()
        self._reading = False
        self._closed = False

    def __next__(self) -> bytes:
        with self._lock:
            if self._closed:
                raise StopIteration
            self._reading = True
        try:
            return next(self._lines)
        except (HTTPError, OSError) as error:
            if self._closed:
                raise StopIteration from None
            raise unreachable(self._request, f"the stream broke: {error}") from error
        finally:
            with self._lock:
                self._reading = False
                if self._closed:
                    self._response.close()

    def close(self) -> None:
        """End it; harmless when it has ended."""
        with self._lock:
            self._closed = True
            if not self._reading:
                self._response.close()
                return
            # Closing under a thread that reads would pull the buffers from under it: wake it, it closes.
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                self._response.shutdown()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _split(self) -> Iterator[bytes]:
        rest = b""
        for chunk in self._response.stream(CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        if rest and self._whole_lines:
            raise broken(self._request, f"the last event has no end after {len(rest)} bytes")
        if rest:
            yield rest
