"""What a controller remembers: clocks that start when something is first seen, questions once asked."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.cluster.base import Event, ObservedJob, ObservedPod
from orchestrator.controller.memory import ASKED_AGAIN_S, ASKED_AT_ONCE, CONFLICT_HOLDS_S, Memory
from orchestrator.controller.stuck import PATIENCE_S
from orchestrator.errors import ClusterError

JOB = ObservedJob("demo--r0", "u", {}, {}, created_at=0.0)
SAID = (Event("FailedMount", 'secret "x" not found', warning=True),)


def waiting(reason: str) -> ObservedJob:
    return replace(JOB, pods=(ObservedPod("p", "Pending", waiting_reason=reason),))


def test_the_clock_of_a_cause_goes_on_while_it_is_the_same_class() -> None:
    memory = Memory("uid")
    assert memory.since([waiting("ErrImagePull")], 100.0, {}) == {JOB.name: 100.0}
    assert memory.since([waiting("ImagePullBackOff")], 130.0, {}) == {JOB.name: 100.0}
    assert memory.since([waiting("Unschedulable")], 140.0, {}) == {JOB.name: 140.0}
    assert memory.since([JOB], 150.0, {}) == {}
    assert memory.since([waiting("ErrImagePull")], 160.0, {}) == {JOB.name: 160.0}


def test_a_wait_without_end_lends_its_age_to_none_that_has_one() -> None:
    memory = Memory("uid")
    sandbox = {JOB.name: (Event("FailedCreatePodSandBox", "no network yet", warning=True),)}
    starting = waiting("ContainerCreating")
    memory.since([starting], 100.0, sandbox)
    assert memory.since([starting], 400.0, {JOB.name: SAID}) == {JOB.name: 400.0}
    assert memory.overdue(400.0 + PATIENCE_S - 1) == frozenset()
    assert memory.overdue(400.0 + PATIENCE_S) == {JOB.name}


def test_a_silent_job_is_asked_about_now_and_then() -> None:
    memory, asked = Memory("uid"), []

    def ask(job: ObservedJob) -> tuple[Event, ...]:
        asked.append(job.name)
        return SAID

    assert memory.said([JOB], 100.0, ask) == {JOB.name: SAID}
    assert memory.said([JOB], 100.0 + ASKED_AGAIN_S - 1, ask) == {JOB.name: SAID}
    assert len(asked) == 1
    memory.said([JOB], 100.0 + ASKED_AGAIN_S, ask)
    assert len(asked) == 2
    assert memory.said([waiting("Unschedulable")], 200.0, ask) == {}
    assert len(asked) == 2


def test_of_many_silent_jobs_a_few_are_asked_about_and_each_in_its_turn() -> None:
    jobs = [replace(JOB, name=f"j{n}", uid=f"u{n}") for n in range(3 * ASKED_AT_ONCE)]
    memory = Memory("uid")
    asked: list[str] = []

    def ask(job: ObservedJob) -> tuple[Event, ...]:
        asked.append(job.uid)
        return ()

    for turn in range(3):
        memory.said(jobs, 100.0 + turn, ask)
        assert len(asked) == (turn + 1) * ASKED_AT_ONCE
    assert len(set(asked)) == len(jobs)


def test_who_may_not_ask_goes_on_without_an_answer() -> None:
    def refuse(job: ObservedJob) -> tuple[Event, ...]:
        raise ClusterError("events: forbidden")

    assert Memory("uid").said([JOB], 100.0, refuse) == {JOB.name: ()}


def test_a_name_that_another_holds_is_looked_at_again_and_never_thought_free_before() -> None:
    memory, looks = Memory("uid"), []

    def taken(answer: bool):  # type: ignore[no-untyped-def]
        def look(job: str) -> bool:
            looks.append(job)
            return answer

        return look

    memory.conflict("j", 0.0)
    assert memory.conflicts(CONFLICT_HOLDS_S - 1, taken(False)) == {"j"}
    assert looks == []
    assert memory.conflicts(CONFLICT_HOLDS_S, taken(True)) == {"j"}
    assert memory.conflicts(CONFLICT_HOLDS_S + 1, taken(False)) == {"j"}
    assert memory.conflicts(2 * CONFLICT_HOLDS_S, taken(False)) == frozenset()
    assert looks == ["j", "j"]
