"""The local cluster against real processes: outcomes, deaths, order, restarts."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from orchestrator.cluster import supervisor
from orchestrator.cluster.base import Created, ObservedJob
from orchestrator.cluster.jobfolder import JobFolder
from orchestrator.cluster.local import LocalCluster
from orchestrator.cluster.slots import UNSCHEDULABLE, Share, Slots
from orchestrator.errors import UserError
from tests.orchestrator.cluster.conftest import SWEEP, manifest

LIMIT_S = 120.0

UNTIL_TERM = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("pid", os.getpid(), flush=True)
ready()
while True: signal.pause()
"""
"""Runs until SIGTERM, then exits 75 as a trainer does."""


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def child_of(machine: Any, name: str) -> int:
    return int(next(line for line in machine.log(name) if line.startswith("pid ")).split()[1])


def test_local_job_completes_with_its_message_and_log(machine):
    assert machine.create("a", "print('hello'); record('{\"v\": 1}')") is Created.CREATED
    job = machine.finished("a")
    (pod,) = job.pods
    assert set(job.conditions) == {"Complete"}
    assert (pod.phase, pod.exit_code, pod.exit_reason) == ("Succeeded", 0, "Completed")
    assert pod.message == '{"v": 1}'
    assert pod.started_at <= pod.finished_at
    assert job.annotations == {"note": "a"}
    assert machine.log("a") == ["hello"]


@pytest.mark.parametrize(
    ("script", "code", "reason", "said"),
    [
        pytest.param("sys.exit(64)", 64, "PodFailurePolicy", "exit code 64 matching FailJob rule at index 1"),
        pytest.param("sys.exit(75)", 75, "PodFailurePolicy", "exit code 75 matching FailJob rule at index 2"),
        pytest.param("sys.exit(3)", 3, "BackoffLimitExceeded", "backoff limit"),
        pytest.param("os.kill(os.getpid(), 9)", 137, "BackoffLimitExceeded", "backoff limit"),
        pytest.param("os.kill(os.getpid(), 11)", 139, "BackoffLimitExceeded", "backoff limit"),
    ],
    ids=["a code of the policy", "the next rule", "another code", "killed", "crashed"],
)
def test_local_job_fails_with_its_exit_code(machine, script, code, reason, said):
    machine.create("a", f"print('last words', flush=True); {script}")
    job = machine.finished("a")
    assert set(job.conditions) == {"Failed"}
    assert job.conditions["Failed"].reason == reason
    assert said in job.conditions["Failed"].message
    assert (job.pods[0].phase, job.pods[0].exit_code, job.pods[0].exit_reason) == ("Failed", code, "Error")
    assert job.pods[0].message == "last words\n", "the log's end stands for a missing message"


@pytest.mark.parametrize("program", ["/no/such/program", "no-such-program"])
def test_local_job_with_a_missing_program_is_a_start_error(machine, program):
    machine.create("a", command=[program])
    (pod,) = machine.finished("a").pods
    assert (pod.exit_code, pod.exit_reason) == (128, "StartError")
    assert program in pod.message
    assert "No such file" in pod.message


def test_local_message_keeps_its_last_4096_bytes(machine):
    machine.create("a", "record('x' * 5000 + 'end')")
    message = machine.finished("a").pods[0].message
    assert len(message) == 4096
    assert message.endswith("xend")


def test_local_killed_supervisor_takes_its_job_along_and_leaves_it_failed_without_a_code(machine):
    machine.create("a", UNTIL_TERM)
    machine.running("a")
    child = child_of(machine, "a")
    os.kill(machine.supervisor("a"), signal.SIGKILL)
    job = machine.finished("a")
    assert set(job.conditions) == {"Failed"}
    assert all(pod.exit_code is None for pod in job.pods) or not job.pods
    assert gone(child)


def test_local_killed_supervisor_leaves_no_grandchild_either(machine):
    machine.create(
        "a",
        "import subprocess\n"
        "rank = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'],\n"
        "                        start_new_session=True)\n"
        "print('pid', rank.pid, flush=True)\nready()\nsignal.pause()",
    )
    machine.running("a")
    rank = child_of(machine, "a")
    os.kill(machine.supervisor("a"), signal.SIGKILL)
    machine.finished("a")
    assert gone(rank)


def test_local_killed_trainer_is_seen_as_137(machine):
    machine.create("a", UNTIL_TERM)
    machine.running("a")
    os.kill(child_of(machine, "a"), signal.SIGKILL)
    assert machine.finished("a").pods[0].exit_code == 137


def test_local_processes_left_by_a_finished_trainer_end_with_it(machine):
    machine.create(
        "a",
        "import subprocess\n"
        "left = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print('pid', left.pid, flush=True)",
    )
    machine.finished("a")
    assert gone(child_of(machine, "a"))


