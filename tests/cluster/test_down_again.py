"""A `down` that was interrupted is ended by the next, at whatever step; what is not a cluster's folder stays.

No cluster is started: a folder as `up` makes it, with a program that runs, and a SIGKILL at each removal.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rig import cgroups, lifecycle, processes
from tests.cluster.rig.settings import Options, Rig, RigError, beside


class Killed(BaseException):
    """As SIGKILL: nothing catches it."""


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(cgroups, "kill", lambda path: None)
    monkeypatch.setattr(cgroups, "remove", lambda path: None)
    return Rig(f"fake-{os.getpid()}", tmp_path / "home")


def fill(rig: Rig) -> None:
    """What a cluster of one node leaves, with records of programs that ended."""
    rig.create(Options(nodes=1))
    for name in ("network", "etcd", "orch-node-1.kubelet"):
        gone = {"name": name, "pid": 2**22 + 1, "started": 1, "argv": ["true"]}
        (rig.home / "processes" / f"{name}.json").write_text(json.dumps(gone))
        (rig.home / "logs" / f"{name}.log").write_text("")
    (rig.home / "kubeconfig").write_text("")
    (rig.home / "netns").symlink_to("/proc/1/ns/net")


def killed_at(number: int, removes: Callable[..., None], count: list[int]) -> Callable[..., None]:
    def remove(*args: Any, **options: Any) -> None:
        count[0] += 1
        if count[0] == number:
            raise Killed
        removes(*args, **options)

    return remove


STEPS = range(1, 25)


@pytest.mark.parametrize("number", STEPS)
def test_a_down_killed_at_any_removal_is_ended_by_the_next(
    rig: Rig, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(rig)
    count = [0]
    with monkeypatch.context() as patched:
        for module, name in ((os, "unlink"), (os, "rmdir"), (Path, "unlink"), (Path, "rmdir")):
            patched.setattr(module, name, killed_at(number, getattr(module, name), count))
        try:
            lifecycle.down(rig)
        except Killed:
            assert rig.home.exists()
        else:
            assert count[0] < number
    lifecycle.down(rig)
    assert not rig.home.exists()


def test_the_steps_are_all_there_are(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(rig)
    count = [0]
    for module, name in ((os, "unlink"), (os, "rmdir"), (Path, "unlink"), (Path, "rmdir")):
        monkeypatch.setattr(module, name, killed_at(0, getattr(module, name), count))
    lifecycle.down(rig)
    assert 5 < count[0] < STEPS.stop


def test_an_up_killed_while_it_makes_the_folder_is_ended_by_down(rig: Rig) -> None:
    rig.home.mkdir()
    lifecycle.down(rig)
    rig.home.mkdir()
    beside(rig.mark).write_text('{"nod')
    lifecycle.down(rig)
    assert not rig.home.exists()
    lifecycle.down(rig)


def test_a_record_that_was_half_written_is_none(rig: Rig) -> None:
    fill(rig)
    beside(rig.home / "processes" / "kubelet.json").write_text('{"na')
    assert "kubelet" not in [one.name for one in processes.recorded(rig)]
    lifecycle.down(rig)
    assert not rig.home.exists()


@pytest.mark.parametrize("name", ["thesis.txt", "processes/x.json", "options.json.bak"])
def test_a_folder_without_the_mark_is_left_as_it_is(rig: Rig, name: str) -> None:
    (rig.home / name).parent.mkdir(parents=True)
    (rig.home / name).write_text("years of work")
    with pytest.raises(RigError, match="not a cluster's folder"):
        lifecycle.down(rig)
    assert (rig.home / name).read_text() == "years of work"
    shutil.rmtree(rig.home)
