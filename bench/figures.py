"""What a bench found: one line each with the goal beside it, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A measured value; the goal is not to exceed `at_most`, or to be `exactly` that."""

    what: str
    value: float
    unit: str
    at_most: float | None = None
    exactly: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.exactly is not None:
            return self.value == self.exactly
        return None if self.at_most is None else self.value <= self.at_most

    def line(self) -> str:
        """`plan of 1,000 runs, all new    0.08 s   (≤ 1 s) ok`."""
        goal = ""
        if self.exactly is not None:
            goal = f"(= {_short(self.exactly)})"
        elif self.at_most is not None:
            goal = f"(≤ {_short(self.at_most)})"
        verdict = {None: "", True: "ok", False: "MISSED"}[self.met]
        number = f"{_short(self.value)} {self.unit}"
        return f"{self.what:<58} {number:>16} {goal:>9} {verdict:<6} {self.note}".rstrip()


@dataclass
class Report:
    """Figures as they come; each is printed at once."""

    figures: list[Figure] = field(default_factory=list)

    def add(self, *figures: Figure) -> None:
        for one in figures:
            self.figures.append(one)
            sys.stdout.write(one.line() + "\n")
            sys.stdout.flush()

    @property
    def missed(self) -> list[Figure]:
        return [one for one in self.figures if one.met is False]

    def write(self, path: Path, **settings: object) -> None:
        """All of it, with what it was measured on."""
        value = {
            "settings": settings,
            "machine": {"cpus": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()},
            "versions": {name: metadata.version(name) for name in ("orch", "kubernetes")},
            "figures": [asdict(one) | {"met": one.met} for one in self.figures],
        }
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of them do not exceed. ValueError for none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, -(-int(share * 1e6) * len(values) // 1_000_000) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _short(number: float) -> str:
    if number == int(number) and abs(number) < 1e9:
        return f"{int(number):,}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
