"""What the controller tells Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.watched import WatchedCluster
from orchestrator.cluster.kube.workqueue import WorkQueue
from orchestrator.controller.outcome import AttemptRecord, FailureClass
from orchestrator.controller.status import STATES, SweepStatus
from orchestrator.render import STAGES

LOG = logging.getLogger(__name__)
REFLECTOR_COUNTS = ("lists", "watches", "events", "relists", "drift", "errors")


HELD = ("Halted", "JobsRefused", "Refused", "Suspended", "Waiting")
"""What keeps a sweep from going on: types of conditions, and Refused for one that is not accepted."""


def held_by(status: SweepStatus) -> set[str]:
    """Which of HELD are true of a sweep."""
    found = {one.type for one in status.conditions if one.status == "True"}
    refused = any(one.type == "Accepted" and one.status == "False" for one in status.conditions)
    return (found & set(HELD)) | ({"Refused"} if refused else set())


class Metrics:
    """Counts and gauges of one controller."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._turns = Histogram(
            "orch_turn_seconds",
            "Seconds of a controller's turn for one sweep.",
            registry=registry,
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self._failed = Counter(
            "orch_turn_failures", "Turns that failed and were tried again.", registry=registry
        )
        self._warnings = Counter("orch_api_warnings", "Warnings of the API server.", registry=registry)
        self._last_turn = Gauge(
            "orch_last_turn_timestamp_seconds",
            "Unix time of the last turn that did not fail, or since when this replica leads.",
            registry=registry,
        )
        self._attempts = Counter(
            "orch_attempts",
            "Recorded attempts: done, or by the class of their failure.",
            ["stage", "outcome"],
            registry=registry,
        )
        for stage in STAGES:
            for outcome in ("done", *FailureClass):
                self._attempts.labels(stage, outcome)  # else the first of a kind would be no increase
        self._held = Gauge(
            "orch_sweep_held",
            "1 while this keeps a sweep from going on: Halted, JobsRefused, Refused, Suspended, Waiting.",
            ["sweep", "by"],
            registry=registry,
        )
        self._leads = Gauge("orch_leader", "1 while this replica leads.", registry=registry)
        self._runs = Gauge("orch_runs", "Runs by state.", ["sweep", "state"], registry=registry)
        self._gpu_hours = Gauge("orch_gpu_hours", "GPU-hours used by a sweep.", ["sweep"], registry=registry)

    def watch(self, api: Api, cluster: WatchedCluster, queue: WorkQueue[str]) -> None:
        """Tell of these, too, whenever asked."""
        self._registry.register(_Machinery(api, cluster, queue))

    def turned(self, sweep: str, status: SweepStatus, seconds: float) -> None:
        """A turn is over."""
        self._turns.observe(seconds)
        self._last_turn.set_to_current_time()
        held = held_by(status)
        for kind in HELD:
            self._held.labels(sweep, kind).set(kind in held)
        self._gpu_hours.labels(sweep).set(status.gpuHours)
        for state in STATES:
            self._runs.labels(sweep, state).set(status.counts.get(state, 0))

    def gone(self, sweep: str) -> None:
        """A sweep is no more."""
        self._gpu_hours.remove_by_labels({"sweep": sweep})
        self._runs.remove_by_labels({"sweep": sweep})
        self._held.remove_by_labels({"sweep": sweep})

    def recorded(self, record: AttemptRecord) -> None:
        """An attempt is over and recorded."""
        self._attempts.labels(record.stage, record.failure or record.state).inc()

    def failed(self) -> None:
        """A turn failed."""
        self._failed.inc()

    def warned(self, text: str) -> None:
        """The API server warns of something that it takes all the same."""
        self._warnings.inc()
        LOG.warning("controller: the API server warns: %s", text)

    def leads(self, leads: bool) -> None:
        """Whether this replica leads from now on."""
        self._leads.set(leads)
        self._last_turn.set_to_current_time()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Machinery(Collector):
    """What is counted elsewhere: requests, reflectors, the queue."""

    def __init__(self, api: Api, cluster: WatchedCluster, queue: WorkQueue[str]) -> None:
        self._api, self._cluster, self._queue = api, cluster, queue

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "orch_api_requests", "Requests to the API server.", labels=["method", "resource", "status"]
        )
        for (method, resource, status), count in self._api.requests.items():
            requests.add_metric([method, resource, str(status)], count)
        yield requests
        yield GaugeMetricFamily("orch_queue_depth", "Sweeps that wait for a turn.", value=len(self._queue))
        silence = GaugeMetricFamily(
            "orch_reflector_silence_seconds", "Since the server said anything.", labels=["kind"]
        )
        counts = CounterMetricFamily(
            "orch_reflector", "What reflectors did and met.", labels=["kind", "what"]
        )
        for reflector in self._cluster.reflectors.values():
            silence.add_metric([reflector.name], reflector.contact_age_s)
            for what in REFLECTOR_COUNTS:
                counts.add_metric([reflector.name, what], getattr(reflector.stats, what))
        yield silence
        yield counts
