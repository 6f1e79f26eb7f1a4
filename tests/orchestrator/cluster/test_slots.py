"""Who gets which GPU."""

from __future__ import annotations

import pytest

from orchestrator.cluster.slots import Ask, Slots, assign, detect

TWO = Slots(("0", "1"))


@pytest.mark.parametrize(
    ("slots", "busy", "waiting", "starts"),
    [
        pytest.param(Slots(), [], [("a", 8), ("b", 0)], [("a", ())], id="without GPUs the oldest runs alone"),
        pytest.param(Slots(), [()], [("a", 0)], [], id="without GPUs a running Job holds the slot"),
        pytest.param(
            TWO, [], [("a", 1), ("b", 1), ("c", 1)], [("a", ("0",)), ("b", ("1",))], id="one GPU each"
        ),
        pytest.param(TWO, [("0",)], [("a", 1)], [("a", ("1",))], id="the free GPU is taken"),
        pytest.param(TWO, [("0",)], [("a", 2), ("b", 1)], [], id="a wide Job is not starved by a narrow one"),
        pytest.param(TWO, [], [("a", 3), ("b", 2)], [("b", ("0", "1"))], id="an impossible Job holds nobody"),
        pytest.param(TWO, [("0",)], [("a", 2), ("b", 0)], [("b", ())], id="a CPU Job needs no GPU"),
        pytest.param(TWO, [()], [("a", 0), ("b", 1)], [("b", ("0",))], id="CPU Jobs run one at a time"),
        pytest.param(TWO, [], [], [], id="nothing waits"),
    ],
)
def test_slots_assign(slots, busy, waiting, starts):
    assert assign([Ask(*ask) for ask in waiting], busy, slots) == starts


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        pytest.param("2,0", ("2", "0"), id="in the order given"),
        pytest.param("GPU-1, MIG-2", ("GPU-1", "MIG-2"), id="by uuid"),
        pytest.param("", (), id="none"),
        pytest.param("-1", (), id="minus one is none"),
        pytest.param("1,-1,0", ("1",), id="up to the first that is no device"),
    ],
)
def test_slots_detect_reads_cuda_visible_devices(monkeypatch, visible, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert detect() == Slots(devices)


def test_slots_detect_counts_what_nvidia_smi_lists(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-a)'\necho 'GPU 1: H100 (UUID: GPU-b)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert detect() == Slots(("0", "1"))
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect() == Slots()
