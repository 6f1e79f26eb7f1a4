"""The loop: it does what is planned, tells it, goes on after faults, and stops when it should."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.cluster.base import Created, ObservedPod
from orchestrator.controller.acts import CREATES_A_TURN, GOING_AGAIN_S
from orchestrator.controller.loop import REFUSED_AGAIN_S, Controller
from orchestrator.controller.memory import CONFLICT_HOLDS_S
from orchestrator.controller.outcome import AttemptRecord, FailureClass
from orchestrator.controller.status import Condition, SweepStatus, unrenderable
from orchestrator.controller.stuck import PATIENCE_S
from orchestrator.errors import ClusterError, JobRefusedError, NotFoundError
from orchestrator.profile import Profile
from orchestrator.sweep.naming import ANNOTATION_RUNS, LABEL_STAGE
from orchestrator.sweep.spec import Sweep
from tests.orchestrator.controller.scene import a_sweep
from tests.orchestrator.fakes import FakeCluster


def submitted(sweep: Sweep) -> tuple[FakeCluster, Controller]:
    cluster = FakeCluster()
    cluster.put_sweep(sweep.model_dump(exclude_none=True))
    controller = Controller(cluster, Profile(allowImageTags=True), cluster.clock, check_schema=False)
    return cluster, controller


def finish_all(cluster: FakeCluster) -> None:
    """The world: whatever was made ends well."""
    for job in list(cluster.made.values()):
        if not job.finished:
            cluster.finish(job.name)


def stages(cluster: FakeCluster) -> list[str]:
    return [job.labels[LABEL_STAGE] for job in cluster.made.values()]


def test_run_takes_a_sweep_to_its_end() -> None:
    cluster, controller = submitted(a_sweep(3, eval={"adaptersPerJob": 4}))
    cluster.on_wait = finish_all
    told: list[dict[str, int]] = []
    status = controller.run(until_done=True, on_status=lambda name, one: told.append(one.counts))["demo"]
    assert status.counts["done"] == 3
    assert stages(cluster) == ["fetch", "fetch", "train", "train", "train", "eval"]
    assert len(cluster.stored_records) == 6
    assert told[0]["pending"] == told[-1]["done"] == 3
    assert cluster.stored["demo"]["status"] == json.loads(json.dumps(status.to_json()))


def test_run_of_a_finished_sweep_writes_nothing() -> None:
    cluster, controller = submitted(a_sweep(2))
    cluster.on_wait = finish_all
    controller.run(until_done=True)
    cluster.made.clear()  # the Jobs are gone; the records tell
    cluster.calls.clear()
    again = Controller(cluster, Profile(allowImageTags=True), cluster.clock, check_schema=False)
    again.run(until_done=True)
    assert cluster.calls == []


def test_a_done_attempt_whose_job_and_record_are_deleted_is_made_again() -> None:
    cluster, controller = submitted(a_sweep(2))
    cluster.on_wait = finish_all
    controller.run(until_done=True)
    name = next(name for name, job in cluster.made.items() if job.labels[LABEL_STAGE] == "train")
    del cluster.made[name], cluster.stored_records[name]
    cluster.calls.clear()
    controller.run(until_done=True)
    assert [call for call in cluster.calls if call[0] == "create_job"] == [("create_job", name)]
    assert name in cluster.stored_records


def test_step_records_before_it_creates_and_tells_last() -> None:
    cluster, controller = submitted(a_sweep(1))
    for _ in range(2):
        controller.step("demo")
        finish_all(cluster)
    cluster.calls.clear()
    controller.step("demo")
    [kinds, names] = zip(*cluster.calls, strict=True)
    assert kinds == ("put_record", "create_job", "put_status")
    record = AttemptRecord.model_validate(cluster.stored_records[names[0]])
    assert (record.state, record.stage, record.record.status) == ("done", "train", "done")


def test_an_eval_job_carries_the_runs_it_measures() -> None:
    cluster, controller = submitted(a_sweep(2, eval={"adaptersPerJob": 4}))
    cluster.on_wait = finish_all
    controller.run(until_done=True)
    trained = [job for job in cluster.made.values() if job.labels[LABEL_STAGE] == "train"]
    [measured] = [job for job in cluster.made.values() if job.labels[LABEL_STAGE] == "eval"]
    assert len(measured.annotations[ANNOTATION_RUNS].split(",")) == len(trained)


def test_a_stored_sweep_that_no_longer_expands_is_refused_with_every_fault() -> None:
    cluster, controller = submitted(a_sweep(1))
    spec: dict[str, Any] = cluster.stored["demo"]["spec"]
    spec["params"] = {"lmbdaa": 1, "beta": 7}
    status = controller.step("demo").status
    [accepted] = status.conditions
    assert (accepted.type, accepted.status) == ("Accepted", "False")
    assert "lmbdaa" in accepted.message
    assert "beta" in accepted.message
    assert cluster.made == {}


def test_a_job_the_profile_cannot_render_halts_the_sweep_and_says_why() -> None:
    _, controller = submitted(a_sweep(1, scheduling={"priority": "urgent"}))
    status = controller.run(until_done=True)["demo"]
    halted = next(one for one in status.conditions if one.type == "Halted")
    assert halted.reason == "CannotRender"
    assert "urgent" in halted.message


def test_a_name_that_another_holds_fails_the_run_once() -> None:
    cluster, controller = submitted(a_sweep(1))
    cluster.add = lambda *_: Created.CONFLICT  # type: ignore[method-assign]
    status = controller.run(until_done=True)["demo"]
    assert status.counts["failed"] == 1


class Flaky(FakeCluster):
    """Fails the first `faults` times its Jobs are listed."""

    faults = 0

    def jobs(self, sweep: str) -> Any:
        if self.faults:
            self.faults -= 1
            raise ClusterError("cluster: does not answer")
        return super().jobs(sweep)


def flaky(faults: int) -> tuple[Flaky, Controller]:
    cluster = Flaky()
    cluster.put_sweep(a_sweep(1).model_dump(exclude_none=True))
    cluster.faults = faults
    cluster.on_wait = finish_all
    return cluster, Controller(cluster, Profile(allowImageTags=True), cluster.clock, check_schema=False)


def test_run_goes_on_after_faults_and_waits_longer_each_time(caplog: pytest.LogCaptureFixture) -> None:
    cluster, controller = flaky(3)
    waits: list[float] = []
    wait = cluster.wait
    cluster.wait = lambda timeout_s: (waits.append(timeout_s), wait(timeout_s))[1]  # type: ignore[method-assign]
    assert controller.run(until_done=True)["demo"].counts["done"] == 1
    assert waits[:4] == [10.0, 20.0, 30.0, 5.0]
    assert "does not answer" in caplog.text


def test_run_gives_up_when_told_to() -> None:
    _, controller = flaky(100)
    with pytest.raises(ClusterError):
        controller.run(until_done=True, give_up_after=3)


def test_run_of_an_unknown_sweep_says_so() -> None:
    _, controller = submitted(a_sweep(1))
    with pytest.raises(NotFoundError, match="sweep other: is not submitted"):
        controller.run(["other"], until_done=True)


def test_run_stops_when_the_flag_is_set() -> None:
    cluster, _ = submitted(a_sweep(1))
    stop = threading.Event()
    controller = Controller(
        cluster, Profile(allowImageTags=True), cluster.clock, stop=stop, check_schema=False
    )
    told = controller.run(on_status=lambda *_: stop.set())
    assert not told["demo"].finished


def test_drain_ends_running_jobs_so_that_the_next_turn_goes_on_at_once() -> None:
    cluster, controller = submitted(a_sweep(3, eval={"enabled": False}))
    controller.step("demo")
    finish_all(cluster)
    controller.step("demo")
    running, waiting, ending = [
        job.name for job in cluster.made.values() if job.labels[LABEL_STAGE] == "train"
    ]
    cluster.start(running)
    cluster.start(ending)
    remove = cluster.delete_job

    def delete(name: str) -> None:
        """One finishes its last step when it is told to end, the others just go."""
        remove(name) if name != ending else cluster.calls.append(("delete_job", name))

    cluster.delete_job = delete  # type: ignore[method-assign]
    cluster.on_wait = lambda _: cluster.finish(ending) if not cluster.made[ending].finished else None
    controller.drain("demo")
    assert cluster.stored_records[running]["class"] == "preempted"
    assert cluster.stored_records[ending]["state"] == "done"
    assert waiting not in cluster.stored_records
    controller.step("demo")
    made = sorted(name for kind, name in cluster.calls[-3:] if kind == "create_job")
    assert made == sorted([waiting, running.removesuffix("1") + "2"])


def test_a_finished_job_is_let_go_only_after_its_outcome_is_stored() -> None:
    cluster, controller = submitted(a_sweep(1))
    controller.step("demo")
    for name in list(cluster.made):
        cluster.set_state(name, retired=False)
    controller.step("demo")
    assert "retire_job" not in dict(cluster.calls)  # they run still
    finish_all(cluster)
    cluster.calls.clear()
    controller.step("demo")
    kinds = [kind for kind, _ in cluster.calls]
    assert kinds[:4] == ["put_record", "put_record", "retire_job", "retire_job"]
    cluster.calls.clear()
    controller.step("demo")
    assert "retire_job" not in dict(cluster.calls)


def test_a_job_that_a_quota_refuses_is_tried_again_and_the_sweep_says_so() -> None:
    cluster, controller = submitted(a_sweep(1))
    cluster.refusal = JobRefusedError("jobs.batch is forbidden: exceeded quota: q", "QuotaExceeded")
    turn = controller.step("demo")
    held = next(one for one in turn.status.conditions if one.type == "JobsRefused")
    assert (held.reason, turn.status.finished) == ("QuotaExceeded", False)
    assert "exceeded quota" in held.message
    assert turn.again_s == REFUSED_AGAIN_S
    assert [(event.reason, event.warning) for _, event in cluster.events] == [
        ("Accepted", False),
        ("QuotaExceeded", True),
    ]
    cluster.refusal = None
    assert all(one.type != "JobsRefused" for one in controller.step("demo").status.conditions)
    assert stages(cluster) == ["fetch", "fetch"]


def test_a_name_that_a_job_of_a_deleted_sweep_holds_is_waited_for() -> None:
    cluster, controller = submitted(a_sweep(1))
    add = cluster.add
    cluster.add = lambda *_: Created.GOING  # type: ignore[method-assign]
    turn = controller.step("demo")
    assert (turn.again_s, turn.status.counts["failed"], turn.status.finished) == (GOING_AGAIN_S, 0, False)
    cluster.add = add  # type: ignore[method-assign]
    assert controller.step("demo").again_s is None
    assert stages(cluster) == ["fetch", "fetch"]


def test_a_name_that_is_given_up_is_taken_later() -> None:
    cluster, controller = submitted(a_sweep(1))
    add = cluster.add
    cluster.add = lambda *_: Created.CONFLICT  # type: ignore[method-assign]
    assert controller.step("demo").again_s == 0.0
    assert controller.step("demo").status.counts["failed"] == 1
    cluster.add = add  # type: ignore[method-assign]
    cluster.now += CONFLICT_HOLDS_S
    assert controller.step("demo").status.counts["failed"] == 0
    assert stages(cluster) == ["fetch", "fetch"]


def test_many_jobs_are_made_in_several_turns_so_that_outcomes_are_stored_between() -> None:
    cluster, controller = submitted(a_sweep(CREATES_A_TURN + 10, scheduling={"parallelism": 1000}))
    controller.step("demo")
    finish_all(cluster)
    assert controller.step("demo").again_s == 0.0
    assert stages(cluster).count("train") == CREATES_A_TURN
    assert controller.step("demo").again_s is None
    assert stages(cluster).count("train") == CREATES_A_TURN + 10


def test_a_status_is_told_at_most_every_so_often_but_its_end_at_once() -> None:
    cluster, controller = submitted(a_sweep(1))
    controller.step("demo")
    finish_all(cluster)
    controller.teller.every_s = 2.0
    controller.step("demo")  # told just now
    [train] = [name for name, job in cluster.made.items() if job.labels[LABEL_STAGE] == "train"]
    cluster.start(train)
    cluster.now += 0.5
    turn = controller.step("demo")
    assert (turn.again_s, turn.status.counts["running"]) == (1.5, 1)
    assert cluster.stored["demo"]["status"]["counts"]["running"] == 0
    cluster.now += 1.5
    turn = controller.step("demo")
    assert cluster.stored["demo"]["status"] == turn.status.to_json()
    cluster.on_wait = finish_all
    end = controller.run(until_done=True)["demo"]
    assert cluster.stored["demo"]["status"] == end.to_json()


def test_gpu_hours_alone_are_told_seldom() -> None:
    cluster, controller = submitted(a_sweep(1, resources={"gpus": 1}))
    controller.step("demo")
    finish_all(cluster)
    controller.teller.every_s, controller.teller.hours_every_s = 2.0, 600.0
    controller.step("demo")
    [train] = [name for name, job in cluster.made.items() if job.labels[LABEL_STAGE] == "train"]
    cluster.start(train)
    cluster.now += 2.0
    told = controller.step("demo").status
    cluster.now += 60.0
    turn = controller.step("demo")
    assert turn.status.gpuHours > told.gpuHours
    assert (turn.again_s, cluster.stored["demo"]["status"]) == (540.0, told.to_json())
    cluster.now += 540.0
    turn = controller.step("demo")
    assert cluster.stored["demo"]["status"] == turn.status.to_json()


def test_a_condition_keeps_the_time_since_which_it_holds() -> None:
    cluster, controller = submitted(a_sweep(1))
    first = controller.step("demo").status
    cluster.now += 3600
    finish_all(cluster)
    second = controller.step("demo").status
    assert [one.lastTransitionTime for one in second.conditions] == [
        one.lastTransitionTime for one in first.conditions
    ]
    cluster.on_wait = finish_all
    last = controller.run(until_done=True)["demo"]
    times = {one.type: one.lastTransitionTime for one in last.conditions}
    assert times["Accepted"] == first.conditions[0].lastTransitionTime
    assert times["Complete"] > first.conditions[1].lastTransitionTime


def test_events_are_told_once_however_many_turns_pass() -> None:
    cluster, controller = submitted(a_sweep(1))
    cluster.on_wait = finish_all
    controller.run(until_done=True)
    controller.step("demo")
    assert [event.reason for _, event in cluster.events] == ["Accepted", "AllDone"]


def test_a_sweep_that_is_submitted_anew_again_and_again_may_make_its_jobs_each_time() -> None:
    cluster, controller = submitted(a_sweep(1))
    for number in range(8):
        cluster.made.clear()
        cluster.stored_records.clear()
        cluster.stored["demo"].setdefault("metadata", {})["uid"] = f"uid-{number}"
        assert controller.step("demo").status.counts["failed"] == 0
        assert stages(cluster) == ["fetch", "fetch"]


def test_a_sweep_that_is_halted_and_cannot_be_rendered_has_one_condition_of_a_type() -> None:
    halted = Condition(type="Halted", status="True", reason="CanaryFailed")
    told = unrenderable(SweepStatus(conditions=[halted]), "no such priority")
    assert [(one.type, one.reason) for one in told.conditions] == [("Halted", "CannotRender")]


def test_of_a_sweep_that_is_being_deleted_nothing_is_made_anew() -> None:
    cluster, controller = submitted(a_sweep(1))
    cluster.stored["demo"]["metadata"]["deletionTimestamp"] = "2026-11-24T08:00:00Z"
    assert controller.step("demo").status.finished
    assert cluster.made == {}
    assert cluster.events == []


def test_an_event_that_is_not_taken_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, controller = submitted(a_sweep(1))

    def refuse(sweep: str, event: object) -> None:
        raise ClusterError("events: cannot create, got 403")

    monkeypatch.setattr(cluster, "put_event", refuse)
    controller.step("demo")
    assert stages(cluster) == ["fetch", "fetch"]
    assert cluster.stored["demo"]["status"]["counts"]["total"] == 1


def test_many_names_held_by_a_deleted_sweeps_jobs_are_waited_for_without_asking_on_and_on() -> None:
    cluster, controller = submitted(a_sweep(CREATES_A_TURN + 10, scheduling={"parallelism": 1000}))
    controller.step("demo")
    finish_all(cluster)
    cluster.add = lambda *_: Created.GOING  # type: ignore[method-assign]
    assert controller.step("demo").again_s == GOING_AGAIN_S


def test_a_name_that_another_holds_is_told_as_a_failure() -> None:
    cluster, controller = submitted(a_sweep(1))
    cluster.add = lambda *_: Created.CONFLICT  # type: ignore[method-assign]
    controller.step("demo")
    [failure] = controller.step("demo").status.failures
    assert (failure.failure, "is not this sweep's" in failure.evidence) == (FailureClass.CONFIG, True)
    assert "Config" in [event.reason for _, event in cluster.events]


def test_a_job_that_was_cancelled_again_and_again_has_not_vanished() -> None:
    cluster, controller = submitted(a_sweep(1))
    for _ in range(8):
        cluster.put_control("demo", lambda now: now | {"cancel": []})
        assert controller.step("demo").status.counts["failed"] == 0
        assert cluster.made, "its Job is made each time"
        cluster.put_control("demo", lambda now: now | {"cancel": ["*"]})
        controller.step("demo")
        assert cluster.made == {}


def stuck(cluster: FakeCluster) -> str:
    """The fetch's pod finds no image."""
    [name] = cluster.made
    pod = ObservedPod("p", "Pending", waiting_reason="InvalidImageName")
    cluster.set_state(name, pods=(pod,))
    return name


