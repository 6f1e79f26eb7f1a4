"""Tables → pictures (SVG): what each arm recovers, and KL on the way. Matplotlib's one door."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.report.arms import Arm, Study
from trainer.report.compare import FormTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR = "#2a6f97"
BAR_INCHES = 0.28
"""Height of an arm's line."""


def recovered(tables: Sequence[FormTable]) -> bytes:
    """One panel for each form, best arm first: share of KL recovered and its 95 % interval."""
    arms = max(len(table.lines) for table in tables)
    figure, panels = _figure(len(tables), 5.0, 1.2 + BAR_INCHES * arms)
    for panel, table in zip(panels, tables, strict=True):
        lines = sorted(table.lines, key=lambda line: line.kl_recovered.value)
        for y, line in enumerate(lines):
            one = line.kl_recovered
            panel.plot([100 * one.low, 100 * one.high], [y, y], color=COLOUR, linewidth=1.5)
            panel.plot([100 * one.value], [y], "o", color=COLOUR, markersize=4)
        panel.set_yticks(range(len(lines)), [line.arm.name for line in lines], fontsize=7)
        panel.set_title(table.form, fontsize=10)
        panel.set_xlabel("KL recovered, %", fontsize=9)
        panel.grid(axis="x", alpha=0.3)
    return _svg(figure)


def curves(study: Study) -> bytes | None:
    """Mean held-out KL over seeds against completion tokens and against seconds; None when none was taken."""
    arms = [arm for arm in study.arms if all(run.curve for run in arm.runs)]
    if not arms:
        return None
    figure, panels = _figure(2, 5.0, 4.2)
    for arm in arms:
        for panel, axis in zip(panels, ("tokens", "seconds"), strict=True):
            points = _mean_curve(arm, axis)
            panel.plot(*zip(*points, strict=True), "o-", markersize=3, linewidth=1, label=arm.name)
    for panel, name in zip(panels, ("completion tokens", "seconds of training"), strict=True):
        panel.set_xlabel(name, fontsize=9)
        panel.set_ylabel("held-out KL, nats a token", fontsize=9)
        panel.grid(alpha=0.3)
    panels[1].legend(fontsize=6, loc="upper right")
    return _svg(figure)


def _mean_curve(arm: Arm, axis: str) -> list[tuple[float, float]]:
    many = list(zip(*(run.curve for run in arm.runs), strict=False))
    return [
        (sum(getattr(p, axis) for p in points) / len(points), sum(p.kl for p in points) / len(points))
        for points in many
    ]


def _figure(panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)
    return figure, list(axes[0])


def _svg(figure: Figure) -> bytes:
    """Equal figures are equal bytes: no date, ids from a fixed salt."""
    import matplotlib as mpl

    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "orch", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
