"""The official client's typed API beside ours: CPU of a POST, memory of a cached Job."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from bench.figures import Figure, median
from bench.planning import PROFILE, sweep_object
from bench.process import until
from bench.stage import Stage
from orchestrator.cluster.kube import decode
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.cluster import ALL_JOBS
from orchestrator.cluster.kube.paths import JOBS
from orchestrator.cluster.kube.reflector import Item, Reflector
from orchestrator.controller.requests import train_request
from orchestrator.controller.retry import Overrides
from orchestrator.render import render_job
from orchestrator.sweep.expand import expand
from orchestrator.sweep.load import from_object

PAIRS = 100


def measure(stage: Stage, jobs: int) -> Iterator[Figure]:
    """CPU of POSTs (dry runs) in turn, then memory of all Jobs of the namespace in a process each."""
    typed, ours = _posts(stage)
    ratio = median([a / b for a, b in zip(typed, ours, strict=True)])
    yield Figure("CPU of a POST, ours", 1000 * median(ours), "ms", note=f"{PAIRS} pairs")
    yield Figure("CPU of a POST, BatchV1Api and V1Job", 1000 * median(typed), "ms", note=f"× {ratio:.1f}")
    kib = {}
    for name in ("reflector", "V1JobList", "SharedInformer"):
        count, kib[name] = _held(stage, name)
        note = f"{count:,} Jobs" + (f", × {kib[name] / kib['reflector']:.1f}" if name != "reflector" else "")
        yield Figure(f"memory of a cached Job, {name}", kib[name], "KiB", note=note)


def _posts(stage: Stage) -> tuple[list[float], list[float]]:
    """CPU seconds of this thread per POST: the official client's, ours; from dict to decoded answer."""
    from kubernetes import client, config

    config.load_kube_config()
    batch = client.BatchV1Api()
    sweep = from_object(sweep_object("reference", PAIRS))
    manifests = [
        render_job(train_request(sweep, None, run, 1, Overrides()), PROFILE, check_schema=False)
        for run in expand(sweep, "bench")
    ]

    def typed(manifest: dict[str, Any]) -> None:
        job = client.V1Job.model_validate(manifest)
        batch.create_namespaced_job(stage.namespace, job, dry_run="All", field_validation="Strict")

    def ours(manifest: dict[str, Any]) -> None:
        decode.job(stage.api.post(JOBS.path(stage.namespace), manifest, dryRun="All"))

    for post in (typed, ours):
        _cpu(post, manifests[0])  # connects, and imports what is imported late
    pairs = [(_cpu(typed, one), _cpu(ours, one)) for one in manifests]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _cpu(post: Callable[[dict[str, Any]], None], manifest: dict[str, Any]) -> float:
    began = time.thread_time()
    post(manifest)
    return time.thread_time() - began


def _held(stage: Stage, how: str) -> tuple[int, float]:
    """(Jobs, KiB each) in a process that does nothing else."""
    command = [sys.executable, "-m", "bench.reference", how, stage.namespace]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["jobs"], found["kib"]


def _reflector(namespace: str) -> Callable[[], int]:
    api = Api.connect(namespace=namespace)
    reflector: Reflector[Any] = Reflector(
        api,
        JOBS.path(namespace),
        _item,
        selector=ALL_JOBS,
        on_change=lambda *_: None,
        name="jobs",
    )

    def fill() -> int:
        reflector.start()
        reflector.synced.wait(120)
        return len(reflector.items())

    return fill


def _item(raw: bytes) -> Item[Any]:
    kept = decode.job(raw)
    return Item(kept.name, kept.resource_version, kept)


def _typed_list(namespace: str) -> Callable[[], int]:
    batch = _batch()
    kept: list[Any] = []

    def fill() -> int:
        token = None
        while True:
            page = batch.list_namespaced_job(namespace, label_selector=ALL_JOBS, limit=500, _continue=token)
            kept.extend(page.items)
            token = (
                page.metadata.var_continue
                if hasattr(page.metadata, "var_continue")
                else page.metadata._continue
            )
            if not token:
                return len(kept)

    return fill


def _informer(namespace: str) -> Callable[[], int]:
    from kubernetes.informer import SharedInformer

    informer = SharedInformer(_batch().list_namespaced_job, namespace=namespace, label_selector=ALL_JOBS)

    def fill() -> int:
        informer.start()
        last, since = -1, time.monotonic()

        def still() -> bool:
            nonlocal last, since
            now = len(informer.cache.list())
            if now != last:
                last, since = now, time.monotonic()
            return last > 0 and time.monotonic() - since > 3

        until(still, 300, "the informer")
        return last

    return fill


def _batch() -> Any:
    from kubernetes import client, config

    config.load_kube_config()
    batch = client.BatchV1Api()
    batch.list_namespaced_job("default")  # all that is imported late is there before we weigh
    return batch


HOW = {"reflector": _reflector, "V1JobList": _typed_list, "SharedInformer": _informer}


def main(how: str, namespace: str) -> None:
    """Print the Jobs of a namespace and the memory each takes when held so."""
    fill = HOW[how](namespace)
    before = psutil.Process().memory_info().rss
    count = fill()
    grown = psutil.Process().memory_info().rss - before
    sys.stdout.write(json.dumps({"jobs": count, "kib": grown / 1024 / max(count, 1)}) + "\n")
    sys.stdout.flush()
    threading.Event().wait(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
