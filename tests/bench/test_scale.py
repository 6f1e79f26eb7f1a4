"""The simulation goes to the end of a sweep, and growth is fitted as it is."""

from __future__ import annotations

import pytest

from bench.scale import STEPS, exponents, figures, play, slope


def test_a_sweep_is_played_to_its_end() -> None:
    found = play(30, evaluated=True)
    jobs = 2 + 30 + 1 + 30  # fetches, trainings, baselines, evaluations
    assert found["writes_job"] == found["writes_record"] == found["writes_retire"] == jobs
    assert all(found[f"{step}_s"] > 0 for step in STEPS)
    assert next(figures(found)).what == "30 runs: turns"


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power: float) -> None:
    found = [{"runs": runs, "cpu_s": 3.0 * runs**power} for runs in (10.0, 100.0, 1000.0)]
    assert slope(found, "cpu_s") == pytest.approx(power)


def test_only_the_whole_has_a_goal() -> None:
    found = [
        dict.fromkeys(("runs", "cpu_s", "turns", "grown_mib", *(f"{step}_s" for step in STEPS)), runs)
        for runs in (10.0, 20.0)
    ]
    goals = {one.what.split()[2]: one.at_most for one in exponents(found)}
    assert goals.pop("cpu,") == 1.1
    assert set(goals.values()) == {None}
