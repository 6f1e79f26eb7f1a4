"""Posts JSON to the lab's webhook from a thread of its own: no turn waits for it or fails by it.

What becomes of a notice is said by a callback; whoever owes it decides whether it is posted again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.profile import Notify

LOG = logging.getLogger(__name__)
TIMEOUT_S = 10.0
"""Of connecting, and of each read of the answer."""
PAUSES_S = (0.0, 2.0, 10.0)
"""Before each try."""
WAITING = 100
"""More notices than this at once are not taken, and the log says so."""
Posted = Callable[[bool], None]
"""Hears, from another thread, whether a notice is settled: taken, or refused for good."""


class Webhook:
    """`post` hands a notice over and returns; the thread starts with the first one."""

    def __init__(self, timeout_s: float = TIMEOUT_S, pauses_s: tuple[float, ...] = PAUSES_S) -> None:
        self._timeout_s = timeout_s
        self._pauses_s = pauses_s
        self._queue: queue.Queue[tuple[Notify, Mapping[str, Any], Posted] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def post(self, notify: Notify, notice: Mapping[str, Any], posted: Posted) -> bool:
        """Send it as soon as those before it are sent, in a few tries; `posted` hears what came of it.

        False when too many wait: it is not taken, and nothing is heard of it.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait((notify, notice, posted))
            return True
        except queue.Full:
            LOG.error("controller: the webhook is %d notices behind, one has to wait", WAITING)
            return False

    def close(self, within_s: float) -> None:
        """Let what was handed over be sent, for so long at most; then the thread ends."""
        if self._thread is None:
            return
        end = time.monotonic() + within_s
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=within_s)
        self._thread.join(max(0.0, end - time.monotonic()))
        self._ended.set()  # whatever is left is still owed

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            notify, notice, posted = item
            for pause_s in self._pauses_s:
                if self._ended.wait(pause_s):
                    return
                if not self._try(notify, notice):
                    posted(True)
                    break
            else:
                LOG.error("controller: %s of %s was not told", notice["event"], notice["sweep"])
                posted(False)

    def _try(self, notify: Notify, notice: Mapping[str, Any]) -> bool:
        """Whether it must be tried again. The address may be a secret: it is in no message."""
        try:
            send(address(notify), notice, self._timeout_s)
        except urllib.error.HTTPError as error:
            LOG.warning("controller: the webhook answers %d", error.code)
            error.close()
            return error.code == 429 or error.code >= 500
        except (OSError, ValueError) as error:
            LOG.warning("controller: the webhook cannot be told: %s", type(error).__name__)
            return True
        LOG.info("controller: %s of %s was told", notice["event"], notice["sweep"])
        return False


def address(notify: Notify) -> str:
    """The URL; a file is read each time, for its Secret may change. ValueError for one that is none."""
    text = Path(notify.urlFile).read_text(encoding="utf-8").strip() if notify.urlFile else notify.url or ""
    if not text.startswith(("http://", "https://")):
        raise ValueError("not an http or https address")
    return text


def send(url: str, notice: Mapping[str, Any], timeout_s: float) -> None:
    """POST it. HTTPError for any answer but 2xx, OSError when there is none."""
    body = json.dumps(notice, allow_nan=False).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "orch"}
    if "key" in notice:  # an answer that got lost makes us send it again
        headers["Idempotency-Key"] = str(notice["key"])
    request = urllib.request.Request(url, body, headers, method="POST")
    with _OPENER.open(request, timeout=timeout_s):
        return  # the status is all that counts


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is led elsewhere would arrive there as a GET, and look delivered."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
