"""What `orch gc` removes of the local cluster's state."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.local import LocalCluster
from orchestrator.cluster.slots import Slots
from orchestrator.profile import Profile
from orchestrator.sweep.naming import LABEL_SWEEP

LONG_AGO, BEFORE, SINCE = 1_000.0, 2_000.0, 3_000.0
JOB = "night--r0-0123abcd-train-1"


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    return LocalCluster(tmp_path, Profile(), Slots())


def put(path: Path, value: Any = "", at: float = LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    for one in (path, path.parent):
        os.utime(one, (at, at))
    return path


def a_job(cluster: LocalCluster, *, ended: float | None = LONG_AGO, recorded: bool = True) -> Path:
    """A Job of sweep `night`, as cluster/jobfolder.py lays it out."""
    folder = cluster.root / "jobs" / JOB
    put(folder / "log", "12345")
    put(folder / "job.json", {"manifest": {"metadata": {"labels": {LABEL_SWEEP: "night"}}}})
    if ended is not None:
        put(folder / "exit.json", {"finished_at": ended})
    if recorded:
        put(cluster.root / "records" / "night" / f"{JOB}.json", {})
    return folder


def a_sweep(cluster: LocalCluster) -> None:
    put(cluster.root / "sweeps" / "night.json", {"metadata": {"name": "night"}})


def found(cluster: LocalCluster, *sweeps: str, delete: bool = False) -> list[tuple[str, str]]:
    return [(one.kind, one.path) for one in cluster.tidy(BEFORE, sweeps, delete=delete)]


def test_a_recorded_job_goes_with_its_log_and_its_record_stays(cluster: LocalCluster) -> None:
    a_sweep(cluster)
    folder = a_job(cluster)
    assert found(cluster) == [("job", f".orch/jobs/{JOB}")]
    assert folder.is_dir()
    assert found(cluster, delete=True) == [("job", f".orch/jobs/{JOB}")]
    assert not folder.exists()
    assert (cluster.root / "records" / "night" / f"{JOB}.json").exists()
    assert found(cluster) == []


@pytest.mark.parametrize(
    "job",
    [{"ended": None}, {"ended": SINCE}, {"recorded": False}],
    ids=["it has not ended", "it ended lately", "it is not recorded"],
)
def test_a_job_that_is_needed_stays(cluster: LocalCluster, job: dict[str, Any]) -> None:
    a_sweep(cluster)
    a_job(cluster, **job)
    assert found(cluster) == []


def test_of_a_sweep_that_is_gone_jobs_and_records_go(cluster: LocalCluster) -> None:
    a_job(cluster, recorded=False)
    put(cluster.root / "records" / "night" / "other.json", {})
    assert found(cluster, delete=True) == [("job", f".orch/jobs/{JOB}"), ("records", ".orch/records/night")]
    assert found(cluster) == []


def test_young_records_of_a_sweep_that_is_gone_stay(cluster: LocalCluster) -> None:
    put(cluster.root / "records" / "night" / "old.json", {})
    put(cluster.root / "records" / "night" / "young.json", {}, at=SINCE)
    os.utime(cluster.root / "records" / "night", (LONG_AGO, LONG_AGO))
    assert found(cluster) == []


def test_old_logs_of_deleted_jobs_go(cluster: LocalCluster) -> None:
    put(cluster.root / "logs" / f"{JOB}.log", "1")
    put(cluster.root / "logs" / "day--r0-0123abcd-train-1.log", "1")
    put(cluster.root / "logs" / "night--r1-0123abcd-train-1.log", "1", at=SINCE)
    assert found(cluster, "night", delete=True) == [("job", f".orch/logs/{JOB}.log")]
    assert len(list((cluster.root / "logs").iterdir())) == 2


def test_only_what_was_named_goes(cluster: LocalCluster) -> None:
    a_job(cluster)
    assert found(cluster, "day") == []
    assert len(found(cluster, "night")) == 2


def test_a_look_makes_nothing(cluster: LocalCluster) -> None:
    assert found(cluster) == []
    assert not cluster.root.exists()


def test_the_size_is_that_of_its_files(cluster: LocalCluster) -> None:
    a_sweep(cluster)
    folder = a_job(cluster)
    [one] = cluster.tidy(BEFORE, delete=False)
    assert one.bytes == sum(path.stat().st_size for path in folder.iterdir())
