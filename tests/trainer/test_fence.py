"""Never two writers in one folder: an attempt that lost it writes nothing more, wherever it was."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.fakes import Volume, result, toy_session
from trainer.adapter import save_adapter
from trainer.fence import Fence, FenceLost
from trainer.layout import RunFolder
from trainer.train import train


@pytest.fixture(autouse=True)
def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.publish.sample_completions", lambda session: [])


def test_whoever_took_the_folder_last_owns_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_ATTEMPT", "one-token-for-both")
    first, second = Fence(RunFolder(tmp_path)), Fence(RunFolder(tmp_path))
    first.take()
    first.check()
    second.take()
    second.check()
    with pytest.raises(FenceLost, match="taken by another attempt, got one-token-for-both"):
        first.check()


def test_a_file_that_is_ready_to_be_renamed_stays_out_too(tmp_path: Path) -> None:
    """The moment between check and rename: the file to be renamed is gone with the desk it lay on."""
    first, second = Fence(RunFolder(tmp_path)), Fence(RunFolder(tmp_path))
    first.take()

    def publish() -> None:
        with first.new_folder(tmp_path / "adapter") as aside:
            (aside / "weights").write_text("first")
            second.take()

    with pytest.raises(FenceLost):
        publish()
    with second.new_folder(tmp_path / "adapter") as aside:
        (aside / "weights").write_text("second")
    with pytest.raises(FenceLost):
        first.remove(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "weights").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "owner"]


def files(root: Path) -> dict[str, bytes]:
    """Every file under its final name."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "owner" not in path.relative_to(root).parts[:1]
    }


class Killed(BaseException):
    pass


def first_and_second(root: Path, at: int, dies_at: int | None) -> tuple[bool, dict[str, bytes]]:
    """Stop an attempt before its operation `at`, let another run (or die at `dies_at`), go on with the first.

    Returns (whether the first lost the folder, the files that were there when it went on).
    """
    seen: dict[str, bytes] = {}
    second = False

    def hook(number: int, what: str) -> int:
        nonlocal second
        if second and dies_at is not None and number >= at + dies_at and not seen:
            raise Killed
        if number == at:
            second = True
            try:
                train(toy_session(root))
            except Killed:
                second = False
            second = False
            seen.update(files(root))
        return 0

    with Volume(root, hook).watched():
        try:
            train(toy_session(root))
        except FenceLost:
            return True, seen
    return False, seen


def interleave(tmp_path: Path, ats: range, deaths: tuple[int | None, ...], expected: Any) -> int:
    lost = 0
    for at in ats:
        for dies_at in deaths:
            root = tmp_path / f"{at}-{dies_at}"
            root.mkdir()
            is_lost, seen = first_and_second(root, at, dies_at)
            if is_lost:
                lost += 1
                assert files(root) == seen, "no byte of an attempt that lost the folder"
            else:
                assert result(root) == expected, "it took the folder after the second, or was done"
            train(toy_session(root))
            assert result(root) == expected
            shutil.rmtree(root)
    return lost


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, int]:
    """(result, number of operations) of an attempt alone."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.publish.sample_completions", lambda session: [])
        with Volume(root, lambda number, what: 0).watched() as volume:
            train(toy_session(root))
    return result(root), len(volume.operations)


def test_a_desk_that_was_taken_away_does_not_come_back(tmp_path: Path) -> None:
    session = toy_session(tmp_path)
    fence, second = Fence(RunFolder(tmp_path)), Fence(RunFolder(tmp_path))
    fence.take()

    def fill_late() -> None:
        with fence.new_folder(tmp_path / "adapter") as aside:
            second.take()
            save_adapter(session.student.lora_tensors(), aside, session.config)

    with pytest.raises(FenceLost):
        fill_late()
    assert [path.name for path in (tmp_path / "owner").iterdir()] == [second.desk.name]


def test_of_two_attempts_the_loser_leaves_no_byte(tmp_path: Path, whole: tuple[Any, int]) -> None:
    expected, operations = whole
    lost = interleave(tmp_path, range(1, operations, 53), (None, 60), expected)
    assert lost >= 5, "but where it had not taken the folder yet, the first lost it"


@pytest.mark.exhaustive
def test_of_two_attempts_the_loser_leaves_no_byte_at_any_operation(
    tmp_path: Path, whole: tuple[Any, int]
) -> None:
    expected, operations = whole
    interleave(tmp_path, range(1, operations + 1), (None, 60), expected)


def test_what_fills_the_volume_is_removed_before_anything_is_made(tmp_path: Path) -> None:
    """A killed attempt's unfinished checkpoint may be what fills it: room is made before it is needed."""
    killed, following = Fence(RunFolder(tmp_path)), Fence(RunFolder(tmp_path))
    killed.take()
    (killed.desk / ".checkpoint-9.x").mkdir()

    def hook(number: int, what: str) -> int:
        return errno.ENOSPC if what == "mkdir" and os.path.exists(killed.desk) else 0

    with Volume(tmp_path / "owner", hook).watched():
        following.take()
    following.check()
    assert [path.name for path in tmp_path.iterdir()] == ["owner"]