def test_what_is_stuck_is_looked_at_once_more_before_it_is_ended() -> None:
    cluster, controller = submitted(a_sweep(1, eval={"enabled": False}))
    controller.step("demo")
    name = stuck(cluster)
    assert controller.step("demo").again_s == PATIENCE_S
    cluster.now += PATIENCE_S
    runs = replace(cluster.made[name], pods=(ObservedPod("p", "Running", started_at=cluster.now),))
    cluster.refreshed = lambda job: runs  # type: ignore[method-assign]
    controller.step("demo")
    assert ("delete_job", name) not in cluster.calls
    assert cluster.stored_records == {}
    del cluster.refreshed  # type: ignore[attr-defined]
    controller.step("demo")
    assert cluster.stored_records[name]["class"] == "imagePull"
    assert ("delete_job", name) in cluster.calls


def test_a_record_that_is_refused_is_told_and_nothing_is_ended_before_it_is_stored() -> None:
    cluster, controller = submitted(a_sweep(1, eval={"enabled": False}))
    controller.step("demo")
    name = stuck(cluster)
    controller.step("demo")
    cluster.now += PATIENCE_S

    def refuse(*_: object) -> bool:
        raise JobRefusedError("configmaps: exceeded quota", "QuotaExceeded")

    cluster.put_record = refuse  # type: ignore[method-assign,assignment]
    turn = controller.step("demo")
    assert turn.again_s == REFUSED_AGAIN_S
    assert [one.reason for one in turn.status.conditions if one.type == "JobsRefused"] == ["QuotaExceeded"]
    assert name in cluster.made


