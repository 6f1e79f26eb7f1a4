"""How each failure is provoked: sweeps, and what the stand-in trainer does in which attempt of which run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.rig.settings import TOOLS_IMAGE

ALWAYS = "any"
WAITS = "ready; forever"
CHECKPOINTS = "trap 'sleep 4; stopped' TERM; ready; forever"
"""A pod that ends before the Job controller has let go of it would be counted as failed."""
SEGFAULT = "sh -c 'kill -SEGV $$'; exit $?"
SWEEP_NAME = "a" * 13 + "-" + "z" * 14
"""28 characters."""
RUN_NAMES = ("Lr_" + "x" * 50 + "1", "Lr_" + "x" * 50 + "2")
"""54 characters that differ in the last alone, and no Job name can hold them."""


@dataclass(frozen=True)
class Scene:
    """A run and how it is brought to fail; `behaviour` is sh for the stand-in trainer, by attempt or its pod.

    After `attempts` nothing more happens; `done` says whether the last of them is done.
    """

    provoked: str
    behaviour: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 2
    done: bool = True


@dataclass(frozen=True)
class Play:
    """A sweep of runs, one scene each; `spec` is what it says beyond the runs."""

    scenes: Mapping[str, Scene]
    spec: Mapping[str, Any] = field(default_factory=dict)

    def manifest(self, name: str) -> dict[str, Any]:
        """The Sweep object: small pods, and nothing is measured."""
        runs = [
            {"name": run, "params": {"learning_rate": (number + 1) * 1e-5}}
            for number, run in enumerate(self.scenes)
        ]
        resources = {"gpus": 0, "cpu": 0.01, "memory": "32Mi", "maxDuration": "10m"}
        spec = {
            "params": {"max_steps": 4, "per_device_train_batch_size": 4},
            "groups": [{"name": "runs", "runs": runs}],
            "eval": {"enabled": False},
            **self.spec,
            "resources": {**resources, **self.spec.get("resources", {})},
        }
        return {"apiVersion": "orch.dev/v1alpha1", "kind": "Sweep", "metadata": {"name": name}, "spec": spec}


def _exits(code: int, text: str) -> str:
    return f"fail {code} '{text}'"


def _claims(run_id: str, **more: str) -> str:
    """A done record that the stand-in would not write; `'$run'` in it is the run's own id."""
    record = {"v": 1, "stage": "train", "status": "done", "exit_code": 0, "run_id": run_id, **more}
    return f"says '{json.dumps(record)}'; exit 0"


def _bytes(count: int, of: str) -> str:
    return f"$(head -c {count} /dev/zero | tr '\\0' '{of}')"


ENDS = {
    "usage": Scene(
        "exit 64: a setting is wrong",
        {ALWAYS: _exits(64, "max_length: must be above prompt_length, got 64; raise it")},
        attempts=1,
        done=False,
    ),
    "data": Scene(
        "exit 65: the data is wrong",
        {ALWAYS: _exits(65, "rows.jsonl: 31 of 40 rows have no assistant message; at most 5 % may")},
        attempts=1,
        done=False,
    ),
    "internal": Scene("exit 70, once", {"1": _exits(70, "KeyError: model.embed_tokens")}),
    "broken": Scene("exit 70, every time", {ALWAYS: _exits(70, "KeyError: model.lm_head")}, done=False),
    "stalled": Scene("exit 77: the trainer's watchdog", {"1": _exits(77, "no progress for 600 s")}),
    "diverged": Scene("exit 78", {ALWAYS: _exits(78, "step 3: the loss is nan")}, attempts=1, done=False),
    "cuda": Scene("exit 79", {"1": _exits(79, "CUDA out of memory. Tried to allocate 2.00 GiB.")}),
    "again": Scene("exit 75 without a signal: a hub does not answer", {"1": _exits(75, "hub: 503")}),
    "full": Scene(
        "exit 70, for the volume is full",
        {"1": _exits(70, "OSError: [Errno 28] No space left on device: checkpoint-2")},
    ),
    "segfault": Scene("a process of it dies by SIGSEGV (exit 139)", {"1": SEGFAULT}),
    "killed": Scene("something kills it (exit 137), and memory is not short", {"1": "exit 137"}),
    "raised": Scene(
        "a foreign launcher makes exit 1 of everything",
        {"1": "echo 'RuntimeError: NCCL error' >&2; exit 1"},
    ),
    "silent": Scene("exit 0 and no record", {"1": "exit 0"}),
    "huge": Scene(
        "exit 0 and a done record of 6 kB: Kubernetes keeps the last 4,096 bytes",
        {"1": f'record done 0 "{_bytes(6000, "x")}"; exit 0'},
    ),
    "binary": Scene(
        "exit 0 and 3 kB of random bytes as message",
        {"1": 'head -c 3000 /dev/urandom >"$ORCH_TERMINATION_LOG"; exit 0'},
    ),
    "nested": Scene("exit 0 and 4,000 brackets as message", {"1": f'says "{_bytes(4000, "[")}"; exit 0'}),
    "stranger": Scene("exit 0 and the done record of another run", {"1": _claims("other-0123abcd")}),
    "forged": Scene(
        "exit 0 and a done record of another config",
        {"1": _claims("'$run'", config_digest="0" * 64)},
    ),
}
"""Each ends by itself in its own way."""

