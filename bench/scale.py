"""What many runs cost: sweeps of thousands of runs to their end on a simulated cluster.

`python -m bench.scale --help`. Time is virtual and moves on by what the controller computes, so that changes
gather while it is busy, as they do in a cluster. Each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Figure, Report
from bench.planning import PROFILE, sweep_object
from bench.simulated import SimulatedCluster
from orchestrator.cluster.base import ObservedJob
from orchestrator.controller import serve
from orchestrator.controller.acts import Action, Acts
from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.loop import Controller
from orchestrator.controller.memory import Memory
from orchestrator.controller.observed import Observed
from orchestrator.controller.status import SweepStatus
from orchestrator.controller.teller import Teller
from orchestrator.profile import Profile
from orchestrator.sweep.naming import LABEL_STAGE
from orchestrator.sweep.spec import MAX_RUNS, Sweep

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
AT_ONCE = 1_000
"""Jobs of each sweep."""
TRAINS_S, EVALUATES_S = (30.0, 90.0), (5.0, 15.0)
STEPS = ("expand", "observe", "plan", "act", "tell")
EXPONENT = 1.1


class Timed(Controller):
    """A controller that knows how much CPU each step of its turns took, without the cluster's share."""

    cluster: SimulatedCluster

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.spent: Counter[str] = Counter()
        super().__init__(
            cluster,
            PROFILE,
            cluster.clock,
            check_schema=False,
            tell_every_s=serve.TELL_EVERY_S,
            hours_every_s=serve.HOURS_EVERY_S,
        )
        self.teller = TimedTeller(self)
        self.acts = TimedActs(self)

    def cpu_s(self) -> float:
        """Seconds of CPU so far that were not the simulation's."""
        return time.process_time() - self.cluster.cpu_s

    def _expand(self, name: str, stored: Mapping[str, Any]) -> tuple[Sweep, Catalogue]:
        began = self.cpu_s()
        try:
            return super()._expand(name, stored)
        finally:
            self.spent["expand"] += self.cpu_s() - began

    def _observe(self, name: str, stored: Mapping[str, Any], runs: Catalogue) -> Observed:
        began = self.cpu_s()
        try:
            return super()._observe(name, stored, runs)
        finally:
            self.spent["observe"] += self.cpu_s() - began


class TimedActs(Acts):
    """What a timed controller acts with."""

    def __init__(self, controller: Timed) -> None:
        super().__init__(controller.cluster, check_schema=False)
        self._controller = controller

    def do(
        self, sweep: str, actions: Iterable[Action], profile: Profile, memory: Memory, now: float
    ) -> float | None:
        began = self._controller.cpu_s()
        try:
            return super().do(sweep, actions, profile, memory, now)
        finally:
            self._controller.spent["act"] += self._controller.cpu_s() - began


class TimedTeller(Teller):
    """The teller of a timed controller."""

    def __init__(self, controller: Timed) -> None:
        super().__init__(controller.cluster, serve.TELL_EVERY_S, serve.HOURS_EVERY_S)
        self._controller = controller

    def tell(self, name: str, stored: Mapping[str, Any], status: SweepStatus, now: float) -> float | None:
        began = self._controller.cpu_s()
        try:
            return super().tell(name, stored, status, now)
        finally:
            self._controller.spent["tell"] += self._controller.cpu_s() - began


def lasts(job: ObservedJob) -> float:
    """Seconds of a Job: by its name, so that every size has the same."""
    least, most = TRAINS_S if job.labels[LABEL_STAGE] == "train" else EVALUATES_S
    return random.Random(job.name).uniform(least, most)


