"""The comparison with TRL: its goals, its tables, and that every row really runs (slow, on a tiny model)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.trainer import main, markdown
from bench.trainer_cases import CASES, CHECKPOINTED, FAIR, OURS, QUICK, Case, check_equal_work, figures

CASE = Case("λ = 0", CASES["off-512"].settings, (FAIR, OURS, CHECKPOINTED), 2.0, 0.5, 0.25)


def step(seconds: float, memory: float = 100.0, tokens: int = CASE.tokens) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "cpu_s": seconds,
        "above_loaded_mib": memory,
        "tokens": tokens,
        "parts": {"forward": 0.5, "loss": 0.25, "forward and loss": 2.0, "backward": 1.0},
        "loss": 0.1,
    }


def test_a_case_counts_completion_tokens() -> None:
    assert CASES["off-512"].tokens == 4 * 480
    assert CASES["on-32x64"].tokens == 32 * 64


def test_goals_are_judged_on_medians_of_pairs() -> None:
    found = {
        FAIR: [step(10), step(20), step(30)],
        OURS: [step(4, 40), step(10, 40), step(30, 40)],
        CHECKPOINTED: [step(9, 30), step(9, 30), step(9, 30)],
    }
    seconds, cpu, memory, checkpointed = figures(CASE, found)
    assert (seconds.value, seconds.met) == (0.5, True)
    assert (cpu.value, cpu.met) == (0.5, None)
    assert (memory.value, memory.met) == (0.4, True)
    assert (checkpointed.value, checkpointed.met) == (0.3, False)
    assert figures(CASE, {OURS: found[OURS]}) == []


def test_rows_that_did_other_work_are_not_compared() -> None:
    check_equal_work(CASE, {FAIR: [step(1)], OURS: [step(1)]})
    with pytest.raises(RuntimeError, match=r"must have 1920 completion tokens, got \{'ours': \[1919\]\}"):
        check_equal_work(CASE, {FAIR: [step(1)], OURS: [step(1, tokens=1919)]})


def test_a_table_has_each_row_beside_the_fair_one() -> None:
    value = {
        "settings": {"model": "m", "dtype": "fp32", "device": "CPU"},
        "cases": {
            "off-512": {
                "what": CASE.what,
                "loaded_mib": {FAIR: 2000.0, OURS: 1000.0},
                "steps": {FAIR: [step(10, 8000)], OURS: [step(4, 4000)]},
            }
        },
    }
    lines = markdown([value]).splitlines()
    assert lines[0] == "**λ = 0** — m, fp32, CPU, 1 steps"
    assert lines[4].endswith("(fair) | 10.00 | 10.00 | 0.00 | 2.00 | 1.00 | 8,000 | 2,000 |")
    assert lines[5] == "| orch | 4.00 (2.50×) | 4.00 | 0.00 | 0.75 | 1.00 | 4,000 | 1,000 |"


@pytest.mark.slow
def test_every_row_runs_and_is_trained_on_the_same_tokens(tmp_path: Path) -> None:
    """On a tiny model: seven processes, each of which imports its libraries."""
    file = tmp_path / "found.json"
    words = ["--quick", "--steps", "1", "--dtype", "fp32", "--json", str(file), "--models", str(tmp_path)]
    assert main(words) == 0
    found = json.loads(file.read_text())
    for name, case in QUICK.items():
        for row in case.rows:
            (measured,) = found["cases"][name]["steps"][row]
            assert measured["tokens"] == case.tokens
            assert measured["seconds"] > 0
            assert measured["above_loaded_mib"] > 0
    assert len(found["figures"]) == 2 * 3