def test_one_record_that_is_refused_holds_up_no_other_jobs_end_and_nothing_new_begins() -> None:
    cluster, controller = submitted(a_sweep(3, eval={"enabled": False}, scheduling={"parallelism": 2}))
    controller.step("demo")
    finish_all(cluster)
    controller.step("demo")
    [first, second] = [name for name, job in cluster.made.items() if job.labels[LABEL_STAGE] == "train"]
    cluster.stored["demo"]["spec"]["control"] = {"cancel": ["r0", "r1"]}
    before = len([call for call, _ in cluster.calls if call == "create_job"])
    store = cluster.put_record

    def refuse(sweep: str, job: str, record: dict[str, Any]) -> bool:
        if job == second:
            raise JobRefusedError("configmaps: exceeded quota", "QuotaExceeded")
        return store(sweep, job, record)

    cluster.put_record = refuse  # type: ignore[method-assign,assignment]
    turn = controller.step("demo")
    assert [one.reason for one in turn.status.conditions if one.type == "JobsRefused"] == ["QuotaExceeded"]
    assert cluster.stored_records[first]["class"] == "cancelled"
    controller.step("demo")
    deleted = [name for call, name in cluster.calls if call == "delete_job"]
    assert set(deleted) == {first}, "the other one's end is not stored"
    assert len([call for call, _ in cluster.calls if call == "create_job"]) == before
    cluster.put_record = store  # type: ignore[method-assign]
    for _ in range(3):
        controller.step("demo")
    assert ("delete_job", second) in cluster.calls


