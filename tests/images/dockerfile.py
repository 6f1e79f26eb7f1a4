"""A Dockerfile as its stages, read without a builder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

GLOBAL = ""
"""The name of what stands before the first FROM."""


@dataclass
class Stage:
    """A stage: what it starts from, and its instructions (word, rest) with continued lines joined."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for given, rest in self.instructions if given == word]


def read_stages(path: Path) -> dict[str, Stage]:
    """The stages by name, in order. Unnamed stages and heredocs are not known here, and refused."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    stages = {GLOBAL: Stage("")}
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        if not line.strip():
            continue
        word, rest = line.split(maxsplit=1)
        assert "<<" not in rest, f"a heredoc: {line}"
        if word == "FROM":
            base, keyword, name = rest.split()
            assert keyword == "AS"
            stages[name] = Stage(base)
        else:
            stages[list(stages)[-1]].instructions.append((word, " ".join(rest.split())))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """The stage and those it is built on, the image's own layers: the base's come before them."""
    found = [stages[name]]
    while (base := found[0].base) in stages:
        found.insert(0, stages[base])
    return found
