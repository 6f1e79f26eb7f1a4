"""Jobs that the API server does not take."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.controller import loop
from tests.cluster.cluster import Cluster
from tests.cluster.failures.lab import failure_lab
from tests.cluster.failures.page import keep
from tests.cluster.failures.scenes import Play, Scene

COUNT = "count/jobs.batch"
FULL = "a ResourceQuota allows no further Job (count/jobs.batch)"


def test_a_full_quota_of_jobs_holds_the_sweep_and_says_so_until_there_is_room(
    cluster: Cluster, stand_in: str, sweeps_defined: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REFUSED_AGAIN_S", 1.0)
    with failure_lab(cluster, stand_in, tmp_path) as lab:
        lab.kubectl("create", "quota", "few", f"--hard={COUNT}=1")
        known = f"--for=jsonpath={{.status.hard.{COUNT.replace('.', chr(92) + '.')}}}=1"
        lab.kubectl("wait", "quota/few", known, "--timeout=30s")
        lab.begin({"few": Play({"one": Scene(FULL, attempts=1)})})

        def refused() -> bool | None:
            conditions = {one["type"]: one for one in lab.status("few").get("conditions", [])}
            return conditions.get("JobsRefused", {}).get("reason") == "QuotaExceeded" or None

        lab.until(refused, "the training to be refused", 60)
        keep("quota-jobs", lab.held("few", "one", FULL))
        lab.kubectl("patch", "quota", "few", "-p", f'{{"spec": {{"hard": {{"{COUNT}": "2"}}}}}}')
        [record] = lab.ended("few", "one")
        assert record["state"] == "done"
        conditions = lab.finished("few")["conditions"]
        assert "JobsRefused" not in [one["type"] for one in conditions]
