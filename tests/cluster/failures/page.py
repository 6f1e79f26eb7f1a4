"""docs/failures.md and the rows it is made of: what the tests saw, kept in rows.json.

ORCH_WRITE_DOCS=1 python -m pytest tests/cluster/failures   writes both anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.controller.evidence import FailureClass

ROWS = Path(__file__).with_name("rows.json")
PAGE = Path(__file__).parents[3] / "docs" / "failures.md"
HEAD = """\
# How attempts fail

<!-- Made by `ORCH_WRITE_DOCS=1 python -m pytest tests/cluster/failures`; it fails when this is old. -->

Each line was provoked with real pods on a real cluster: how, what Kubernetes then showed, the class that orch
made of it, what followed from the class (budgets are `spec.retry` of the sweep, see [sweeps.md](sweeps.md)),
and what `orch why RUN` says. `NODE` and `POD` stand for names. What is held has not failed: it waits and
orch says for what.

"""
COLUMNS = ("how it was provoked", "what Kubernetes showed", "class", "what followed", "what `orch why` says")

SCARCE = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. …"
_VOLATILE = (
    (re.compile(r"\borch-node-\d+\b"), "NODE"),
    (re.compile(r"(-(?:train|fetch|eval)-\d+)-[a-z0-9]{5}\b"), r"\1-POD"),
    (re.compile(r"\b[a-z]+-\d+-\d+/"), ""),  # the test's namespace before a pod's name
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "UID"),
    (re.compile(r"\b\d+ s ago\b"), "N s ago"),
    (re.compile(r"\]:\d+->"), "]->"),
    # What else a scheduler finds wrong depends on the pods of other tests.
    (re.compile(r"0/2 nodes are available: [^;]*Insufficient nvidia\.com/gpu[^;]*"), SCARCE),
    (re.compile("ContainerStatusUnknown"), "Error"),  # of a pod that is evicted: a race in the kubelet
    # The two take turns.
    (re.compile(r'ImagePullBackOff(: Back-off pulling image "[^"]*": ErrImagePull)?'), "ErrImagePull"),
    (re.compile(r"(?:, after [0-9a-z ]+?)?(?: on NODE)(?=: )"), ""),
)


@dataclass(frozen=True)
class Row:
    """One way to fail. `failure` is a class, `held` or `done`; `followed` is the remedy that is recorded."""

    provoked: str
    shown: str
    failure: str
    followed: str
    said: str


def steady(text: str) -> str:
    """The text without what no two runs of a test have in common."""
    for pattern, instead in _VOLATILE:
        text = pattern.sub(instead, text)
    return text


def rows() -> dict[str, Row]:
    """The rows that are kept, by the name of their scene."""
    kept = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else {}
    return {name: Row(**row) for name, row in kept.items()}


def keep(name: str, seen: Row) -> None:
    """Compare what was seen with what is kept, or keep it when the page is to be written."""
    if os.environ.get("ORCH_WRITE_DOCS") == "1":
        kept = rows() | {name: seen}
        text = json.dumps({key: asdict(row) for key, row in kept.items()}, indent=1, ensure_ascii=False)
        ROWS.write_text(text + "\n", encoding="utf-8")
        PAGE.write_text(page(kept.values()), encoding="utf-8")
    kept = rows().get(name)
    assert kept == seen, f"{name}: seen {seen}, kept {kept}"


def page(kept: Iterable[Row]) -> str:
    """The page: classes in their own order, then what was held and what was no failure at all."""
    order = [*FailureClass, "held", "done"]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in sorted(kept, key=lambda row: order.index(row.failure)):
        cells = (row.provoked, row.shown, row.failure, row.followed, row.said)
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return HEAD + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"([|<>])", r"\\\1", text)
