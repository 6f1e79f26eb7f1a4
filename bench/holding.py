"""What the controller weighs with thousands of Jobs and records in its hands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from bench.figures import Figure
from bench.planning import records_of, sweep_object
from bench.stage import Stage
from orchestrator.cluster.kube.paths import JOBS, PODS, SWEEPS
from orchestrator.sweep.naming import LABEL_MANAGED_BY, MANAGED_BY

PATIENCE_S = 1800.0
LIMIT_MIB = 200.0


def measure(stage: Stage, jobs: int, records: int) -> Iterator[Figure]:
    """MiB resident at `jobs` Jobs and `records` records, as grown and after a restart."""
    _old_sweep(stage, records)
    there = stage.clock.count()
    queued = max(10, jobs - there)
    # As with Kueue: Jobs are made suspended, and have no pod until the queue lets them go.
    stage.submit(sweep_object("queued", queued, scheduling={"queue": "bench"}, eval={"enabled": False}))
    [fetch] = stage.until(
        lambda: stage.clock.of("queued", "fetch"), PATIENCE_S, "the fetch that trainings wait for"
    )
    stage.api.patch(JOBS.path(stage.namespace, fetch.name), {"spec": {"suspend": False}})
    stage.until(
        lambda: len(stage.clock.of("queued", "train")) >= queued or None, PATIENCE_S, "all queued Jobs"
    )
    stage.quiet(PATIENCE_S)
    pods = _count_pods(stage)
    note = f"{stage.clock.count():,} Jobs, {pods:,} pods, {records:,} old records and those of the Jobs"
    yield Figure(
        "controller's memory at rest", stage.controller.rss_mib(), "MiB", at_most=LIMIT_MIB, note=note
    )
    yield Figure("controller's memory, most so far", stage.controller.peak_mib, "MiB", at_most=LIMIT_MIB)
    stage.controller.stop()
    stage.start_controller()
    stage.quiet(PATIENCE_S)
    yield Figure("the same after a restart, most", stage.controller.peak_mib, "MiB", at_most=LIMIT_MIB)
    yield Figure("the same after a restart, at rest", stage.controller.rss_mib(), "MiB", at_most=LIMIT_MIB)


def _old_sweep(stage: Stage, records: int) -> None:
    """A sweep that was done long ago: its records are there, its Jobs are gone."""
    value = sweep_object("old", records // 2)
    value["spec"]["control"] = {"suspend": True}
    stored = json.loads(stage.api.post(SWEEPS.path(stage.namespace), value))
    made = list(records_of(value, stored["metadata"]["uid"]))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: stage.cluster.put_record("old", one.job, one.to_json()), made))


def _count_pods(stage: Stage) -> int:
    selector = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
    pages = stage.api.pages(PODS.path(stage.namespace), labelSelector=selector)
    return sum(len(json.loads(page)["items"]) for page in pages)
