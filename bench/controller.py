"""The controller against a real API server: `python bench/controller.py --help`.

Needs $KUBECONFIG of a cluster's administrator. It makes a namespace and a node of its own and removes them
afterwards; pods are ended by a fake kubelet. docs/development.md says how a cluster is had in five seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import holding, planning, reference
from bench.counting import Requests, made_or_changed, not_leases, spelled, written
from bench.fake_kubelet import FakePod
from bench.figures import Figure, Report, median, quantile
from bench.planning import sweep_object
from bench.stage import Stage

END_PER_S = 2.0
RUNNING = 100
PATIENCE_S = 1800.0
"""The controller manager's defaults finish about three Jobs a second."""


@dataclass(frozen=True)
class Size:
    """How much of everything: Jobs that are made at once, and seconds for which nothing happens."""

    jobs: int = 1000
    steady_s: float = 60.0


def plan(stage: Stage, size: Size) -> Iterable[Figure]:
    """Seconds that the controller thinks."""
    return planning.measure(size.jobs)


def create(stage: Stage, size: Size) -> Iterator[Figure]:
    """From one submit to all Jobs, then to all records; then the same submit again."""
    name, controller = "create", stage.controller
    sweep = sweep_object(name, size.jobs, eval={"enabled": False})
    stage.kubelet.runs_for = lambda pod: 0.0
    stage.quiet()
    before, ours_before, cpu_before = stage.server_requests(), controller.requests(), controller.cpu_s()
    stage.submit(sweep)
    jobs = stage.until(lambda: all_there(stage, name, size.jobs), PATIENCE_S, "all Jobs")
    cpu_s = controller.cpu_s() - cpu_before
    seconds = jobs[-1].created - jobs[0].created
    rate = 25.0 / 1000
    yield Figure(f"{len(jobs):,} Jobs, first POST to last", seconds, "s", at_most=rate * len(jobs))
    yield Figure("controller CPU per Job", 1000 * cpu_s / len(jobs), "ms", at_most=10)
    stage.finished(name, PATIENCE_S)
    stage.quiet()
    everything = len(stage.clock.of(name))
    yield Figure(
        f"all {everything:,} recorded", time.monotonic() - jobs[-1].created, "s", note="since the last POST"
    )
    after, ours_after = stage.server_requests(), controller.requests()
    yield from _one_each(everything, after - before, "the API server counted")
    yield from _one_each(everything, ours_after - ours_before, "the controller counted")
    told = made_or_changed(ours_after - ours_before, "sweeps").total()
    yield Figure("status writes meanwhile", told, "", note="one every two seconds at most")
    before, ours_before = stage.server_requests(), controller.requests()
    stage.submit(sweep)
    stage.quiet()
    yield _in_vain(
        "writes after an unchanged resubmit",
        controller.requests() - ours_before,
        stage.server_requests() - before,
    )


