"""`orch results`: the records of a sweep as tables."""

from __future__ import annotations

import json
import sys

from orchestrator import screen
from orchestrator.client.session import Session, Stored
from orchestrator.results import Results, collect, markdown, show, to_csv, to_json


def results_of(session: Session, stored: Stored) -> Results:
    """What the evaluations of a sweep have measured up to now."""
    records = [
        one.record for one in session.records(stored) if one.stage in ("baseline", "eval") and one.record
    ]
    return collect(records, stored.runs)


def show_results(session: Session, sweep: str, output: str) -> None:
    """Print them as text, json, md or csv."""
    results = results_of(session, session.sweep(sweep))
    if output == "text":
        show(results, screen.console())
    elif output == "json":
        json.dump(to_json(results), sys.stdout, indent=1, ensure_ascii=False, allow_nan=False)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(markdown(results) if output == "md" else to_csv(results))
