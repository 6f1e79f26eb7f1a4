"""Jobs joined piece by piece are those joined at once, and what did not change is the same object."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.cluster.kube import decode
from orchestrator.cluster.kube.decode import KeptJob, KeptPod
from orchestrator.cluster.kube.jobindex import JobIndex
from orchestrator.cluster.kube.ownership import joined
from tests.orchestrator.cluster.kube.test_decode import a_job, a_pod, raw


def job(number: int, owner: str = "s1") -> KeptJob:
    return replace(decode.job(raw(a_job(f"night--r{number}", f"j{number}"))), owner=owner)


def pod(number: int, of: int, **status: Any) -> KeptPod:
    return replace(decode.pod(raw(a_pod(f"p{number}", **status))), name=f"pod-{number}", owner=f"j{of}")


@pytest.mark.parametrize("seed", range(5))
def test_piece_by_piece_is_as_at_once(seed: int) -> None:
    chance, index = random.Random(seed), JobIndex()
    jobs: dict[str, KeptJob] = {}
    pods: dict[str, KeptPod] = {}
    for _ in range(300):
        number = chance.randrange(6)
        one = job(number, chance.choice(["s1", "s1", "s0"]))
        other = pod(number * 2 + chance.randrange(2), number, phase=chance.choice(["Running", "Failed"]))
        match chance.randrange(4):
            case 0:
                jobs[one.uid] = one
                index.set_job(one)
            case 1 if one.uid in jobs:
                index.drop_job(jobs.pop(one.uid))
                pods = {name: it for name, it in pods.items() if it.owner != one.uid or it.living}
            case 2:
                pods[other.name] = other
                index.set_pod(other)
            case 3 if other.name in pods:
                index.drop_pod(pods.pop(other.name))
        uid = chance.choice(["s1", "s1", "s1", "s0"])
        expected = {it.uid: it for it in joined(jobs.values(), pods.values(), uid)}
        found = {it.uid: it for it in index.of("night", uid)}
        assert {key: _plain(it) for key, it in found.items()} == {
            key: _plain(it) for key, it in expected.items()
        }


def _plain(one: Any) -> tuple[Any, ...]:
    return one.name, one.deleting, sorted(pod.uid + pod.phase for pod in one.pods)


def test_what_did_not_change_is_not_made_anew() -> None:
    index = JobIndex()
    for number in (1, 2):
        index.set_job(job(number))
    first, second = index.of("night", "s1")
    index.set_pod(pod(1, 2, phase="Running"))
    same, changed = index.of("night", "s1")
    assert same is first
    assert changed is not second
    assert [one.phase for one in changed.pods] == ["Running"]


def test_nothing_is_kept_of_a_sweep_without_jobs_and_pods() -> None:
    index = JobIndex()
    index.set_job(job(1))
    index.drop_job(job(1))
    assert index.of("night", "s1") == []
    assert not index.has("night", "j1")
    assert not index._sweeps
