"""Nothing lost on a volume that fails: at every operation, at every byte, with every file damaged."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller.evidence import FailureClass, _of_failure
from tests.trainer.fakes import TOY, Volume, fails_at, result, toy_session
from trainer import checkpoint, folder
from trainer.__main__ import _guarded, main
from trainer.config import TrainPlace
from trainer.layout import TERMINATION_LOG_ENV, RunFolder
from trainer.results import ExitCode, Record, load_record
from trainer.settings import digest, to_flags
from trainer.train import train
from trainer.volume import ADVICE, explain


@pytest.fixture(autouse=True)
def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.publish.sample_completions", lambda session: [])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, result, operations) of a run on a volume that never fails."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.publish.sample_completions", lambda session: [])
        with Volume(root, lambda number, what: 0).watched() as volume:
            attempt(root, tmp_path_factory.mktemp("log") / "record")
    return root, result(root), volume.operations


def attempt(root: Path, log: Path) -> Record:
    """An attempt as the command line makes it; returns its record."""
    log.unlink(missing_ok=True)
    place = TrainPlace(output_dir=str(root), run_id="toy")

    def work() -> Record | None:
        fault = folder.check_folder(TOY, place)
        assert fault is None
        return folder.finished(TOY, place) or train(toy_session(root))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TERMINATION_LOG_ENV, str(log))
        code = _guarded("train", "toy", work, TOY)
    record = load_record(log.read_bytes())
    assert record is not None
    assert record.exit_code == code
    return record


def check_names(root: Path) -> None:
    """Whatever stands under its final name is whole: checkpoints, and a done mark's adapter."""
    run = RunFolder(root)
    for path in run.checkpoints():
        assert checkpoint.verify(path, digest(TOY)) is None, path
    if run.done.exists():
        assert folder.finished(TOY, TrainPlace(output_dir=str(root))) is not None


def check_healed(root: Path, log: Path, expected: Any) -> None:
    assert attempt(root, log).status == "done"
    assert result(root) == expected


def fail_and_heal(root: Path, log: Path, hook: Any, expected: Any) -> Record:
    with Volume(root, hook).watched():
        record = attempt(root, log)
    check_names(root)
    check_healed(root, log, expected)
    # Of an attempt that succeeded without being able to tidy up something may stay.
    left = [path.name for path in root.rglob(".*")]
    assert record.status == "done" or left == [], "leftovers of the attempt that failed"
    return record


def check_is_storage(record: Record, code: int) -> None:
    assert record.exit_code == ExitCode.INTERNAL
    assert _of_failure(record.exit_code, record.error or "") is FailureClass.STORAGE
    assert os.strerror(code) in (record.error or "")
    assert ADVICE[code] in (record.error or "")
    assert "Traceback" not in (record.error or "")


CODES = (errno.ENOSPC, errno.EIO, errno.EROFS)


def run_every(step: int, whole: Any, tmp_path: Path) -> None:
    """Fail every `step`th operation and the done mark's, once and for ever, with each error in turn."""
    _, expected, operations = whole
    turns = [(number, for_ever) for number in range(1, len(operations) + 1) for for_ever in (False, True)]
    for turn, (number, for_ever) in enumerate(dict.fromkeys([*turns[::step], *turns[-16:]])):
        code = CODES[turn % len(CODES)]
        root = tmp_path / f"{number}-{for_ever}"
        root.mkdir()
        record = fail_and_heal(root, tmp_path / "log", fails_at(number, code, for_ever=for_ever), expected)
        if record.status != "done":  # tidying up may fail, and need not
            check_is_storage(record, code)
            assert str(root) in (record.error or ""), (operations[number - 1], record.error)
        shutil.rmtree(root)


@pytest.mark.slow
def test_a_volume_that_fails_anywhere_costs_an_attempt_and_no_byte(whole: Any, tmp_path: Path) -> None:
    assert len(whole[2]) > 150, "the injections reach a run's writes"
    run_every(37, whole, tmp_path)


@pytest.mark.exhaustive
def test_a_volume_that_fails_at_any_operation_costs_an_attempt_and_no_byte(
    whole: Any, tmp_path: Path
) -> None:
    run_every(1, whole, tmp_path)


def test_every_error_of_a_volume_is_storage_to_the_controller() -> None:
    for code, advice in ADVICE.items():
        error = RuntimeError("a library's own words")
        error.__cause__ = OSError(code, os.strerror(code), "/dump/x")
        text = explain(error)
        assert text == f"/dump/x: cannot be used, got {os.strerror(code)}; {advice}"
        record = Record(stage="train", status="failed", exit_code=ExitCode.INTERNAL, error=text)
        assert _of_failure(record.exit_code, record.error or "") is FailureClass.STORAGE
    assert explain(OSError(errno.ENOENT, "No such file or directory")) is None
    assert explain(ValueError("(os error 28)")) is None, "only of libraries that write files"