def play(runs: int, evaluated: bool) -> dict[str, float]:
    """What it costs to take so many runs to their end, in sweeps as large as they may be."""
    logging.disable(logging.INFO)
    due: dict[str, float] = {}
    thought: dict[str, float] = {}
    cluster = SimulatedCluster(
        lasts, lambda sweep: _due(due, sweep, cluster.now + serve.settle_s(thought.get(sweep, 0.0)))
    )
    controller = Timed(cluster)
    sweeps = -(-runs // MAX_RUNS)
    before_mib, began_at, began_s = _peak_mib(), cluster.now, controller.cpu_s()
    for number in range(sweeps):
        scheduling, measured = {"parallelism": AT_ONCE}, {"enabled": evaluated}
        value = sweep_object(f"scale-{number}", min(MAX_RUNS, runs), scheduling=scheduling, eval=measured)
        cluster.put_sweep(value)
    turns, longest_s = 0, 0.0
    while due or cluster.unfinished:
        name = min(due, key=lambda one: due[one], default="")
        cluster.move(min(cluster.next_at, due.get(name, cluster.next_at)))
        if not name or due[name] > cluster.now:
            continue
        del due[name]
        at_s, acted_s = controller.cpu_s(), controller.spent["act"]
        turn = controller.step(name)
        took_s = controller.cpu_s() - at_s
        thought[name] = took_s - (controller.spent["act"] - acted_s)
        cluster.move(cluster.now + took_s)
        turns, longest_s = turns + 1, max(longest_s, took_s)
        if turn.again_s is not None:
            _due(due, name, cluster.now + turn.again_s)
    total_s = controller.cpu_s() - began_s
    spent = dict(controller.spent)
    spent["plan"] = total_s - sum(spent.values())
    return {
        "runs": runs,
        "sweeps": sweeps,
        "virtual_s": cluster.now - began_at,
        "turns": turns,
        "cpu_s": total_s,
        "longest_turn_s": longest_s,
        "simulation_cpu_s": cluster.cpu_s,
        "peak_mib": _peak_mib(),
        "grown_mib": _peak_mib() - before_mib,
        **{f"{step}_s": spent.get(step, 0.0) for step in STEPS},
        **{f"writes_{what}": count for what, count in cluster.writes.items()},
    }


def _due(due: dict[str, float], sweep: str, at: float) -> None:
    due[sweep] = min(at, due.get(sweep, at))


def _peak_mib() -> float:
    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(runs: int, evaluated: bool) -> dict[str, float]:
    """As `play`, in a process of its own: so its memory is its own."""
    command = [sys.executable, "-m", "bench.scale", "--play", str(runs)]
    done = subprocess.run(
        command + ([] if evaluated else ["--no-eval"]), stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def figures(found: Mapping[str, float]) -> Iterator[Figure]:
    """What one size costs."""
    runs = found["runs"]
    label = f"{runs:,.0f} runs"
    turns = found["turns"]
    note = f"{turns / runs:.2f} a run, in {found['virtual_s']:,.0f} virtual seconds"
    yield Figure(f"{label}: turns", turns, "", note=note)
    yield Figure(f"{label}: CPU", found["cpu_s"], "s", note=f"simulation {found['simulation_cpu_s']:.1f} s")
    yield Figure(f"{label}: CPU per run", 1000 * found["cpu_s"] / runs, "ms")
    for step in STEPS:
        yield Figure(f"{label}: {step}, CPU per run", 1000 * found[f"{step}_s"] / runs, "ms")
    thought_s = found["observe_s"] + found["plan_s"]
    yield Figure(f"{label}: observe and plan, CPU per turn", 1000 * thought_s / turns, "ms")
    yield Figure(f"{label}: longest turn", found["longest_turn_s"], "s")
    yield Figure(f"{label}: memory, with the simulation", found["peak_mib"], "MiB")
    yield Figure(f"{label}: memory per run", 1024 * found["grown_mib"] / runs, "KiB")
    writes = sum(count for key, count in found.items() if key.startswith("writes_"))
    yield Figure(f"{label}: writes per run", writes / runs, "")


def exponents(found: Sequence[Mapping[str, float]]) -> Iterator[Figure]:
    """How each cost grows with the number of runs: 1 is linear."""
    span = f"{found[0]['runs']:,.0f} to {found[-1]['runs']:,.0f} runs"
    for what in ("cpu_s", "turns", "grown_mib", *(f"{step}_s" for step in STEPS)):
        goal = EXPONENT if what == "cpu_s" else None
        name = what.removesuffix("_s").removesuffix("_mib")
        yield Figure(f"exponent of {name}, {span}", slope(found, what), "", at_most=goal)


def slope(found: Sequence[Mapping[str, float]], what: str) -> float:
    """Of the straight line through the logarithms."""
    points = [(math.log(one["runs"]), math.log(max(one[what], 1e-9))) for one in found]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--runs", type=int, nargs="+", default=SIZES, metavar="N", help="sizes, smallest first"
    )
    parser.add_argument("--no-eval", action="store_true", help="train only: one Job a run instead of two")
    parser.add_argument("--play", type=int, metavar="N", help="one size, in this process, as JSON")
    options = parser.parse_args()
    if options.play:
        sys.stdout.write(json.dumps(play(options.play, not options.no_eval)) + "\n")
        return 0
    report, found = Report(), []
    for runs in options.runs:
        found.append(apart(runs, not options.no_eval))
        report.add(*figures(found[-1]))
        if options.json:
            report.write(options.json, runs=options.runs, at_once=AT_ONCE, no_eval=options.no_eval)
    if len(found) > 1:
        report.add(*exponents(found))
    if options.json:
        report.write(options.json, runs=options.runs, at_once=AT_ONCE, no_eval=options.no_eval)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