def test_local_delete_forwards_sigterm_and_shows_the_final_state_until_it_is_recorded(machine):
    machine.create("a", UNTIL_TERM)
    machine.running("a")
    machine.cluster.delete_job("a")
    job = machine.until("a", lambda job: job.finished)
    assert job.deleting
    assert job.pods[0].exit_code == 75
    assert machine.job("a") == machine.job("a") == job
    machine.cluster.put_record(SWEEP, "a", {})
    machine.job("a")
    assert machine.job("a") is None
    assert machine.log("a")[0].startswith("pid "), "the log outlives the Job"
    machine.cluster.delete_job("a")


def test_local_job_that_ignores_sigterm_is_killed_after_its_grace(machine):
    machine.create(
        "a",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready()\nwhile True: signal.pause()",
        pod={"terminationGracePeriodSeconds": 1},
    )
    machine.running("a")
    machine.cluster.delete_job("a")
    assert machine.until("a", lambda job: job.finished).pods[0].exit_code == 137


def test_local_deadline_ends_a_job_gently(machine):
    machine.create("a", UNTIL_TERM, pod={"activeDeadlineSeconds": 1})
    job = machine.finished("a")
    assert job.pods[0].pod_reason == "DeadlineExceeded"
    assert set(job.conditions) == {"Failed"}


