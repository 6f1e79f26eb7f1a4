"""What `orch install`, `uninstall` and `doctor` show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.client.bundle import cluster_scoped, label
from orchestrator.client.findings import Finding, State
from orchestrator.client.install import Change, Verdict
from orchestrator.client.uninstall import Removal

SIGNS = {
    Verdict.CREATE: ("+", "green"),
    Verdict.CHANGE: ("~", "yellow"),
    Verdict.SAME: ("=", "dim"),
    Verdict.KEPT: ("=", "dim"),
    Verdict.DENIED: ("?", "yellow"),
    Verdict.CONFLICT: ("!", "red"),
}
MARKS: dict[State, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "missing": ("✗", "red"),
    "unknown": ("?", "yellow"),
}


def show_changes(out: Console, changes: Sequence[Change], where: str) -> None:
    """Each object with what happens to it, and each field that changes."""
    for one in changes:
        sign, style = SIGNS[one.verdict]
        note = f": {one.note}" if one.note else ""
        if one.verdict is Verdict.DENIED and cluster_scoped(one.object) and one.exists is not False:
            note = ": you may not change it; it is used as it is"
        line = Text(f"{sign} {label(one.object)}", style=style)
        out.print(line.append(f"  {one.verdict.value}{note}", style="default"), soft_wrap=True)
        for field in one.fields:
            out.print(f"    {field}", soft_wrap=True)
    number = {verdict: sum(one.verdict is verdict for one in changes) for verdict in Verdict}
    same = number[Verdict.SAME] + number[Verdict.KEPT]
    out.print(
        f"{where}: {number[Verdict.CREATE]} to create, {number[Verdict.CHANGE]} to change, {same} unchanged"
    )


def changes_json(changes: Sequence[Change], namespace: str, *, applied: bool) -> dict[str, Any]:
    """{"v", "namespace", "applied", "changes": [{"kind", "name", "verdict", "fields", "note"}]}."""
    return {
        "v": 1,
        "namespace": namespace,
        "applied": applied,
        "changes": [
            {
                "kind": one.object["kind"],
                "name": one.object["metadata"]["name"],
                "verdict": one.verdict.value,
                "fields": list(one.fields),
                "note": one.note,
            }
            for one in changes
        ],
    }


def show_removal(out: Console, removal: Removal) -> None:
    """What goes, what goes with it, and what stays."""
    for one in removal.objects:
        out.print(Text(f"- {label(one)}", style="red"))
    for kept in removal.kept:
        out.print(Text(f"= {kept.label}", style="dim").append(f"  stays: {kept.why}", style="default"))
    out.print(
        f"with it go {removal.sweeps} Sweeps, {removal.jobs} Jobs and {removal.records} records in namespace "
        f"{removal.namespace}"
    )


def show_findings(out: Console, found: Iterable[Finding]) -> None:
    """A line for each: ✓ there, ✗ missing and what to do, ? not to be seen."""
    for one in found:
        mark, style = MARKS[one.state]
        remedy = f"; {one.remedy}" if one.remedy else ""
        line = Text(f"{mark} ", style=style).append(f"{one.check}: {one.message}{remedy}", style="default")
        out.print(line, soft_wrap=True)
