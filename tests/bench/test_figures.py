"""What a bench says of what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.figures import Figure, Report, quantile


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        ({}, None),
        ({"at_most": 2}, True),
        ({"at_most": 1.9}, False),
        ({"exactly": 2}, True),
        ({"exactly": 3}, False),
    ],
)
def test_a_goal_is_met_or_not(goal: dict[str, float], met: bool | None) -> None:
    assert Figure("x", 2.0, "s", **goal).met is met


def test_a_line_has_the_goal_beside_the_value() -> None:
    line = Figure("Jobs, first to last", 12.41, "s", at_most=25, note="quiet").line()
    assert line.split() == ["Jobs,", "first", "to", "last", "12.4", "s", "(≤", "25)", "ok", "quiet"]
    assert Figure("x", 1504, "", exactly=1500).line().split() == ["x", "1,504", "(=", "1,500)", "MISSED"]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3, 1, 2], 0.5, 2),
        ([3, 1, 2], 1, 3),
        ([3, 1, 2], 0, 1),
        (list(range(1, 101)), 0.99, 99),
        ([7], 0.99, 7),
    ],
)
def test_quantiles_are_values_that_were_seen(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


def test_a_report_keeps_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.add(Figure("a", 1, "s", at_most=2), Figure("b", 3, "s", at_most=2))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]
    assert [one.what for one in report.missed] == ["b"]
    report.write(tmp_path / "figures.json", jobs=10)
    written = json.loads((tmp_path / "figures.json").read_text())
    assert (written["settings"], [one["met"] for one in written["figures"]]) == ({"jobs": 10}, [True, False])
