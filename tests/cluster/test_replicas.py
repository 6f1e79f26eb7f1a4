"""Two controllers, one killed and one robbed of its Lease: the sweep ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.lab import SWEEP, Lab, installed
from tests.cluster.rig.network import inside_node
from tests.cluster.rig.shell import run
from tests.hub import Hub

CTR = ("ctr", "--namespace=k8s.io")


@pytest.fixture
def lab(cluster: Cluster, images: dict[str, str], hub: Hub) -> Iterator[Lab]:
    with installed(cluster, images, more_profile=f'HF_ENDPOINT = "{hub.url}"', replicas=2) as one:
        yield one


def holder(lab: Lab) -> str | None:
    """The pod that leads."""
    name = lab.get("lease", "orch-controller")["spec"].get("holderIdentity")
    return str(name) if name else None


def kill(lab: Lab, name: str) -> None:
    """SIGKILL to the controller's process, as the kernel would: nothing of it gets a last word."""
    [state] = lab.get("pod", name)["status"]["containerStatuses"]
    container = state["containerID"].removeprefix("containerd://")
    node = lab.cluster.rig.node(lab.get("pod", name)["spec"]["nodeName"])
    for line in run([*inside_node(lab.cluster.rig, node), *CTR, "tasks", "list"]).splitlines():
        if line.startswith(container):
            os.kill(int(line.split()[1]), signal.SIGKILL)
            return
    raise AssertionError(f"no process of {name}")


def renewed(lab: Lab) -> str:
    return str(lab.get("lease", "orch-controller")["spec"].get("renewTime"))


def restarts(lab: Lab, name: str) -> int:
    return int(lab.get("pod", name)["status"]["containerStatuses"][0]["restartCount"])


def made(lab: Lab, stage: str) -> list[str]:
    return [name for name in lab.jobs("two") if f"-{stage}-" in name]


def test_killed_and_robbed_of_the_lease_the_controllers_bring_the_sweep_to_its_end(lab: Lab) -> None:
    lab.apply(SWEEP.format(name="two", lmbda="[0, 1]", more=""))
    lab.until(lambda: made(lab, "train") or None, "a training")
    first = lab.until(lambda: holder(lab), "a leader")
    before = restarts(lab, first)
    kill(lab, first)
    lab.until(lambda: (restarts(lab, first) > before) or None, "the killed one to start again")
    # The other one, or the same pod again, whose Lease is still its own: whoever renews it now.
    last = renewed(lab)
    lab.until(lambda: (renewed(lab) != last) or None, "a leader")
    second = lab.until(lambda: holder(lab), "a leader")
    robbed = {
        "spec": {
            "holderIdentity": "a-stranger",
            "leaseDurationSeconds": 15,
            "renewTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
    }
    before = restarts(lab, second)
    lab.kubectl("patch", "lease", "orch-controller", "--type=merge", "-p", json.dumps(robbed))
    # Whoever has lost it ends its process, for its threads may be in the midst of anything.
    lab.until(lambda: (restarts(lab, second) > before) or None, "the robbed leader to end")
    status = lab.finished("two")
    assert (status["counts"]["done"], status["counts"]["failed"]) == (2, 0), lab.evidence()
    records = lab.records("two")
    assert all(name.endswith("-1") for name in records), "no attempt was made twice"
    assert sorted(records) == lab.jobs("two")
