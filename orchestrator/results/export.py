"""Results as data: JSON whose fields stay, and CSV with one row a variant. Numbers are not rounded.

Pure.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from orchestrator.results.collect import Results, Row, Table
from orchestrator.results.scores import Score, Scores

VERSION = 1
_SCORES = ("avg", "ppl", "kl", "kl_recovered", "ppl_recovered")


def to_json(results: Results) -> dict[str, Any]:
    """The results as JSON values: absent numbers null, accuracies and shares fractions, KL nats per token."""
    return {
        "v": VERSION,
        "tables": [_table(table) for table in results.tables],
        "missing": list(results.missing),
        "seeds": list(results.seeds),
        "seeds_per_config": results.seeds_per_config,
    }


def _table(table: Table) -> dict[str, Any]:
    return {
        "protocol": table.protocol.model_dump(mode="json"),
        "tasks": list(table.tasks),
        "averaged": list(table.averaged),
        "n": {task: list(counts) for task, counts in table.n.items()},
        "text_tokens": list(table.text_tokens),
        "rows": [_row(row) for row in table.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "variant": row.variant,
        "run": row.run,
        "run_id": row.run_id,
        "seeds": list(row.seeds),
        "tasks": {task: _score(score) for task, score in row.scores.tasks.items()},
        **{name: _score(getattr(row.scores, name)) for name in _SCORES},
    }


def _score(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return {"value": score.value, "error": score.error, "p": score.p, "differs": score.differs}


def to_csv(results: Results) -> str:
    """One row a variant with its protocol; each number has its error and p beside it, absent: empty."""
    tasks = list(dict.fromkeys(task for table in results.tables for task in table.tasks))
    protocol = ["model", "quant", "dtype", "batch_size", "limit", "text", "text_sha256", "block_tokens"]
    names = [*tasks, *_SCORES]
    head = ["label", "variant", "run", "run_id", "seeds"]
    head += [part for name in names for part in (name, f"{name}_error", f"{name}_p")] + protocol
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for table in results.tables:
        values = [getattr(table.protocol, name) for name in protocol]
        for row in table.rows:
            seeds = " ".join(map(str, row.seeds))
            cells: list[Any] = [row.label, row.variant, row.run, row.run_id, seeds]
            for name in names:
                score = _named(row.scores, name)
                cells += [score.value, score.error, score.p] if score else [None, None, None]
            writer.writerow([*cells, *values])
    return out.getvalue()


def _named(scores: Scores, name: str) -> Score | None:
    found: Score | None = getattr(scores, name) if name in _SCORES else scores.tasks.get(name)
    return found
