"""`orch gc`: what is kept, what was given up, and the Job it becomes in a cluster."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from orchestrator.client.gc import kept, over
from orchestrator.client.session import Session
from orchestrator.commands.gc import collect
from orchestrator.controller.catalogue import Catalogue
from orchestrator.controller.observed import Control
from orchestrator.controller.settling import settled
from orchestrator.controller.world import World
from orchestrator.errors import RenderError
from orchestrator.profile import Profile
from orchestrator.render.tidy import render_tidy
from tests.orchestrator.controller.scene import Scene, a_sweep
from trainer import flags
from trainer.config import GcConfig
from trainer.settings import to_flags

NO_EVAL: dict[str, Any] = {"eval": {"enabled": False}}
IMAGE = "registry.example/trainer@sha256:" + "ab" * 32


def world(scene: Scene) -> World:
    return settled(World(scene.sweep, Catalogue.of(scene.runs), scene.observed, scene.cluster.now))[0]


def names(ids: set[str]) -> set[str]:
    return {one.rpartition("-")[0] for one in ids}


def training() -> Scene:
    return Scene(a_sweep(3, **NO_EVAL)).fetched()


def ended(exit_code: int) -> Scene:
    scene = training()
    scene.cluster.fail(scene.job("r0"), exit_code)
    scene.turn()
    return scene


def fenced() -> Scene:
    """r0 failed for good, but its pod has not ended."""
    scene = ended(64)
    name = next(name for name, job in scene.cluster.made.items() if job.finished and "-train-" in name)
    scene.cluster.start(name)
    return scene


def cancelled(scene: Scene, *runs: str) -> Scene:
    scene.control = Control(cancel=list(runs))
    scene.turn()
    return scene


def dropped() -> Scene:
    """r0 failed once and is no longer in the file."""
    scene = ended(75)
    scene.cluster.delete_job(scene.job("r0"))
    scene.change(a_sweep(1, groups=[{"name": "g", "runs": [{"name": "other"}]}], **NO_EVAL))
    return scene


def dropped_done() -> Scene:
    scene = training().trained("r0")
    scene.change(a_sweep(1, groups=[{"name": "g", "runs": [{"name": "other"}]}], **NO_EVAL))
    return scene


def measured() -> Scene:
    """r0 is trained and being evaluated; r1 and r2 train."""
    scene = Scene(a_sweep(3, eval={"tasks": ["everyday"], "perplexity": "none", "baselines": []})).fetched()
    return scene.trained("r0")


@pytest.mark.parametrize(
    ("make", "keeps", "gives_up"),
    [
        (lambda: Scene(a_sweep(2, **NO_EVAL)), set(), set()),
        (training, {"r0", "r1", "r2"}, set()),
        (lambda: training().trained("r0"), {"r1", "r2"}, set()),
        (measured, {"r0", "r1", "r2"}, set()),
        (lambda: ended(64), {"r1", "r2"}, {"r0"}),
        (lambda: ended(75), {"r0", "r1", "r2"}, set()),  # tried again
        (fenced, {"r0", "r1", "r2"}, set()),
        (lambda: cancelled(training(), "r0"), {"r1", "r2"}, {"r0"}),
        (lambda: cancelled(training().trained("r0"), "r0"), {"r1", "r2"}, set()),
        (dropped, {"r1", "r2"}, {"r0"}),
        (dropped_done, {"r1", "r2"}, set()),
    ],
    ids=[
        "new", "all train", "one is done", "one is measured", "one failed", "one is tried again",
        "failed, but its pod lives", "cancelled", "cancelled after its end", "no longer in the file",
        "done and no longer in the file",
    ],
)  # fmt: skip
def test_what_is_kept_and_what_was_given_up(
    make: Callable[[], Scene], keeps: set[str], gives_up: set[str]
) -> None:
    scene = make()
    assert names(kept(world(scene))) == keeps
    assert names(over(world(scene))) == gives_up


def test_the_job_of_a_cluster_does_what_was_asked_and_goes_by_itself() -> None:
    config = GcConfig(dump="/data/dump", keep=["night/a-1"], delete=True, older_than="3d")
    profile = Profile(image=IMAGE, dumpSubPath="dump", keepJobs="2h")
    job = render_tidy(["gc", *to_flags(config)], profile, "ml")
    [container] = job["spec"]["template"]["spec"]["containers"]
    command, *rest = container["args"]
    assert (command, flags.parse(rest, GcConfig)) == ("gc", [config])
    assert container["volumeMounts"][0] == {"name": "data", "mountPath": "/data/dump", "subPath": "dump"}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert job["spec"]["ttlSecondsAfterFinished"] == 7200
    assert job["metadata"] == {
        "generateName": "orch-gc-",
        "labels": {"app.kubernetes.io/managed-by": "orch", "orch.dev/stage": "gc"},
        "namespace": "ml",
    }


def test_the_job_belongs_to_no_sweep_so_that_no_controller_takes_it_up() -> None:
    job = render_tidy(["gc"], Profile(image=IMAGE), None)
    for meta in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert set(meta["labels"]) == {"app.kubernetes.io/managed-by", "orch.dev/stage"}
    assert "ownerReferences" not in job["metadata"]


def test_more_than_a_job_can_be_told_is_refused() -> None:
    config = GcConfig(unfinished=[f"night/{'r' * 50}-{number:08x}" for number in range(3000)])
    with pytest.raises(RenderError, match="job orch-gc: container trainer: args: must be at most 128000"):
        render_tidy(["gc", *to_flags(config)], Profile(image=IMAGE), "ml")


@pytest.mark.parametrize(
    ("delete", "words"), [(False, "removes nothing (--delete does)"), (True, "this Job removes it")]
)
def test_in_a_cluster_the_job_is_printed_and_how_to_run_it(
    delete: bool, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    session = cast(Session, SimpleNamespace(profile=Profile(image=IMAGE), namespace="ml"))
    collect(session, GcConfig(dump="/data/dump", delete=delete), "text")
    said = capsys.readouterr()
    assert yaml.safe_load(said.out)["kind"] == "Job"
    assert words in said.err
    assert "kubectl create -f -" in said.err
    assert "kubectl logs -n ml -l orch.dev/stage=gc" in said.err
