"""Attempt records → results: one table per protocol, rows with paired comparisons to ptq.

Pure. Numbers of different protocols (model, quantisation, dtype, batch size, limit, text) never share a
table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.results.scores import Scores, mean_scores, scores
from orchestrator.sweep.expand import Run
from trainer.config import DEFAULT_TASKS
from trainer.results import Protocol, Record, VariantName, VariantResult

FORMS: tuple[VariantName, ...] = ("adapter", "merged")


@dataclass(frozen=True)
class Row:
    """One measured variant; or, with several `seeds`, the mean over them, and errors are their deviation."""

    label: str
    variant: VariantName
    scores: Scores
    run_id: str | None = None
    run: str | None = None
    seeds: tuple[int, ...] = ()

    @property
    def is_mean(self) -> bool:
        return len(self.seeds) > 1


@dataclass(frozen=True)
class Table:
    """All that was measured by one protocol.

    `averaged` are the tasks that every row has. `n` holds the numbers of items of a task: several are a flaw.
    """

    protocol: Protocol
    tasks: tuple[str, ...]
    averaged: tuple[str, ...]
    rows: tuple[Row, ...]
    n: Mapping[str, tuple[int, ...]]
    text_tokens: tuple[int, ...] = ()

    def row(self, variant: VariantName) -> Row | None:
        """The teacher's or ptq's row."""
        return next((row for row in self.rows if row.variant == variant), None)


@dataclass(frozen=True)
class Results:
    """The tables of a sweep, and the names of its runs that nothing has measured."""

    tables: tuple[Table, ...]
    missing: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    seeds_per_config: int = 1


@dataclass
class _Measured:
    """Variants of one protocol by (variant, run id); later records override, other tasks are added."""

    found: dict[tuple[VariantName, str | None], VariantResult] = field(default_factory=dict)

    def add(self, one: VariantResult) -> None:
        run_id = one.run_id if one.variant in FORMS else None
        old = self.found.get((one.variant, run_id))
        if old is not None:
            one = one.model_copy(update={"tasks": old.tasks | one.tasks, "text": one.text or old.text})
        self.found[one.variant, run_id] = one


def collect(records: Iterable[Record], runs: Sequence[Run]) -> Results:
    """The results in `records` (oldest first) of the eval and baseline attempts of a sweep with `runs`.

    Rows come as teacher, ptq, then each run's forms in the sweep's order; the mean over seeds of one config
    follows its last run. Adapters of no run of the sweep come last under their run id.
    """
    by_protocol: dict[Protocol, _Measured] = {}
    for record in records:
        if record.status == "done" and record.protocol is not None:
            measured = by_protocol.setdefault(record.protocol, _Measured())
            for variant in record.variants:
                measured.add(variant)
    tables = tuple(
        _table(protocol, measured.found, runs) for protocol, measured in by_protocol.items() if measured.found
    )
    seen = {row.run_id for table in tables for row in table.rows}
    return Results(
        tables=tables,
        missing=tuple(run.name for run in runs if run.id not in seen),
        seeds=tuple(dict.fromkeys(run.config.seed for run in runs)),
        seeds_per_config=max((len(group) for group in _by_config(runs)), default=1),
    )


def _table(
    protocol: Protocol, found: Mapping[tuple[VariantName, str | None], VariantResult], runs: Sequence[Run]
) -> Table:
    teacher, ptq = found.get(("teacher", None)), found.get(("ptq", None))
    tasks = _task_order(found.values())
    averaged = tuple(task for task in tasks if all(task in one.tasks for one in found.values()))
    baselines = [one for one in (teacher, ptq) if one is not None]
    rows = [Row(one.variant, one.variant, scores(one, averaged, teacher, ptq)) for one in baselines]
    for (variant, run_id), run in _in_order(found, runs):
        name = run.name if run else run_id or "?"
        row = Row(
            label=f"{name} · {variant}",
            variant=variant,
            scores=scores(found[variant, run_id], averaged, teacher, ptq),
            run_id=run_id,
            run=name,
            seeds=(run.config.seed,) if run else (),
        )
        rows.append(row)
    return Table(
        protocol=protocol,
        tasks=tasks,
        averaged=averaged,
        rows=tuple(_with_means(rows, runs)),
        n={task: _counts(one.tasks[task].n for one in found.values() if task in one.tasks) for task in tasks},
        text_tokens=_counts(one.text.tokens for one in found.values() if one.text),
    )


def _in_order(
    found: Mapping[tuple[VariantName, str | None], VariantResult], runs: Sequence[Run]
) -> list[tuple[tuple[VariantName, str | None], Run | None]]:
    known: list[tuple[tuple[VariantName, str | None], Run | None]] = [
        ((form, run.id), run) for run in runs for form in FORMS if (form, run.id) in found
    ]
    ours = {key for key, _ in known}
    foreign = [key for key in found if key[0] in FORMS and key not in ours]
    return [*known, *((key, None) for key in foreign)]


def _with_means(rows: list[Row], runs: Sequence[Run]) -> list[Row]:
    """The rows, each config's mean over seeds after the last row of that config."""
    placed = list(rows)
    for group in _by_config(runs):
        ids = {run.id for run in group}
        for form in FORMS:
            members = [row for row in placed if row.variant == form and row.run_id in ids]
            if len(members) < 2:
                continue
            name = _shared_name(group)
            mean = Row(
                label=f"{name} · {form} · mean of {len(members)} seeds",
                variant=form,
                scores=mean_scores([row.scores for row in members]),
                run=name,
                seeds=tuple(seed for row in members for seed in row.seeds),
            )
            last = max(i for i, row in enumerate(placed) if row.run_id in ids or row.run == name)
            placed.insert(last + 1, mean)
    return placed


def _by_config(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in nothing but the seed, together."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = run.config.model_copy(update={"seed": 0}).model_dump_json()
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _shared_name(group: Sequence[Run]) -> str:
    """The name without `_s<seed>`, when every run of the config has it, else the first run's."""
    cut = {run.name.removesuffix(f"_s{run.config.seed}") for run in group}
    return cut.pop() if len(cut) == 1 else group[0].name


def _task_order(measured: Iterable[VariantResult]) -> tuple[str, ...]:
    """The lab's five in its order, then the others as they were given."""
    seen = dict.fromkeys(task for one in measured for task in one.tasks)
    ours = [task for task in DEFAULT_TASKS if task in seen]
    return tuple(dict.fromkeys((*ours, *seen)))


def _counts(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))
