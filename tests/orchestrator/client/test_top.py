"""`orch top`: who uses what, and what each run that stands still waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.client.session import Stored
from orchestrator.client.top import Top, of_sweep, over, to_json
from orchestrator.client.view import View
from orchestrator.client.waits import wait_of, waits
from orchestrator.client.why import Account
from orchestrator.cluster.base import ObservedPod
from orchestrator.commands.top import draw
from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.observed import Control
from orchestrator.controller.settling import settled
from orchestrator.controller.world import World
from orchestrator.screen import console, what_next
from orchestrator.sweep.naming import ANNOTATION_SUBMITTER
from tests.orchestrator.controller.scene import Scene, a_sweep

NO_EVAL: dict[str, Any] = {"eval": {"enabled": False}}
HOUR = 3600.0


def view(
    scene: Scene, status: dict[str, Any] | None = None, *, led: bool = True, remote: bool = True
) -> View:
    world, _ = settled(World(scene.sweep, Catalogue.of(scene.runs), scene.observed, scene.cluster.now))
    return View(world, scene.plan(), status or {}, led, remote)


def told(kind: str, reason: str, message: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]}


def top_of(scene: Scene, **more: Any) -> Top:
    metadata = {"name": "demo", "annotations": {ANNOTATION_SUBMITTER: "ada"}}
    return of_sweep(Stored({"metadata": metadata}, scene.sweep, scene.runs), view(scene, **more))


def why(scene: Scene, status: dict[str, Any] | None = None, **more: Any) -> dict[str, tuple[str, str, str]]:
    """By run: the reason, and the words that matter."""
    found = waits(view(scene, status, **more))
    return {run: (wait.reason, wait.message, wait.on or "") for wait, runs in found.items() for run in runs}


def started(scene: Scene, *runs: str, ready: bool = False) -> Scene:
    for run in runs:
        scene.cluster.start(scene.job(run), ready=ready)
    return scene


def with_pod(scene: Scene, run: str, **pod: Any) -> Scene:
    scene.cluster.set_state(scene.job(run), pods=(ObservedPod("u", "Pending", **pod),))
    return scene


def fetching() -> Scene:
    scene = Scene(a_sweep(2, **NO_EVAL))
    scene.turn()
    return scene


def three(**scheduling: Any) -> Scene:
    return Scene(a_sweep(3, scheduling=scheduling, **NO_EVAL)).fetched()


def suspended() -> Scene:
    scene = three(parallelism=2)
    scene.control = Control(suspend=True)
    return started(scene, "r0", "r1")


def halted() -> Scene:
    scene = three(parallelism=1, gpuHours=1)
    started(scene, "r0")
    scene.cluster.now += 2 * HOUR
    return scene


def fenced() -> Scene:
    """The Job of r0 is recorded as failed while its pod still ends."""
    scene = three(parallelism=1)
    name = scene.job("r0")
    scene.cluster.fail(name, 75)
    scene.turn()
    scene.cluster.made = {name: scene.cluster.made[name]}
    alive = replace(scene.cluster.made[name].pods[0], phase="Running", finished_at=None)
    scene.cluster.set_state(name, pods=(alive,))
    return scene


def trained(**evaluation: Any) -> Scene:
    scene = Scene(a_sweep(3, eval=evaluation)).fetched()
    started(scene, "r0", "r1", "r2")
    scene.cluster.finish(scene.job("r0"))
    scene.turn()
    for name in scene.live("fetch"):
        scene.cluster.finish(name)
    scene.turn()
    return scene


def evaluating() -> Scene:
    return trained(tasks=["everyday"], perplexity="none", baselines=[])


def before_its_text() -> Scene:
    """Trained, while the text of its evaluation is still on its way."""
    scene = Scene(a_sweep(1))
    scene.turn()
    scene.cluster.finish(scene.live("fetch")[0])
    scene.turn()
    return scene.trained()


def queued() -> Scene:
    scene = Scene(a_sweep(1, scheduling={"queue": "gpu"}, **NO_EVAL)).fetched()
    scene.cluster.set_state(scene.job("r0"), suspended=True)
    return scene


FULL = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
CASES: dict[str, tuple[Callable[[], Scene], str, str, str]] = {
    "a fetch comes first": (fetching, "r1", "fetch", "model and data come; its Job has no pod yet"),
    "another goes first": (lambda: started(three(canary=True), "r0"), "r2", "canary", "run r0 goes first"),
    "the window is full": (
        lambda: started(three(parallelism=1), "r0", ready=True), "r1",
        "parallelism", "1 of at most 1 Jobs",
    ),
    "suspended": (suspended, "r2", "suspended", "its sweep starts no new Job"),
    "no GPU-hours are left": (halted, "r2", "halted", "1 GPU-hours are used"),
    "its former pod lives": (fenced, "r0", "ending", "a pod of its last attempt"),
    "its Job has no pod": (three, "r0", "starting", "its Job has no pod yet"),
    "a queue admits it": (queued, "r0", "queue", "waits for its queue to admit it (gpu)"),
    "no node fits": (
        lambda: with_pod(three(), "r0", waiting_reason="Unschedulable", waiting_message=FULL), "r0",
        "unschedulable", FULL,
    ),
    "its image is not there": (
        lambda: with_pod(three(), "r0", waiting_reason="ImagePullBackOff", waiting_message="no such tag"),
        "r0", "starting", "ImagePullBackOff: no such tag",
    ),
    "baselines come first": (
        lambda: trained(tasks=["everyday"], perplexity="none"), "r0", "baseline", "teacher and ptq",
    ),
    "a text comes first": (before_its_text, "r0", "fetch", "texts and tasks come"),
    "others are measured with it": (
        lambda: trained(tasks=["everyday"], perplexity="none", baselines=[], adaptersPerJob=3), "r0",
        "batch", "up to 3 adapters",
    ),
    "its evaluation waits for a pod": (evaluating, "r0", "starting", "its Job has no pod yet"),
    "nothing: it is next": (lambda: Scene(a_sweep(1, **NO_EVAL)), "r0", "turn", "takes it next"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_run_waits_for(case: str) -> None:
    make, run, reason, words = CASES[case]
    found = why(make())[run]
    assert found[0] == reason
    assert words in found[1]


def test_the_one_that_is_waited_for_is_named() -> None:
    scene = fetching()
    assert {why(scene)[run][2] for run in ("r0", "r1")} == {scene.live("fetch")[0]}
    assert why(started(three(canary=True), "r0"))["r1"][2] == "r0"


def test_runs_that_go_on_wait_for_nothing() -> None:
    assert why(started(three(parallelism=3), "r0", "r1", "r2")) == {}


def test_a_refused_job_is_waited_for_where_one_would_be_made() -> None:
    scene = three(parallelism=3)
    scene.cluster.made.pop(scene.job("r2"))
    started(scene, "r0", "r1")
    status = told("JobsRefused", "QuotaExceeded", "exceeded quota: q")
    assert why(scene, status) == {"r2": ("quota", "exceeded quota: q", "")}


def test_a_halt_that_is_over_is_not_told() -> None:
    scene = three(parallelism=1)
    started(scene, "r0")
    assert why(scene, told("Halted", "SameFailure", "3 runs fail alike"))["r1"][0] == "parallelism"
    assert why(scene, told("Halted", "CannotRender", "no image"))["r1"][:2] == ("halted", "no image")


@pytest.mark.parametrize(
    ("remote", "remedy"), [(True, "`orch doctor` tells what is missing"), (False, "submit its file again")]
)
def test_without_a_controller_nothing_starts(remote: bool, remedy: str) -> None:
    [wait] = waits(view(Scene(a_sweep(2, **NO_EVAL)), led=False, remote=remote))
    assert (wait.reason, wait.remedy) == ("controller", remedy)


def test_on_one_machine_a_job_without_a_process_waits_for_its_gpus() -> None:
    assert why(three(), remote=False)["r0"][:2] == ("unschedulable", "no GPU of this machine is free for it")


def test_what_ends_by_itself_says_when() -> None:
    scene = with_pod(three(), "r0", waiting_reason="InvalidImageName", waiting_message="Trainer:1")
    [wait] = [one for one, runs in waits(view(scene)).items() if "r0" in runs]
    assert wait.remedy == "it is ended after 60 s of this"


DONE = {"finished": True, "observedGeneration": 2, "counts": {"total": 3, "done": 2, "failed": 1}}


@pytest.mark.parametrize(
    ("status", "is_over"),
    [
        (DONE, True),
        (DONE | {"finished": False}, False),
        (DONE | {"observedGeneration": 1}, False),
        (DONE | {"counts": {"pending": 1, "done": 2}}, False),
        (DONE | {"counts": {"trained": 1, "done": 2}}, False),
        (DONE | {"counts": {}}, False),
        (None, False),
    ],
    ids=["over", "goes on", "changed since", "halted", "not measured", "refused", "not seen yet"],
)
def test_of_a_sweep_that_is_over_no_job_is_looked_at(status: dict[str, Any] | None, is_over: bool) -> None:
    assert over({"metadata": {"name": "night", "generation": 2}, "status": status}) is is_over


def test_uses_are_pods_with_their_gpus_and_hours() -> None:
    scene = Scene(a_sweep(2, resources={"gpus": 4, "memory": "8Gi"}, **NO_EVAL)).fetched()
    started(scene, "r0", ready=True)
    scene.turn()
    scene.cluster.now += HOUR / 2
    with_pod(scene, "r1", node="node-b")  # its image is still pulled: the GPUs are taken
    found = to_json(top_of(scene))
    assert found["gpus"] == 8
    assert [
        (
            one["submitted_by"],
            one["runs"],
            one["stage"],
            one["gpus"],
            one["node"],
            one["since"],
            one["gpu_hours"],
        )
        for one in found["using"]
    ] == [
        ("ada", ["r0"], "train", 4, "node-a", 1000.0, 2.0),
        ("ada", ["r1"], "train", 4, "node-b", None, 0.0),
    ]
    assert found["sweeps"] == [{"sweep": "demo", "submitted_by": "ada", "gpus": 8, "gpu_hours": 2.0}]


def test_a_pod_on_no_node_and_one_that_ended_use_nothing() -> None:
    scene = three()
    with_pod(scene, "r0")
    scene.cluster.finish(scene.job("r1"))
    assert [one.runs for one in top_of(scene).uses] == []


def test_a_lost_pod_still_has_its_gpus() -> None:
    """Its Job is recorded; nobody else gets them before the pod is gone."""
    [use] = top_of(fenced()).uses
    assert (use.runs, use.gpus) == (("r0",), 1)


def test_the_value_is_stable() -> None:
    """Programs read it: a field that goes or changes its meaning is a new `v`."""
    found = to_json(top_of(started(three(), "r0")))
    assert list(found) == ["v", "at", "controller", "gpus", "using", "sweeps", "waiting"]
    assert found["v"] == 1
    assert list(found["using"][0]) == [
        "sweep", "submitted_by", "runs", "stage", "attempt", "job", "gpus", "node", "since", "gpu_hours",
    ]  # fmt: skip
    assert list(found["waiting"][0]) == [
        "sweep", "submitted_by", "reason", "message", "remedy", "on", "runs",
    ]  # fmt: skip


def test_the_screen_says_who_what_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    scene = started(three(parallelism=1), "r0", ready=True)
    scene.cluster.now += HOUR
    draw(console(), top_of(scene), "here")
    said = capsys.readouterr().out
    assert "1 GPUs in use here: ada 1\n" in said
    assert "ada   demo           r0             train 1      1   node-a   1 h 00 min         1.0" in said
    assert (
        "waits: demo: 2 runs (r1, r2): parallelism: 1 of at most 1 Jobs of its sweep are there; "
        "raise scheduling.parallelism and submit again"
    ) in said


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("the window is full", "it waits, parallelism: 1 of at most 1 Jobs of its sweep are there; raise "),
        ("suspended", "it waits, suspended: its sweep starts no new Job; `orch resume demo` goes on"),
        ("no node fits", f"it waits, unschedulable: {FULL}"),
    ],
)
def test_why_says_what_a_run_waits_for(case: str, says: str) -> None:
    make, run, *_ = CASES[case]
    seen = view(make())
    state = next(one for one in seen.plan.states if one.run.name == run)
    assert what_next(Account("demo", state, (), wait=wait_of(seen, state))).startswith(says)
