"""The real trainer interrupted on a real cluster: a run comes to what it does undisturbed, to the byte."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.kube.client import Api
from tests.cluster.cluster import Cluster, until
from tests.cluster.failures.lab import FailureLab, failure_lab
from tests.cluster.failures.scenes import Play, Scene
from tests.cluster.kueue.objects import local_queue
from tests.cluster.kueue.reconciler import Kueue
from tests.cluster.lab import ROOT
from tests.hub import Hub
from trainer.layout import ATTEMPT_ENV, RunFolder

RUN = "same"
STEPS = 60
PROFILE = """\
image = "{image}"
serviceAccount = "default"
nodeSelector = {{"kubernetes.io/hostname" = "{node}"}}
shmSize = "64Mi"
tmpSize = "2Gi"
[env]
OMP_NUM_THREADS = "1"
HF_ENDPOINT = "{hub}"
[[tolerations]]
key = "node.kubernetes.io/unreachable"
operator = "Exists"
effect = "NoExecute"
tolerationSeconds = 1
"""
SPEC: dict[str, Any] = {
    "params": {
        "model_name": "lab/tiny",
        "dataset_name": "lab/rows",
        "mixed_precision": "fp32",
        "lmbda": 0.5,
        "group_size": 32,
        "lora_r": 4,
        "max_length": 64,
        "max_new_tokens": 8,
        "max_steps": STEPS,
        "allow_cut_rollouts": True,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
    },
    "resources": {"cpu": 0.25, "memory": "2Gi", "maxDuration": "30m"},
}
PLAYS = {
    "evicted": Play({RUN: Scene("the eviction API")}, SPEC),
    "queued": Play({RUN: Scene("its queue", attempts=1)}, {**SPEC, "scheduling": {"queue": "gpu"}}),
    "lost": Play({RUN: Scene("its node")}, SPEC),
}
"""One config, so that one undisturbed run tells what all of them must come to."""
TIMED = ("seconds", "tokens_per_s", "time")


@dataclass(frozen=True)
class Paused:
    """A pod in the middle of a training, stopped by SIGSTOP until it is told to go on."""

    job: str
    pod: str
    uid: str
    folder: RunFolder

    def processes(self) -> list[int]:
        """Pids, as this machine knows them, of all that runs in the pod."""
        mark = f"{ATTEMPT_ENV}={self.uid}\0".encode()
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in environ.read_bytes():
                    found.append(int(environ.parent.name))
        return found

    def signal(self, how: signal.Signals) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, how)


@pytest.fixture(scope="module")
def lab(
    cluster: Cluster,
    images: dict[str, str],
    hub: Hub,
    impatient: None,
    sweeps_defined: None,
    kueue_defined: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FailureLab]:
    profile = PROFILE.format(image=images["trainer"], node=cluster.nodes[0], hub=hub.url)
    with failure_lab(cluster, profile, tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def kueue(cluster: Cluster, lab: FailureLab) -> Iterator[Kueue]:
    lab.apply(json.dumps(local_queue("gpu")))
    with Kueue(Api.connect(kubeconfig=cluster.kubeconfig, namespace=lab.namespace)) as one:
        yield one


@pytest.fixture(scope="module")
def paused(lab: FailureLab, kueue: Kueue) -> Iterator[dict[str, Paused]]:
    """Every run, stopped as soon as it has a checkpoint."""
    lab.begin(PLAYS)
    found: dict[str, Paused] = {}

    def all_stopped() -> bool | None:
        for sweep in PLAYS.keys() - found.keys():
            folder = RunFolder(lab.dump / sweep / lab.run(sweep, RUN).id)
            pods = lab.witness.pods(job := lab.job(sweep, RUN))
            if pods and folder.checkpoints():
                meta = pods[-1]["metadata"]
                found[sweep] = Paused(job, meta["name"], meta["uid"], folder)
                found[sweep].signal(signal.SIGSTOP)
        return True if len(found) == len(PLAYS) else None

    try:
        lab.until(all_stopped, "every run to have a checkpoint", 300)
        yield found
    finally:
        for one in found.values():
            one.signal(signal.SIGCONT)


@dataclass(frozen=True)
class Undisturbed:
    """The same run on this machine, under way while the others wait."""

    process: subprocess.Popen[bytes]
    folder: RunFolder

    def result(self) -> RunFolder:
        """What it came to."""
        self.process.wait()
        assert self.process.returncode == 0, (self.folder.root.parents[2] / "said").read_text()
        return self.folder


@pytest.fixture(scope="module")
def undisturbed(
    paused: dict[str, Paused], lab: FailureLab, hub: Hub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Undisturbed]:
    folder, name = tmp_path_factory.mktemp("undisturbed"), "undisturbed"
    (folder / "sweep.yaml").write_text(json.dumps(Play({RUN: Scene("")}, SPEC).manifest(name)))
    (folder / "orch.toml").write_text(f'[env]\nHF_ENDPOINT = "{hub.url}"\nOMP_NUM_THREADS = "1"\n')
    where = ["--dump", str(folder / "dump"), "--profile", str(folder / "orch.toml")]
    command = [*where, "submit", str(folder / "sweep.yaml"), "--local", "--wait"]
    with (
        (folder / "said").open("w") as said,
        subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        yield Undisturbed(process, RunFolder(folder / "dump" / name / lab.run("evicted", RUN).id))
        process.terminate()


def adapter(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.adapter.iterdir()}


def metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock wrote."""
    found = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [{key: one for key, one in line.items() if key not in TIMED} for line in found]