def test_a_sweep_whose_last_record_is_refused_has_not_ended() -> None:
    cluster, controller = submitted(a_sweep(1, eval={"enabled": False}))
    controller.step("demo")
    finish_all(cluster)
    controller.step("demo")
    finish_all(cluster)
    store = cluster.put_record

    def refuse(*_: object) -> bool:
        raise JobRefusedError("configmaps: exceeded quota", "QuotaExceeded")

    cluster.put_record = refuse  # type: ignore[method-assign,assignment]
    turn = controller.step("demo")
    assert not turn.status.finished
    assert [one.status for one in turn.status.conditions if one.type == "Complete"] == ["False"]
    assert [event.reason for _, event in cluster.events if event.moment] == []
    cluster.put_record = store  # type: ignore[method-assign]
    assert controller.step("demo").status.finished
    assert [event.moment for _, event in cluster.events if event.moment] == ["ended"]


def test_a_deletion_that_is_refused_is_told_and_holds_up_nothing_else() -> None:
    cluster, controller = submitted(a_sweep(3, eval={"enabled": False}, scheduling={"parallelism": 2}))
    controller.step("demo")
    finish_all(cluster)
    controller.step("demo")
    [first, second] = [name for name, job in cluster.made.items() if job.labels[LABEL_STAGE] == "train"]
    cluster.stored["demo"]["spec"]["control"] = {"cancel": ["r0"]}
    cluster.finish(second)

    def refuse(*_: object) -> None:
        raise JobRefusedError("jobs: denied the request", "DeletionRefused")

    cluster.delete_job = refuse  # type: ignore[method-assign]
    turn = controller.step("demo")
    assert [one.reason for one in turn.status.conditions if one.type == "JobsRefused"] == ["DeletionRefused"]
    assert cluster.stored_records[first]["class"] == "cancelled"
    assert stages(cluster).count("train") == 3


def test_a_schedulers_changing_words_are_told_as_seldom_as_gpu_hours() -> None:
    cluster, controller = submitted(a_sweep(1, eval={"enabled": False}))
    controller.step("demo")
    [name] = cluster.made
    controller.teller.hours_every_s = 600.0
    for turn in range(4):
        message = f"0/{turn + 9} nodes are available"
        pod = ObservedPod("p", "Pending", waiting_reason="Unschedulable", waiting_message=message)
        cluster.set_state(name, pods=(pod,))
        controller.step("demo")
        cluster.now += 30.0
    told = [call for call in cluster.calls if call[0] == "put_status"]
    assert len(told) == 3, "before the Job, with it, and with the condition"
