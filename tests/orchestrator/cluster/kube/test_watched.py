"""The controller's view: what reflectors were told, by sweep, with pods that outlive their objects."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from orchestrator.cluster.base import Cluster
from orchestrator.cluster.kube import decode
from orchestrator.cluster.kube.paths import CONFIG_MAPS, JOBS, PODS, SWEEPS, Resource
from orchestrator.cluster.kube.store import Item
from orchestrator.cluster.kube.watched import WatchedCluster
from orchestrator.sweep import naming
from tests.orchestrator.cluster.kube.test_decode import LABELS, a_job, a_pod, raw

DECODERS = {SWEEPS: decode.sweep, JOBS: decode.job, PODS: decode.pod, CONFIG_MAPS: decode.record}


class NoApi:
    """Nothing is asked of it: the tests tell the reflectors' stores what a server would."""

    namespace = "ml"
    host = "https://nowhere"


class World:
    """A watched cluster, and events for it in the order of their versions."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.cluster = WatchedCluster(NoApi(), self.woken.append)  # type: ignore[arg-type]
        self.version = 100
        self.tell(SWEEPS, {"metadata": {"name": "night", "uid": "s1"}, "spec": {}})

    def tell(self, resource: Resource, value: dict[str, Any], *, deleted: bool = False) -> None:
        self.version += 1
        value = json.loads(json.dumps(value))
        value["metadata"]["resourceVersion"] = str(self.version)
        kept = DECODERS[resource](raw(value))
        store = self.cluster.reflectors[resource].store
        item = Item(kept.name, kept.resource_version, kept)
        (store.delete if deleted else store.upsert)(item)

    @property
    def pods(self) -> list[tuple[str, str, int | None]]:
        return [(pod.uid, pod.phase, pod.exit_code) for job in self.cluster.jobs("night") for pod in job.pods]


def ended(code: int, message: str = "") -> dict[str, Any]:
    state = {"exitCode": code, "message": message, "finishedAt": "2026-11-24T08:01:00Z"}
    return {"phase": "Failed", "containerStatuses": [{"state": {"terminated": state}}]}


def test_reads_are_of_one_sweep_and_wake_it() -> None:
    world = World()
    world.tell(JOBS, a_job())
    world.tell(JOBS, a_job("day--x", "j9") | {"metadata": a_job("day--x", "j9")["metadata"] | {"labels": {}}})
    assert [job.name for job in world.cluster.jobs("night")] == ["night--lr1"]
    assert world.woken == ["night", "night"]
    assert [one["metadata"]["name"] for one in world.cluster.sweeps()] == ["night"]
    assert world.cluster.sweep("day") is None


def test_a_pod_that_is_gone_is_kept_as_it_ended_until_its_job_is_gone() -> None:
    world = World()
    world.tell(JOBS, a_job())
    world.tell(PODS, a_pod(phase="Running"))
    world.tell(PODS, a_pod(**ended(75, "checkpointed")), deleted=True)
    assert world.pods == [("p1", "Failed", 75)], "what only the last event told"
    world.tell(JOBS, a_job(status={"conditions": [{"type": "Failed", "status": "True"}]}))
    assert world.pods == [("p1", "Failed", 75)]
    world.tell(JOBS, a_job(), deleted=True)
    assert world.cluster.jobs("night") == []


def test_a_pod_that_vanished_while_it_ran_is_no_longer_alive() -> None:
    world = World()
    world.tell(JOBS, a_job())
    world.tell(PODS, a_pod(phase="Running"))
    world.tell(PODS, a_pod(phase="Running"), deleted=True)
    assert world.pods == [("p1", "Failed", None)]
    running = [{"name": "trainer", "state": {"running": {"startedAt": "2026-11-24T08:00:00Z"}}}]
    world.tell(PODS, a_pod("p2", phase="Running", containerStatuses=running))
    world.tell(PODS, a_pod("p2", phase="Running", containerStatuses=running), deleted=True)
    [job] = world.cluster.jobs("night")
    assert job.pods[1].finished_at is not None, "it is charged no further"


def test_a_job_deleted_before_its_pod_stays_until_the_pod_is_gone() -> None:
    world = World()
    world.tell(JOBS, a_job())
    world.tell(PODS, a_pod(phase="Running"))
    world.tell(JOBS, a_job(), deleted=True)
    [ghost] = world.cluster.jobs("night")
    assert (ghost.name, ghost.deleting, ghost.uid) == ("night--lr1", True, "j1")
    world.tell(PODS, a_pod(**ended(143)), deleted=True)
    assert world.cluster.jobs("night") == []


def test_records_and_jobs_of_a_former_sweep_of_the_name_do_not_count() -> None:
    world = World()
    owner = {"uid": "s1", "controller": True}
    labels = {**LABELS, naming.LABEL_RECORD: "attempt"}
    metadata = {"name": "night--lr1", "labels": labels, "ownerReferences": [owner]}
    world.tell(JOBS, a_job())
    world.tell(CONFIG_MAPS, {"metadata": metadata, "data": {decode.RECORD_KEY: '{"v": 1}'}})
    assert world.cluster.records("night") == {"night--lr1": {"v": 1}}
    world.tell(SWEEPS, {"metadata": {"name": "night", "uid": "s1"}, "spec": {}}, deleted=True)
    world.tell(SWEEPS, {"metadata": {"name": "night", "uid": "s2"}, "spec": {}})
    assert world.cluster.records("night") == {}
    assert world.cluster.jobs("night") == []
    orphan = {"name": "night--lr2", "labels": labels}
    world.tell(CONFIG_MAPS, {"metadata": orphan, "data": {decode.RECORD_KEY: '{"v": 2}'}})
    assert world.cluster.records("night") == {"night--lr2": {"v": 2}}, "the next of the name has it"


@pytest.mark.parametrize("seed", range(3))
def test_the_open_part_is_that_of_all(seed: int) -> None:
    chance, world = random.Random(seed), World()
    labels = {**LABELS, naming.LABEL_RECORD: "attempt"}
    existing: set[tuple[Resource, int]] = set()
    closed: set[str] = set()
    for _ in range(300):
        number, resource = chance.randrange(6), chance.choice([JOBS, PODS, CONFIG_MAPS])
        name = f"night--r{number}"
        metadata = {"name": name, "labels": labels, "ownerReferences": [{"uid": "s1", "controller": True}]}
        value = {
            JOBS: a_job(name, f"j{number}"),
            PODS: a_pod(f"p{number}", f"j{number}", name, phase="Running"),
            CONFIG_MAPS: {"metadata": metadata, "data": {decode.RECORD_KEY: f'{{"v": {number}}}'}},
        }[resource]
        gone = (resource, number) in existing and chance.random() < 0.4
        world.tell(resource, value, deleted=gone)
        (existing.discard if gone else existing.add)((resource, number))
        if chance.random() < 0.1:
            closed = {*closed, name} if chance.random() < 0.2 else set()
        elif chance.random() < 0.2:
            closed.add(name)
        if chance.random() < 0.5:
            assert world.cluster.open_part("night", closed) == Cluster.open_part(
                world.cluster, "night", closed
            )


def test_absence_means_nothing_before_everything_was_listed() -> None:
    world = World()
    assert not world.cluster.synced
    for reflector in world.cluster.reflectors.values():
        assert not world.cluster.wait_synced(0.0)
        reflector.synced.set()
    assert world.cluster.synced
    assert world.cluster.wait_synced(0.0)
