"""The hub as a process of its own: `python -m tests.hub FOLDER [--host ADDRESS] [--port N] [--token T]`.

It prints its endpoint. `GET /requests` lists what was asked, `POST /faults` takes a Fault as JSON, and
`POST /release` lets go of what a fault holds back.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from tests.hub import Hub


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token", help="the good token; every repository is hidden without it")
    parser.add_argument("--gated", action="append", default=[], help="files of this one need the token")
    given = parser.parse_args()
    private = () if given.gated else None
    with Hub(
        given.folder, given.host, given.port, token=given.token, private=private, gated=given.gated
    ) as hub:
        sys.stdout.write(f"{hub.url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