def latency(stage: Stage, size: Size) -> Iterator[Figure]:
    """From Job Complete to its eval Job while trainings end at a steady rate."""
    name, runs = "latency", max(20, size.jobs // 4)
    stage.kubelet.runs_for = lambda pod: None if pod.stage in ("train", "eval") else 0.0
    stage.submit(sweep_object(name, runs))
    pods = stage.until(lambda: all_running(stage, name, "train", runs), PATIENCE_S, "all trainings")
    stage.kubelet.release(pods[:1])  # the baselines are measured once the first adapter is there
    stage.until(lambda: stage.clock.of(name, "eval"), PATIENCE_S, "the first eval Job")
    stage.quiet()
    began = time.monotonic()
    for number, pod in enumerate(pods[1:], 1):
        time.sleep(max(0.0, began + number / END_PER_S - time.monotonic()))
        stage.kubelet.release([pod])
    evals = stage.until(lambda: all_there(stage, name, len(pods), "eval"), PATIENCE_S, "all eval Jobs")
    made = {run: job.created for job in evals for run in job.runs}
    ended = [job for job in stage.clock.of(name, "train") if job.complete and job.complete > began]
    taken = [made[job.run] - job.complete for job in ended if job.complete]
    times = sorted(job.complete for job in ended if job.complete)
    rate = (len(times) - 1) / (times[-1] - times[0])
    note = f"{len(taken)} trainings, {rate:.2f} Complete per second"
    yield Figure("Job Complete to its eval Job, median", median(taken), "s", at_most=0.5, note=note)
    yield Figure("Job Complete to its eval Job, p99", quantile(taken, 0.99), "s", at_most=2.0)
    yield Figure("Job Complete to its eval Job, longest", max(taken), "s")
    stage.kubelet.runs_for = lambda pod: 0.0
    stage.kubelet.release(stage.kubelet.running(name, "eval"))
    stage.finished(name, PATIENCE_S)


def steady(stage: Stage, size: Size) -> Iterator[Figure]:
    """Requests when there is nothing to do: all finished, then Jobs that only run."""
    yield from _at_rest(stage, size, "all finished")
    name = "steady"
    stage.kubelet.runs_for = lambda pod: None if pod.stage == "train" else 0.0
    stage.submit(sweep_object(name, min(RUNNING, size.jobs)))
    pods = stage.until(
        lambda: all_running(stage, name, "train", min(RUNNING, size.jobs)), PATIENCE_S, "trainings"
    )
    yield from _at_rest(stage, size, f"{len(pods)} Jobs running")
    stage.kubelet.runs_for = lambda pod: 0.0
    stage.kubelet.release(pods)
    stage.finished(name, PATIENCE_S)


def memory(stage: Stage, size: Size) -> Iterable[Figure]:
    """The controller's memory at five times as many Jobs, and with thousands of records."""
    return holding.measure(stage, size.jobs * 5, size.jobs * 5)


def client(stage: Stage, size: Size) -> Iterable[Figure]:
    """The official client's typed API beside ours."""
    return reference.measure(stage, size.jobs)


MEASURES: dict[str, Callable[[Stage, Size], Iterable[Figure]]] = {
    "plan": plan,
    "create": create,
    "latency": latency,
    "steady": steady,
    "memory": memory,
    "client": client,
}


def all_there(stage: Stage, sweep: str, count: int, stage_name: str = "train") -> list[Any] | None:
    """The sweep's Jobs of a stage once there are so many."""
    found = stage.clock.of(sweep, stage_name)
    return found if len(found) >= count else None


def all_running(stage: Stage, sweep: str, stage_name: str, count: int) -> list[FakePod] | None:
    """Their pods once so many run."""
    found = stage.kubelet.running(sweep, stage_name)
    return found if len(found) >= count else None


def _one_each(jobs: int, requests: Requests, who: str) -> Iterator[Figure]:
    for what, verb, resource, good in (
        ("Job POSTs", "POST", "jobs", "201"),
        ("record POSTs", "POST", "configmaps", "201"),
        ("TTL patches", "PATCH", "jobs", "200"),
    ):
        made = [(status, count) for (v, r, status), count in requests.items() if (v, r) == (verb, resource)]
        other = {status: count for status, count in made if status != good}
        note = f"{jobs:,} Jobs; {who}" + (f"; others: {other}" if other else "")
        yield Figure(f"{what} per Job", sum(count for _, count in made) / jobs, "", exactly=1, note=note)


def _at_rest(stage: Stage, size: Size, when: str) -> Iterator[Figure]:
    stage.quiet()
    ours, server, began = stage.controller.requests(), stage.server_requests(), time.monotonic()
    time.sleep(size.steady_s)
    asked, seen = stage.controller.requests() - ours, stage.server_requests() - server
    seconds = time.monotonic() - began
    lease = (sum(asked.values()) - sum(not_leases(asked).values())) / seconds
    others = sum(not_leases(asked).values()) / seconds
    note = f"{lease:.2f} for the Lease, {others:.2f} others; {seconds:.0f} s"
    yield Figure(f"requests per second, {when}", lease + others, "/s", at_most=1, note=note)
    yield _in_vain(f"writes, {when}", asked, seen)


def _in_vain(what: str, ours: Requests, server: Requests) -> Figure:
    """The controller's writes but the Lease's; by the API server's count, of what nobody else would write.

    The cluster's own controllers write too, whenever they come to it: they put a certificate into each new
    namespace, and delete what was in an old one, or a Job whose time is up.
    """
    told = written(not_leases(ours))
    seen = made_or_changed(server, "sweeps", "jobs")
    note = f"the controller's: {spelled(told)}; the API server saw: {spelled(seen)}"
    return Figure(what, max(told.total(), seen.total()), "", exactly=0, note=note)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=Size.jobs, help="Jobs made at once; all else follows")
    parser.add_argument("--python", default=sys.executable, help="runs the controller: another environment's")
    parser.add_argument("--steady", type=float, default=Size.steady_s, help="seconds of watching a quiet one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was made is removed
    report, size = Report(), Size(options.jobs, options.steady)
    with Stage(f"orch-bench-{os.getpid()}", options.python) as stage:
        report.add(Figure("controller's memory at the start", stage.controller.rss_mib(), "MiB"))
        for name in options.only:
            report.add(*MEASURES[name](stage, size)) if name == "plan" else _each(
                report, MEASURES[name](stage, size)
            )
        faults = stage.controller.faults()
        report.add(
            Figure("warnings and errors in its log", len(faults), "", exactly=0, note=" ".join(faults[:2]))
        )
    if options.json:
        report.write(options.json, jobs=size.jobs, steady_s=size.steady_s, only=options.only)
    return 1 if report.missed else 0


def _each(report: Report, figures: Iterable[Figure]) -> None:
    for one in figures:
        report.add(one)


if __name__ == "__main__":
    sys.exit(main())