GPU_FAULTS = {
    "xid": Scene(
        "exit 70 with the driver's Xid in its error, twice on one node",
        {str(attempt): _exits(70, "CUDA error: Xid 79, GPU has fallen off the bus") for attempt in (1, 2)},
        attempts=3,
    )
}
MEMORY = {
    "grows": Scene("54 MiB are used with limits of 32, 48 and 64 MiB", {ALWAYS: "takes 54M || exit 137"}, 3),
    "toobig": Scene(
        "96 MiB are used, and the profile's `maxMemory` is 64 MiB",
        {ALWAYS: "takes 96M || exit 137"},
        3,
        False,
    ),
    "child": Scene(
        "a child is killed for memory; the trainer goes on to its done record", {ALWAYS: "takes 54M"}, 1
    ),
}
DISK = {
    "disk": Scene(
        "24 MiB are written to /tmp, whose limit is 16 MiB",
        {"1": "trap '' TERM; dd if=/dev/zero of=/tmp/big bs=1M count=24 2>/dev/null; forever"},
    )
}
SLOW = {
    "long": Scene("it runs longer than `maxDuration`", {ALWAYS: "ready; forever"}, 1, False),
}
ACTS = {
    "evicted": Scene("the eviction API, as a drain of its node uses it", {"1": WAITS}),
    "podgone": Scene("`kubectl delete pod`", {"1": WAITS}),
    "jobgone": Scene("`kubectl delete job`", {"1.1": WAITS}, 1),
    "vanishing": Scene("`kubectl delete job`, and again, with `retry.lost: 1`", {ALWAYS: WAITS}, 1, False),
    "cancelled": Scene("`orch cancel SWEEP RUN`", {ALWAYS: WAITS}, 1, False),
}
OUTRANKED = {"outranked": Scene("a pod of a higher PriorityClass takes its node's GPUs", {"1": WAITS})}
LOST = {"lost": Scene("the kubelet of its node is killed; it trains on", {"1": WAITS})}
ALIKE = {
    f"alike{number}": Scene("exit 64, as in other runs", {ALWAYS: _exits(64, "no such option")}, 1, False)
    for number in range(5)
}
NAMES = {name: Scene("names of the greatest length", attempts=1) for name in RUN_NAMES}

PLAYS = {
    "ends": Play(ENDS),
    "xid": Play(GPU_FAULTS, {"resources": {"gpus": 1, "gpuType": ["first", "second"]}}),
    "memory": Play(MEMORY, {"retry": {"oomHost": 3}}),
    "disk": Play(DISK),
    "slow": Play(SLOW, {"resources": {"maxDuration": "30s"}}),  # it starts beside all the others
    "acts": Play(ACTS, {"retry": {"lost": 1}}),
    "outranked": Play(
        OUTRANKED,
        {"scheduling": {"priority": "low"}, "resources": {"gpus": 1, "gpuType": ["first", "second"]}},
    ),
    "alike": Play(ALIKE, {"scheduling": {"parallelism": 1}}),
    "lost": Play(LOST, {"resources": {"gpus": 1, "gpuType": ["second", "first"]}}),
    SWEEP_NAME: Play(NAMES),
}
"""All at once, in one namespace, under one controller."""


@dataclass(frozen=True)
class Broken:
    """A profile, or a sweep's wish, with which no fetch can start."""

    provoked: str
    profile: Mapping[str, str | bool] = field(default_factory=dict)
    tables: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)

    def play(self, run: str) -> Play:
        """A sweep of one such run."""
        return Play({run: Scene(self.provoked, attempts=1, done=False)}, self.spec)


CONFIG_MAP = '[[volumes]]\nname = "certificates"\nmountPath = "/etc/certificates"\nconfigMap = "absent"\n'
"""A volume that every Job then has, of a ConfigMap named absent."""
BROKEN = {
    "noimage": Broken(
        "an image whose registry cannot be reached, for 15 minutes",
        {"image": "orch.test/absent:1", "allowImageTags": True},
    ),
    "badname": Broken(
        "an image whose name is none", {"image": "orch.test/Trainer:1", "allowImageTags": True}
    ),
    "nopython": Broken(
        "an image without the trainer's command", {"image": TOOLS_IMAGE, "allowImageTags": True}
    ),
    "nosecret": Broken("`hubTokenSecret` names a Secret that is absent", {"hubTokenSecret": "absent"}),
    "noconfigmap": Broken("a volume of a ConfigMap that is absent", tables=CONFIG_MAP),
    "noclaim": Broken("`volumeClaim` names a claim that is absent", {"volumeClaim": "absent"}),
    "noaccount": Broken("`serviceAccount` is absent", {"serviceAccount": "absent"}),
    "nopriority": Broken(
        "a PriorityClass that is absent",
        tables='[priorityClasses]\nlow = "absent"\n',
        spec={"scheduling": {"priority": "low"}},
    ),
    "toomuch": Broken(
        "a LimitRange allows less memory than is asked for", spec={"resources": {"memory": "48Mi"}}
    ),
}
