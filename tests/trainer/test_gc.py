"""gc: what may go, and above all what never does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import gc
from trainer.__main__ import main
from trainer.config import GcConfig
from trainer.flags import UsageError
from trainer.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from trainer.results import Leftover, Tidied

NOW = 2_000_000_000.0
DAY = 86400.0
ASIDE = ".checkpoint-30.0123abcd"


def write(path: Path, text: str = "x", age_s: float = 30 * DAY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    for one in (path, path.parent):
        os.utime(one, (NOW - age_s, NOW - age_s))
    return path


def a_mark(**changes: Any) -> dict[str, Any]:
    weights = hashlib.sha256(b"x").hexdigest()
    train = {"step": 20, "max_steps": 20, "adapter_sha256": weights}
    mark = {"stage": "train", "status": "done", "exit_code": 0, "config_digest": "d1", "train": train}
    return mark | changes


def a_run(dump: Path, name: str, *, done: bool = True, age_s: float = 30 * DAY, **marks: Any) -> Path:
    """A run folder with two checkpoints of 100 bytes each, as trainer/layout.py describes it."""
    root = dump / name
    about = {"v": 1, "digest": "d1", "status": "done", "finished": NOW - age_s} | marks
    write(root / "adapter" / ADAPTER_WEIGHTS, age_s=age_s)
    write(root / "adapter" / ADAPTER_CONFIG, '{"r": 8}', age_s)
    for step in (10, 20):
        write(root / f"checkpoint-{step}" / "optimizer.safetensors", "y" * 100, age_s)
    write(root / "eval" / "h1" / "adapter.json", age_s=age_s)
    if done:
        write(root / "done.json", json.dumps(a_mark()), age_s)
    write(root / "owner" / "t.fedcba98" / "lines", "{}", age_s)
    write(root / "run.json", json.dumps(about), age_s)
    return root


def found(dump: Path, **settings: Any) -> list[tuple[str, str]]:
    tidied = gc.tidy(GcConfig(dump=str(dump), **settings), NOW)
    return sorted((one.kind, one.path) for one in tidied.items)


def everything(dump: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(dump).as_posix(): path.read_bytes() if path.is_file() else None
        for path in dump.rglob("*")
    }


CHECKPOINTS = [("checkpoint", "night/a-1/checkpoint-10"), ("checkpoint", "night/a-1/checkpoint-20")]


def test_checkpoints_of_a_done_run_go_and_nothing_else_of_it(tmp_path: Path) -> None:
    a_run(tmp_path, "night/a-1")
    before = everything(tmp_path)
    assert found(tmp_path) == CHECKPOINTS
    assert everything(tmp_path) == before, "dry by default"
    tidied = gc.tidy(GcConfig(dump=str(tmp_path), delete=True), NOW)
    gone = {path for path in before if "/checkpoint-" in path}
    assert everything(tmp_path) == {path: data for path, data in before.items() if path not in gone}
    assert (tidied.deleted, tidied.bytes, tidied.faults) == (True, 200, [])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: (root / "done.json").unlink(),
        lambda root: (root / "done.json").write_text("{"),
        lambda root: (root / "done.json").write_text(json.dumps(a_mark(status="failed"))),
        lambda root: (root / "done.json").write_text(json.dumps(a_mark(config_digest="d2"))),
        lambda root: (root / "run.json").write_text("[]"),
        lambda root: (root / "run.json").unlink(),
    ],
    ids=["no mark", "damaged", "a failure", "another config", "no such run", "no run at all"],
)
def test_a_run_that_is_not_surely_done_keeps_its_checkpoints(
    tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    spoil(a_run(tmp_path, "night/a-1"))
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda root: (root / "adapter" / ADAPTER_WEIGHTS).write_text("z"), f"a changed {ADAPTER_WEIGHTS}"),
        (lambda root: (root / "adapter" / ADAPTER_WEIGHTS).unlink(), f"no {ADAPTER_WEIGHTS}"),
        (lambda root: (root / "adapter" / ADAPTER_CONFIG).write_text("{"), f"no whole {ADAPTER_CONFIG}"),
        (lambda root: (root / "done.json").write_text(json.dumps(a_mark(train=None))), "a changed"),
    ],
    ids=["flipped", "gone", "no config", "never hashed"],
)
def test_a_done_run_whose_adapter_is_damaged_keeps_its_checkpoints_and_says_so(
    tmp_path: Path, spoil: Callable[[Path], Any], fault: str
) -> None:
    root = a_run(tmp_path, "night/a-1")
    one = next(gc.find(GcConfig(dump=str(tmp_path)), NOW))
    spoil(root)
    a_run(tmp_path, "night/b-2")
    before = everything(root)
    for delete in (False, True):
        tidied = gc.tidy(GcConfig(dump=str(tmp_path), delete=delete), NOW)
        [said] = tidied.faults
        assert said.startswith(f"night/a-1: is marked done, and has {fault}")
        assert {item.path for item in tidied.items} == {"night/b-2/checkpoint-10", "night/b-2/checkpoint-20"}
    assert everything(root) == before
    assert gc._remove(one) == "stays, for it changed meanwhile"


@pytest.mark.parametrize(
    ("settings", "goes"),
    [
        ({"older_than": "31d"}, False),
        ({"older_than": "30d"}, True),
        ({"older_than": "720h"}, True),
        ({"sweeps": ["night"]}, True),
        ({"sweeps": ["day"]}, False),
        ({"keep": ["night/a-1"]}, False),
        ({"keep": ["night/a-2"]}, True),
    ],
)
def test_age_sweeps_and_what_is_kept_decide(tmp_path: Path, settings: dict[str, Any], goes: bool) -> None:
    a_run(tmp_path, "night/a-1")
    assert found(tmp_path, **settings) == (CHECKPOINTS if goes else [])


def test_the_time_of_its_end_counts_not_that_of_a_copy(tmp_path: Path) -> None:
    a_run(tmp_path, "night/a-1", finished=NOW - DAY)
    assert found(tmp_path, older_than="2d") == []


def test_an_unfinished_run_goes_only_when_it_is_named(tmp_path: Path) -> None:
    a_run(tmp_path, "night/a-1", done=False)
    a_run(tmp_path, "night/b-2", done=False)
    assert found(tmp_path) == []
    assert found(tmp_path, unfinished=["night/a-1"], keep=["night/a-1"]) == []
    assert found(tmp_path, unfinished=["night/a-1"], delete=True) == [("run", "night/a-1")]
    assert sorted(path.name for path in (tmp_path / "night").iterdir()) == ["b-2"]


def test_a_done_run_never_goes_though_it_is_named(tmp_path: Path) -> None:
    root = a_run(tmp_path, "night/a-1")
    assert found(tmp_path, unfinished=["night/a-1"], delete=True) == CHECKPOINTS
    assert (root / "adapter" / ADAPTER_WEIGHTS).is_file()
    (root / "done.json").write_text("{")  # damaged: somebody looks at it first
    assert found(tmp_path, unfinished=["night/a-1"], delete=True) == []


def test_an_unfinished_run_that_is_written_to_stays(tmp_path: Path) -> None:
    root = a_run(tmp_path, "night/a-1", done=False)
    write(root / "metrics.jsonl", age_s=DAY)
    assert found(tmp_path, unfinished=["night/a-1"]) == []


def test_a_run_that_starts_again_between_look_and_removal_stays(tmp_path: Path) -> None:
    root = a_run(tmp_path, "night/a-1", done=False)
    [one] = gc.find(GcConfig(dump=str(tmp_path), unfinished=["night/a-1"]), NOW)
    write(root / "owner" / "t.fedcba98" / "lines", "{}", age_s=0)
    assert gc._remove(one) == "stays, for it changed meanwhile"
    assert root.is_dir()


def test_what_killed_writers_left_goes_after_a_day_at_least(tmp_path: Path) -> None:
    root = a_run(tmp_path, "night/a-1", age_s=2 * DAY)
    write(root / ASIDE / "optimizer.safetensors", age_s=2 * DAY)
    write(root / ".done.json.89abcdef", age_s=DAY / 2)
    write(root / ".probe-12", age_s=2 * DAY)
    write(tmp_path / ".models" / ".gpt.old.0123abcd" / "config.json", age_s=2 * DAY)
    names = [".models/.gpt.old.0123abcd", f"night/a-1/{ASIDE}", "night/a-1/.probe-12"]
    temporary = [("temporary", name) for name in sorted(names)]
    assert [one for one in found(tmp_path, older_than="1s") if one[0] == "temporary"] == temporary
    assert found(tmp_path, older_than="3d") == []
    assert list(found(tmp_path, older_than="1d", keep=["night/a-1"])) == temporary[:1]
    found(tmp_path, older_than="1d", delete=True)
    assert [path for path in everything(tmp_path) if "0123abcd" in path or "probe" in path] == []
    assert (root / ".done.json.89abcdef").exists()


def test_a_folder_that_is_still_filled_stays(tmp_path: Path) -> None:
    root = a_run(tmp_path, "night/a-1", done=False)
    write(root / ASIDE / "optimizer.safetensors", age_s=0)
    os.utime(root / ASIDE, (NOW - 30 * DAY, NOW - 30 * DAY))
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [".models/key/model.safetensors", ".baselines/h/teacher.json",
     ".hub/orch/.mark.0123abcd", ".orch/jobs/.j.0123abcd/job.json", "night/.hidden", "night/a.0123abcd"],
)  # fmt: skip
def test_nothing_else_goes_however_old(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, age_s=1000 * DAY)
    assert found(tmp_path, older_than="0s") == []


@pytest.mark.parametrize(
    ("used_s", "settings", "goes"),
    [
        pytest.param(15 * DAY, {}, True, id="nobody used it for long"),
        pytest.param(13 * DAY, {}, False, id="a run used it lately, though it wrote nothing"),
        pytest.param(0.9 * DAY, {"older_than": "1s"}, False, id="never within a day: a run may be at it"),
        pytest.param(15 * DAY, {"sweeps": ["night"]}, False, id="one sweep's tidying leaves what all share"),
    ],
)
def test_what_a_teacher_computed_goes_when_no_run_uses_it(
    tmp_path: Path, used_s: float, settings: dict[str, Any], goes: bool
) -> None:
    write(tmp_path / ".teacher/h/ab/x.json", age_s=100 * DAY)
    write(tmp_path / "night/a-1/run.json")
    os.utime(tmp_path / ".teacher/h", (NOW - used_s, NOW - used_s))
    assert found(tmp_path, **settings) == ([("teacher", ".teacher/h")] if goes else [])


def test_links_lead_nowhere(tmp_path: Path) -> None:
    other = a_run(tmp_path / "elsewhere", "night/a-1")
    dump = tmp_path / "dump"
    root = a_run(dump, "night/a-1")
    (root / "checkpoint-30").symlink_to(other / "checkpoint-10")
    (dump / "night" / "b-2").symlink_to(other)
    assert found(dump, delete=True) == CHECKPOINTS
    assert (other / "checkpoint-10").is_dir()


def test_what_cannot_be_removed_is_said_and_the_others_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path, "night/a-1", finished=1.0)
    unlink = os.unlink

    def refuse(path: Any, *args: Any, **options: Any) -> None:
        if Path(path).name == "held":
            raise PermissionError(13, "Permission denied", path)
        unlink(path, *args, **options)

    write(tmp_path / "night" / "a-1" / "checkpoint-20" / "held", "")
    monkeypatch.setattr(os, "unlink", refuse)
    assert main(["gc", "--dump", str(tmp_path), "--delete"]) == 70
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [
        "night/a-1/checkpoint-20: cannot be removed, got Permission denied; remove it as its owner",
        "1 gone, 100 B",
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dump": "nowhere"}, "--dump: no such folder, got 'nowhere'"),
        ({"keep": ["../x"]}, "--keep: must be SWEEP/RUN, got '../x'"),
        ({"unfinished": ["night/.."]}, "--unfinished: must be SWEEP/RUN, got 'night/..'"),
        ({"unfinished": ["/etc/a"]}, "--unfinished: must be SWEEP/RUN, got '/etc/a'"),
        ({"sweeps": [".."]}, "--sweeps: must be SWEEP, got '..'"),
        ({"sweeps": [".orch"]}, "--sweeps: must be SWEEP, got '.orch'"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match="^" + words.replace(".", r"\.")):
        gc.tidy(GcConfig(**{"dump": str(tmp_path), "delete": True, **settings}), NOW)


def test_the_command_says_what_would_go_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path, "night/a-1", finished=1.0)
    assert main(["gc", "--dump", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "2 would go, 200 B; --delete removes it"
    assert said[0].startswith("night/a-1/checkpoint-20: checkpoint, 100 B: its run is done for ")
    assert main(["gc", "--dump", str(tmp_path), "--json-output"]) == 0
    value = Tidied.model_validate_json(capsys.readouterr().out)
    assert (value.v, value.deleted, [one.bytes for one in value.items]) == (1, False, [100, 100])
    assert main(["gc", "--dump", "nowhere"]) == 64


def test_an_item_names_its_folder_below_the_dump() -> None:
    item = Leftover(path="night/a-1", kind="run", bytes=3, why="w")
    assert next(iter(gc.lines(Tidied(items=[item])))) == "night/a-1: run, 3 B: w"