def same(folder: RunFolder, undisturbed: Undisturbed) -> None:
    """The run came to what it comes to undisturbed."""
    result = undisturbed.result()
    assert adapter(folder) == adapter(result)
    assert metrics(folder) == metrics(result)
    assert len(metrics(folder)) == STEPS


def resumed_at(lab: FailureLab, pod: str) -> int:
    """The step at which a pod went on."""
    said = re.search(rf"resuming at step (\d+) of {STEPS}", lab.kubectl("logs", pod))
    assert said, lab.kubectl("logs", pod)
    return int(said[1])


def last_pod(lab: FailureLab, job: str) -> str:
    return str(lab.witness.pods(job)[-1]["metadata"]["name"])


def told_to_go(lab: FailureLab, one: Paused) -> None:
    """It goes on, and finds the signal to end."""
    lab.until(lambda: lab.witness.leaving(one.job) or None, f"{one.pod} to be told to go", 60)
    one.signal(signal.SIGCONT)


def test_an_evicted_run_goes_on_from_its_checkpoint(
    lab: FailureLab, paused: dict[str, Paused], undisturbed: Undisturbed
) -> None:
    one = paused["evicted"]
    lab.evict(one.pod)
    told_to_go(lab, one)
    assert [record.get("class") for record in lab.concluded("evicted", RUN)] == ["preempted", None]
    lab.apart("evicted", RUN)
    assert 2 <= resumed_at(lab, last_pod(lab, lab.job("evicted", RUN, 2))) < STEPS
    same(one.folder, undisturbed)


def test_a_run_whose_queue_takes_its_quota_goes_on_from_its_checkpoint(
    lab: FailureLab, paused: dict[str, Paused], kueue: Kueue, undisturbed: Undisturbed
) -> None:
    one = paused["queued"]
    kueue.preempt(one.job, gpus=0)
    told_to_go(lab, one)
    records = lab.until(lambda: done(lab, "queued"), "the run to be done", 240)
    # The same attempt, unless its old pod ended (75) after it was admitted again: then its Job has failed.
    assert [record["class"] for record in records[:-1]] in ([], ["preempted"])
    lab.apart("queued", RUN)
    again = last_pod(lab, lab.job("queued", RUN, len(records)))
    assert again != one.pod
    assert 2 <= resumed_at(lab, again) < STEPS
    same(one.folder, undisturbed)


def test_a_pod_that_wakes_up_on_a_lost_node_writes_nothing_into_the_run_of_its_successor(
    lab: FailureLab, cluster: Cluster, paused: dict[str, Paused], undisturbed: Undisturbed
) -> None:
    one, kubelet = paused["lost"], f"{cluster.nodes[0]}.kubelet"
    cluster.stop(kubelet, signal.SIGKILL)
    try:
        lab.until(lambda: lab.attempts("lost", RUN) or None, "the node to be given up", 240)
        lab.made(lab.job("lost", RUN, 2))
        assert one.processes(), "it is there, and owns the run's folder"
    finally:
        cluster.start(kubelet)  # the images are on this node alone
    until(lambda: taken(one) or None, "the next attempt to take the folder", 180)
    # On a slow machine its minute of grace is over before the next attempt has loaded its libraries.
    woken = bool(one.processes())
    if woken:
        one.signal(signal.SIGCONT)
    ended = lab.until(lambda: container(lab, one), "the old pod to end", 90)
    assert ended["exitCode"] == (75 if woken else 137), ended
    assert not woken or "taken by another attempt" in ended["message"]
    records = lab.until(lambda: done(lab, "lost"), "the run to be done", 240)
    between = [record["class"] for record in records[1:-1]]
    assert (records[0]["class"], records[-1]["state"]) == ("nodeLost", "done")
    # The scheduler may place the next pod before the taint of the lost node is gone, which then evicts it.
    assert between in ([], ["preempted"], ["nodeLost"])
    # That taint may take the pod, with its log, as soon as it has ended.
    assert json.loads(one.folder.run.read_text())["resumed_from"] >= 2
    same(one.folder, undisturbed)


def done(lab: FailureLab, sweep: str) -> list[dict[str, Any]] | None:
    """The records of a run once its last attempt is done."""
    found = lab.attempts(sweep, RUN)
    return found if found and found[-1]["state"] == "done" else None


def taken(one: Paused) -> bool:
    """Whether the run's folder is another attempt's."""
    owner = one.folder.owner
    return owner.is_dir() and not any(path.name.startswith(one.uid) for path in owner.iterdir())


def container(lab: FailureLab, one: Paused) -> dict[str, Any] | None:
    """How the container of a pod ended."""
    [pod] = [pod for pod in lab.witness.pods(one.job) if pod["metadata"]["uid"] == one.uid]
    states = [status["state"] for status in pod["status"].get("containerStatuses", [])]
    found: dict[str, Any] | None = states[0].get("terminated") if states else None
    return found