def test_local_jobs_run_one_at_a_time_in_order_without_gpus(machine, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    write = "open(os.environ['ORDER'], 'a').write({!r})"
    env = [{"name": "ORDER", "value": "/data/dump/order"}]
    machine.create("c", f"open({str(gate)!r}).read(); " + write.format("c"), gpus=8, env=env)
    for name in ("a", "b"):
        machine.create(name, write.format(name), gpus=8, env=env)
        assert machine.job(name).pods == ()
    gate.write_text("go")
    ended = {name: machine.finished(name) for name in ("a", "b", "c")}
    assert (machine.dump / "order").read_text() == "cab"
    assert ended["c"].pods[0].finished_at <= ended["a"].pods[0].started_at
    assert ended["a"].pods[0].finished_at <= ended["b"].pods[0].started_at
    assert {job.gpus for job in ended.values()} == {0}, "no GPU was used"


def test_local_jobs_that_fit_run_side_by_side_each_with_its_threads(machine_with, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine = machine_with(Slots(shared=Share(2, 2**30)))
    asks = {"limits": {}, "requests": {"cpu": "1", "memory": "1Mi"}}
    gates = {name: tmp_path / name for name in "ab"}
    for name, gate in gates.items():
        os.mkfifo(gate)
        threads = "print('threads', os.environ['OMP_NUM_THREADS'])"
        machine.create(name, f"{threads}; open({str(gate)!r}).read()", resources=asks)
    machine.create("c", "", resources=asks)
    with gates["a"].open("w"), gates["b"].open("w"):  # each opens once its Job reads
        assert machine.job("c").pods == ()
    ended = {name: machine.finished(name) for name in "abc"}
    assert min(ended[name].pods[0].finished_at for name in "ab") <= ended["c"].pods[0].started_at
    assert "threads 1" in machine.log("a")


def test_local_jobs_get_gpus_of_their_own(machine_with: Callable[[Slots], Any]):
    machine = machine_with(Slots(("0", "GPU-5")))
    show = "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)" + UNTIL_TERM
    for name in ("a", "b"):
        machine.create(name, show, gpus=1)
    for name in ("a", "b"):
        assert machine.running(name).gpus == 1
    assert {machine.log("a")[0], machine.log("b")[0]} == {"0", "GPU-5"}
    machine.create("c", "print(os.environ['CUDA_VISIBLE_DEVICES'])", gpus=2)
    machine.create("d", "print(repr(os.environ['CUDA_VISIBLE_DEVICES']))", gpus=0)
    assert machine.finished("d").gpus == 0
    assert machine.log("d") == ["''"]
    assert machine.job("c").pods == ()
    for name in ("a", "b"):
        machine.cluster.delete_job(name)
    machine.finished("c")
    assert machine.log("c") == ["0,GPU-5"]


def test_local_job_that_wants_more_gpus_than_there_are_waits_and_says_so(machine_with):
    machine = machine_with(Slots(("0",)))
    machine.create("a", gpus=2)
    machine.create("b", gpus=1)
    machine.finished("b")
    (pod,) = machine.job("a").pods
    assert pod.phase == "Pending"
    assert pod.conditions["PodScheduled"].message == UNSCHEDULABLE == pod.waiting_message


def test_local_cluster_started_anew_adopts_what_runs(machine):
    machine.create("a", UNTIL_TERM)
    before = machine.running("a")
    anew = machine.restarted()
    assert machine.job("a", anew) == before
    anew.delete_job("a")
    assert machine.until("a", lambda job: job.finished, anew).pods[0].exit_code == 75


def test_local_readers_start_and_remove_nothing(machine):
    machine.create("a", UNTIL_TERM)
    machine.create("b")
    machine.running("a")
    reader = machine.restarted()
    machine.cluster.delete_job("a")
    end = time.monotonic() + LIMIT_S
    while not machine.job("a", reader).finished:
        assert time.monotonic() < end
    assert machine.job("b", reader).pods == ()
    assert machine.job("a", reader) is not None


def test_local_create_twice_is_harmless(machine):
    machine.create("a", UNTIL_TERM)
    uid = machine.running("a").uid
    assert machine.create("a", "other") is Created.EXISTS
    assert machine.job("a").uid == uid


def test_local_job_of_another_sweep_holds_its_name(machine):
    machine.create("a", UNTIL_TERM)
    foreign = {"metadata": {"name": "a", "labels": {"orch.dev/sweep": "day"}}}
    assert machine.cluster.create_job(foreign) is Created.CONFLICT


def test_local_arguments_and_paths_arrive_as_in_a_cluster(machine):
    words = ["$$HOME $$(A) $(A) $(NOPE)", "/data/dump", "/data/dump/x", "--d=/data/dump/y", "/data/dumpling"]
    machine.create(
        "a",
        command=[
            "python",
            "-c",
            "import os,sys\nfor w in [*sys.argv[1:], os.environ['B'], os.environ['U']]: print(w)",
        ],
        args=words,
        env=[
            {"name": "A", "value": "/data/dump/a"},
            {"name": "B", "value": "$(A):$$(A)"},
            {"name": "U", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        ],
    )
    job = machine.finished("a")
    dump = machine.dump
    assert machine.log("a") == [
        "$HOME $(A) /data/dump/a $(NOPE)",
        f"{dump}",
        f"{dump}/x",
        f"--d={dump}/y",
        "/data/dumpling",
        f"{dump}/a:$(A)",
        job.uid,
    ]


def test_local_code_in_the_users_folder_is_not_taken_for_ours(machine, tmp_path, monkeypatch):
    (tmp_path / "trainer.py").write_text("raise SystemExit('the wrong trainer')")
    monkeypatch.chdir(tmp_path)
    machine.create("a", command=["python", "-c", "import os, trainer.layout; print(os.getcwd())"])
    machine.finished("a")
    assert machine.log("a") == [str(tmp_path)]


def test_local_logs_follow_until_the_job_ends(machine, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    machine.create("a", f"print('one', flush=True); open({str(gate)!r}).read(); print('two\\nthree', end='')")
    lines = machine.cluster.logs("a", follow=True)
    assert next(lines) == "one"
    gate.write_text("go")
    assert list(lines) == ["two", "three"]
    machine.finished("a")
    assert list(machine.cluster.logs("a", tail=2)) == ["two", "three"]
    assert list(machine.restarted().logs("a", follow=True, tail=1)) == ["three"]


def test_local_logs_of_an_unknown_job_are_a_users_fault(machine):
    with pytest.raises(UserError, match="job nobody: has no log"):
        machine.cluster.logs("nobody")


def test_local_only_one_controller_leads(machine):
    said = f"another controller runs here, got pid {os.getpid()}"
    with machine.cluster.lead(), pytest.raises(UserError, match=said), machine.restarted().lead():
        pass
    with machine.restarted().lead():
        pass


def test_local_job_is_started_once_by_two_starters(machine):
    folder = JobFolder(machine.dump / ".orch/jobs/a")
    folder.create(manifest("a", "print('started'); sys.exit(75)"))
    assert supervisor.start(folder.root, ()) == ""
    assert supervisor.start(folder.root, ()) == ""
    assert machine.finished("a").pods[0].exit_code == 75
    assert machine.log("a") == ["started"]


def test_local_clusters_side_by_side_start_each_job_once(machine):
    names = [f"j{index}" for index in range(6)]
    env = [{"name": "ORDER", "value": "/data/dump/order"}]
    for name in names:
        JobFolder(machine.dump / ".orch/jobs" / name).create(
            manifest(name, f"open(os.environ['ORDER'], 'a').write('{name} ')", env=env)
        )
    others = [machine.restarted() for _ in range(3)]

    def drive(cluster: LocalCluster) -> list[ObservedJob]:
        return [machine.until(name, lambda job: job.finished, cluster) for name in names]

    with ThreadPoolExecutor(3) as pool:
        seen = list(pool.map(drive, others))
    assert (machine.dump / "order").read_text().split() == names
    assert seen[0] == seen[1] == seen[2]


def test_local_full_disk_is_a_users_fault(machine, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be used, got No space left on device; free space"):
        machine.create("a")
    monkeypatch.undo()
    assert machine.job("a") is None


def test_local_dump_that_is_a_file_is_a_users_fault(machine):
    machine.dump.write_text("")
    with pytest.raises(UserError, match="cannot be used, got"):
        machine.create("a")
