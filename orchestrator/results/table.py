"""Results → what people read: grids of text with headings and footers, laid out for a screen or as Markdown.

`show` prints through rich, the rest is pure. Accuracies and shares are shown in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from orchestrator.results.collect import Results, Row, Table
from orchestrator.results.scores import Score
from orchestrator.results.statistics import SIGNIFICANT

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

ABSENT = "–"
ALIKE = "°"
UNCOMPARED = "?"


@dataclass(frozen=True)
class Column:
    """A heading and how its score is shown."""

    heading: str
    get: Callable[[Row], Score | None]
    show: Callable[[float], str]


def columns(table: Table) -> tuple[list[Column], list[Column]]:
    """(task columns with their average, text columns): two blocks, for narrow screens part there."""
    short = headings(table.tasks)
    tasks = [Column(short[task], _task_getter(task), _percent) for task in table.tasks]
    if len(table.tasks) > 1:
        tasks.append(Column("avg", lambda row: row.scores.avg, _percent))
    text = [
        Column("ppl", lambda row: row.scores.ppl, _ppl),
        Column("KL", lambda row: row.scores.kl, _kl),
        Column("KL rec. %", lambda row: row.scores.kl_recovered, _percent),
        Column("ppl rec. %", lambda row: row.scores.ppl_recovered, _percent),
    ]
    return tasks, text if table.text_tokens else []


def headings(tasks: Sequence[str]) -> dict[str, str]:
    """The lab's headings: 8 characters of a task's name (or its file's), the whole name where two meet."""
    short = {task: _stem(task)[:8] for task in tasks}
    cut = list(short.values())
    return {task: text if cut.count(text) == 1 else _stem(task) for task, text in short.items()}


def cell(column: Column, row: Row, *, errors: bool = True) -> str:
    """`52.3 ±0.5°`: value, error, and a mark where it cannot be told from ptq; `–` where there is none."""
    score = column.get(row)
    if score is None:
        return ABSENT
    error = f" ±{column.show(score.error)}" if errors and score.error is not None else ""
    return f"{column.show(score.value)}{error}{_mark(column, row, score)}"


def _mark(column: Column, row: Row, score: Score) -> str:
    if column.heading.endswith("%") or row.variant == "ptq" or row.is_mean:
        return ""
    return {True: "", False: ALIKE, None: UNCOMPARED}[score.differs]


def title(table: Table) -> str:
    """What was measured and how: `model · quant · bf16 · batch size 32 · 100 items a task`."""
    one = table.protocol
    limit = [f"first {one.limit} items a task"] if one.limit else []
    return " · ".join([one.model, one.quant, one.dtype, f"batch size {one.batch_size}", *limit])


def footer(table: Table, results: Results) -> list[str]:
    """What the numbers rest on, and what they do not say."""
    one = table.protocol
    lines = []
    if table.tasks:
        lines.append(
            "n: " + ", ".join(f"{_stem(task)} {_n(table.n[task])}" for task in table.tasks) + " items"
        )
    if len(table.averaged) not in (0, len(table.tasks)):
        lines.append(
            "avg over " + ", ".join(_stem(task) for task in table.averaged) + ", which all rows have"
        )
    if table.text_tokens:
        sha = f", sha256 {one.text_sha256[:8]}" if one.text_sha256 else ""
        blocks = f", blocks of {one.block_tokens}" if one.block_tokens else ""
        lines.append(f"text: {one.text or 'unnamed'}, {_n(table.text_tokens)} tokens{blocks}{sha}")
    lines.append(_legend(table))
    if table.text_tokens:
        lines.append(
            "KL to the teacher, nats a token; rec.: share of the gap ptq→teacher recovered, KL: 1 - KL/KL_ptq"
        )
    return [*lines, *_seed_lines(results)]


def _legend(table: Table) -> str:
    means = any(row.is_mean for row in table.rows)
    parts = ["± standard error" + (" (of a mean: sd over seeds)" if means else "")]
    if table.row("ptq") is None:
        parts.append(f"{UNCOMPARED} ptq was not measured, so nothing is compared")
    else:
        parts.append(f"{ALIKE} not told from ptq (paired, two-sided {100 * SIGNIFICANT:g} %, each by itself)")
        if any(UNCOMPARED in cell(c, row) for block in columns(table) for c in block for row in table.rows):
            parts.append(f"{UNCOMPARED} no paired counts")
    parts.append(f"{ABSENT} not measured, or a gap within noise")
    return "; ".join(parts)


def _seed_lines(results: Results) -> list[str]:
    seeds = ", ".join(map(str, results.seeds)) or "unknown"
    if results.seeds_per_config > 1:
        return [f"seeds: {seeds}"]
    return [f"seeds: {seeds}. One seed a config supports no claim about λ or any other setting."]


def markdown(results: Results) -> str:
    """Every table as Markdown with its footer."""
    parts = []
    for table in results.tables:
        blocks = [column for block in columns(table) for column in block]
        head = ["model", *(column.heading for column in blocks)]
        rows = [[row.label, *(cell(column, row) for column in blocks)] for row in table.rows]
        lines = [_md_row(head), "|".join(["", "---", *("---:" for _ in blocks), ""]), *map(_md_row, rows)]
        notes = "\n".join(f"- {line}" for line in footer(table, results))
        parts.append("\n".join([f"**{title(table)}**", "", *lines, "", notes]))
    return "\n\n".join([*parts, *_after(results)]) + "\n"


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _after(results: Results) -> list[str]:
    """What concerns all tables."""
    lines = []
    if len(results.tables) > 1:
        lines.append("Tables differ in how they measured; numbers of different tables do not compare.")
    if results.missing:
        lines.append("Not measured yet: " + ", ".join(results.missing))
    return lines


def show(results: Results, console: Console) -> None:
    """Print every table in the widest layout that fits the console: whole, in two blocks, without errors."""
    for table in results.tables:
        console.print(title(table), style="bold", highlight=False, markup=False)
        for part in _layout(table, console):
            console.print(part)
        for line in footer(table, results):
            console.print(line, style="dim", highlight=False, markup=False)
        console.print()
    for line in _after(results):
        console.print(line, highlight=False, markup=False)


def _layout(table: Table, console: Console) -> list[RenderableType]:
    tasks, text = columns(table)
    whole: list[RenderableType] = [_grid(table, [*tasks, *text], errors=True)]
    parted = [
        [_grid(table, block, errors=errors) for block in (tasks, text) if block] for errors in (True, False)
    ]
    for layout in (whole, *parted):
        if all(_width(part, console) <= console.width for part in layout):
            return layout
    return list(parted[-1])


def _grid(table: Table, block: Sequence[Column], *, errors: bool) -> RenderableType:
    import rich.box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.add_column("model", overflow="fold", min_width=8)
    for column in block:
        grid.add_column(column.heading, justify="right", no_wrap=True)
    shown = [_aligned([cell(column, row, errors=errors) for row in table.rows]) for column in block]
    for row, *cells in zip(table.rows, *shown, strict=True):
        grid.add_row(Text(row.label), *cells)
    return grid


def _aligned(cells: list[str]) -> list[str]:
    """Room for the mark where another row has one, so that the digits stand under each other."""
    marked = any(text.endswith((ALIKE, UNCOMPARED)) for text in cells)
    return [text if not marked or text.endswith((ALIKE, UNCOMPARED)) else f"{text} " for text in cells]


def _width(part: RenderableType, console: Console) -> int:
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=10_000), part).maximum


def _task_getter(task: str) -> Callable[[Row], Score | None]:
    return lambda row: row.scores.tasks.get(task)


def _stem(task: str) -> str:
    return PurePath(task).stem if task.endswith((".yaml", ".yml")) else task


def _n(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]} (rows differ)"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _ppl(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def _kl(value: float) -> str:
    return f"{value:.4f}"