def test_errors_of_safetensors_are_known_by_their_number() -> None:
    from safetensors import SafetensorError

    text = explain(SafetensorError('Error while serializing: I/O error: full (os error 28) at path "/x"'))
    assert text == f"the volume: cannot be used, got {os.strerror(28)}; {ADVICE[28]}"


def test_a_read_only_volume_is_said_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "record"
    monkeypatch.setenv(TERMINATION_LOG_ENV, str(log))
    root = tmp_path / "dump" / "run"
    root.mkdir(parents=True)
    with Volume(root.parent, fails_at(1, errno.EROFS, for_ever=True)).watched():
        code = main(["train", *to_flags(TOY), "--output-dir", str(root)])
    said = f"{root}: cannot be used, got Read-only file system; {ADVICE[errno.EROFS]}\n"
    assert (code, capsys.readouterr().err) == (ExitCode.INTERNAL, said)
    record = load_record(log.read_bytes())
    assert record is not None
    check_is_storage(record, errno.EROFS)


def test_a_log_on_the_full_volume_costs_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv(TERMINATION_LOG_ENV, str(tmp_path / "record"))
    monkeypatch.setattr(sys, "stderr", Full())
    assert _guarded("train", "toy", full, TOY) == ExitCode.INTERNAL
    record = load_record((tmp_path / "record").read_bytes())
    assert record is not None
    check_is_storage(record, errno.ENOSPC)


HARMS: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "another type": lambda path: path.write_text("[1]"),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
@pytest.mark.parametrize(
    "name",
    [
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "done.json",
        "run.json",
        "metrics.jsonl",
        "checkpoint-4/metrics.jsonl",
        "checkpoint-4/hashes.json",
    ],
)
def test_a_damaged_file_is_made_again(
    name: str, harm: Callable[[Path], object], whole: Any, tmp_path: Path
) -> None:
    """Of a run that is done; metrics and checkpoints are looked at only when it is not."""
    source, expected, _ = whole
    root = tmp_path / "run"
    shutil.copytree(source, root)
    if name.startswith(("metrics", "checkpoint")):
        (root / "done.json").unlink()
    harm(root / name)
    record = attempt(root, tmp_path / "log")
    assert (record.status, record.error) == ("done", None)
    assert result(root) == expected
    assert json.loads((root / "run.json").read_text())["config"] == TOY.model_dump(mode="json")
    assert folder.finished(TOY, TrainPlace(output_dir=str(root))) is not None
    check_names(root)


def test_a_damaged_run_json_lets_no_other_config_in(whole: Any, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole[0], root)
    (root / "run.json").write_text("{")
    other = TOY.model_copy(update={"learning_rate": 0.2})
    place = TrainPlace(output_dir=str(root))
    assert "holds a run of another config" in (folder.check_folder(other, place) or "")
    (root / "done.json").unlink()
    assert "holds a run of another config" in (folder.check_folder(other, place) or "")


def test_a_checkpoint_cut_at_any_byte_falls_back_to_the_one_before(
    whole: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole[0], root)
    run = RunFolder(root)
    newest, before = run.checkpoints()
    assert (newest.name, before.name) == ("checkpoint-4", "checkpoint-3")
    for file in newest.iterdir():
        data = file.read_bytes()
        for size in {*range(0, len(data), 9), len(data) - 2}:
            file.write_bytes(data[:size])
            assert checkpoint.verify(newest, digest(TOY)) is not None, (file, size)
        for place in range(0, len(data), 23):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert checkpoint.verify(newest, digest(TOY)) is not None, (file, place)
        caplog.clear()
        found = checkpoint.load_newest(run, digest(TOY))
        assert found is not None
        assert found.step == 3
        assert re.search(r"checkpoint-4: cannot be resumed from, got .*; going back", caplog.text)
        file.write_bytes(data)
    assert checkpoint.load_newest(run, digest(TOY)).step == 4  # type: ignore[union-attr]


def test_a_folder_removed_while_it_is_written_ends_the_attempt(whole: Any, tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    middle = len(whole[2]) // 2

    def hook(number: int, what: str) -> int:
        if number == middle:
            os.system(f"rm -r {root}")  # not through what is watched
        return 0

    with Volume(root, hook).watched():
        record = attempt(root, tmp_path / "log")
    assert record.exit_code == ExitCode.AGAIN
    assert "removed while it was written" in (record.error or "")
    check_healed(root, tmp_path / "log", whole[1])
