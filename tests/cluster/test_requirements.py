"""Where no cluster can run the suite says so in one line; where one must run, that is a failure."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.cluster.requirements import require_rig
from tests.cluster.rig import tools


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in ("CI", "ORCH_REQUIRE_CLUSTER"):
        monkeypatch.delenv(name, raising=False)


def test_without_root_it_is_skipped() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^a cluster needs Linux and root$"):
        require_rig()


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("ORCH_REQUIRE_CLUSTER", "1")])
def test_where_it_must_run_a_skip_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(pytest.fail.Exception, match="needs Linux and root, and this run must not do without"):
        require_rig()


def test_without_go_and_without_built_programs_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    reason = tools.why_not()
    assert reason is not None
    assert "needs Go 1.26" in reason
