"""A full volume takes no record: the attempt is told as a fault of the storage, not of the trainer."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.cluster import shim
from orchestrator.cluster.slots import Slots
from orchestrator.controller.outcome import FailureClass, classify
from tests.orchestrator.cluster.conftest import Machine

FILLS_IT = """
try:
    with open(os.environ["ORCH_TERMINATION_LOG"] + ".fill", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass
try:
    record('{"v": 1}')
except OSError:
    sys.exit(70)
"""


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[None]:
    """A dump on a volume of 2 MiB."""
    dump = tmp_path / "dump"
    dump.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(dump)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting takes root")
    yield
    subprocess.run(["umount", "--lazy", str(dump)], check=True)


@pytest.mark.usefixtures("small_volume")
def test_a_job_that_filled_the_volume_is_classed_storage_and_says_so(
    machine_with: Callable[[Slots], Machine],
) -> None:
    machine = machine_with(Slots())
    machine.create("a", FILLS_IT)
    job = machine.finished("a")
    result = classify(job)
    assert job.pods[0].exit_code == 70
    assert result is not None
    assert result.failure is FailureClass.STORAGE
    assert "takes no record: No space left on device" in result.evidence
    assert machine.cluster.put_record("night", "a", {"state": "failed"})  # there is room for it


def test_a_volume_with_room_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shim._no_room(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert shim._no_room(tmp_path) == f"the volume of {tmp_path} takes no record: Disk quota exceeded"
    shim._reserve(tmp_path)
