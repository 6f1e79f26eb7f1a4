"""What many runs cost a real API server: `python -m bench.many --help`.

Needs what bench.controller needs, and with `--etcd` the address at which etcd answers, to see it grow. Give
it a cluster of its own: all of its API server's work is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.counting import not_leases
from bench.figures import Figure, Report
from bench.planning import sweep_object
from bench.stage import Stage

PATIENCE_S = 3 * 3600.0
MIB = 2**20


@dataclass(frozen=True)
class Etcd:
    """An etcd by its JSON gateway."""

    url: str

    def size_mib(self) -> float:
        """Of its file."""
        return int(self._post("maintenance/status")["dbSize"]) / MIB

    def compacted_mib(self) -> float:
        """Of its file when it holds the newest of everything and nothing else."""
        revision = self._post("maintenance/status")["header"]["revision"]
        self._post("kv/compaction", revision=revision, physical=True)
        self._post("maintenance/defragment")
        return self.size_mib()

    def _post(self, what: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/v3/{what}", json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=300) as answer:
            return dict(json.load(answer))


def measure(stage: Stage, etcd: Etcd | None, sweeps: int, runs: int, *, evaluated: bool) -> Iterator[Figure]:
    """`sweeps` sweeps of `runs` runs each, submitted at once, to the last record."""
    label = f"{sweeps} x {runs:,}"
    total = sweeps * runs
    names = [f"many-{sweeps}-{number}" for number in range(sweeps)]
    stage.kubelet.runs_for = lambda pod: 0.0
    stage.quiet(PATIENCE_S)
    small = etcd.compacted_mib() if etcd else 0.0
    controller, server = stage.controller, stage.server_requests()
    asked, cpu_s, server_s, began = (
        not_leases(controller.requests()),
        controller.cpu_s(),
        _server_cpu_s(stage),
        time.monotonic(),
    )
    for name in names:
        stage.cluster.put_sweep(sweep_object(name, runs, eval={"enabled": evaluated}))
    for name in names:
        stage.finished(name, PATIENCE_S)
    seconds = time.monotonic() - began
    stage.quiet(PATIENCE_S)
    jobs = sum(len(stage.clock.of(name)) for name in names)
    yield Figure(f"{label}: submit to the last record", seconds, "s", note=f"{jobs / seconds:.1f} Jobs/s")
    yield Figure(f"{label}: Jobs per run", jobs / total, "")
    used_s = controller.cpu_s() - cpu_s
    yield Figure(f"{label}: controller CPU per run", 1000 * used_s / total, "ms", note=f"{used_s:.1f} s")
    yield Figure(f"{label}: controller CPU per Job", 1000 * used_s / jobs, "ms")
    yield Figure(f"{label}: controller's share of a core", used_s / seconds, "")
    yield Figure(f"{label}: controller's memory, most so far", controller.peak_mib, "MiB")
    yield Figure(f"{label}: API server CPU per run", 1000 * (_server_cpu_s(stage) - server_s) / total, "ms")
    weighs = _metric(stage.api.get("/metrics").decode(), "process_resident_memory_bytes") / MIB
    yield Figure(f"{label}: API server's memory", weighs, "MiB")
    ours = not_leases(controller.requests()) - asked
    note = ", ".join(f"{verb} {kind} {count / total:.2f}" for (verb, kind, _), count in ours.most_common(6))
    yield Figure(f"{label}: controller's requests per run", sum(ours.values()) / total, "", note=note)
    everyone = sum((not_leases(stage.server_requests()) - not_leases(server)).values())
    yield Figure(f"{label}: everyone's requests per run", everyone / total, "")
    turns = controller.get("/metrics")[1]
    yield Figure(f"{label}: turns so far", _metric(turns, "orch_turn_seconds_count"), "")
    if etcd:
        grown = etcd.size_mib()
        yield Figure(f"{label}: etcd as it grew, per run", 1024 * (grown - small) / total, "KiB")
        kept = etcd.compacted_mib()
        yield Figure(f"{label}: etcd compacted, per run", 1024 * (kept - small) / total, "KiB")
        yield Figure(f"{label}: etcd compacted", kept, "MiB", note=f"{small:.1f} MiB before")


def _server_cpu_s(stage: Stage) -> float:
    return _metric(stage.api.get("/metrics").decode(), "process_cpu_seconds_total")


def _metric(text: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--etcd", metavar="URL", help="such as http://127.0.0.1:2379")
    parser.add_argument("--of", nargs="+", default=["1x5000", "50x100"], metavar="SWEEPSxRUNS")
    parser.add_argument("--no-eval", action="store_true", help="train only: one Job a run instead of two")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was made is removed
    report, etcd = Report(), Etcd(options.etcd) if options.etcd else None
    with Stage(f"orch-many-{os.getpid()}") as stage:
        for one in options.of:
            sweeps, runs = map(int, one.split("x"))
            for figure in measure(stage, etcd, sweeps, runs, evaluated=not options.no_eval):
                report.add(figure)
            if options.json:
                report.write(options.json, of=options.of, no_eval=options.no_eval)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
