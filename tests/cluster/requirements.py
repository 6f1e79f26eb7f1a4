"""Whether a cluster can run here, which is also what our images are built with."""

from __future__ import annotations

import os

import pytest

from tests.cluster.rig import tools


def require_rig() -> None:
    """Skip in one line where no cluster can run; in CI that is a failure."""
    if reason := tools.why_not():
        if os.environ.get("CI") == "true" or os.environ.get("ORCH_REQUIRE_CLUSTER") == "1":
            pytest.fail(f"{reason}, and this run must not do without", pytrace=False)
        pytest.skip(reason)
