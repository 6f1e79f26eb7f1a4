"""How long changes gather before a turn."""

from __future__ import annotations

import pytest

from orchestrator.controller.serve import SETTLE_S, settle_s


@pytest.mark.parametrize(
    ("thought_s", "gather_s"), [(0.0, SETTLE_S), (0.001, SETTLE_S), (0.05, 0.5), (1.0, 10.0)]
)
def test_a_sweep_thinks_for_a_tenth_of_the_time_at_most(thought_s: float, gather_s: float) -> None:
    assert settle_s(thought_s) == pytest.approx(gather_s)
