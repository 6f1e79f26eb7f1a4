"""Who gets which GPU."""

from __future__ import annotations

import os

import pytest

from orchestrator.cluster.slots import Ask, Busy, Share, Slots, assign, detect

GI = 2**30
TWO = Slots(("0", "1"))
FOUR_CORES = Slots((), Share(4, 8 * GI))


@pytest.mark.parametrize(
    ("devices", "waiting", "starts"),
    [
        pytest.param([], [("a", 1), ("b", 1), ("c", 1)], [("a", ("0",)), ("b", ("1",))], id="one GPU each"),
        pytest.param([("0",)], [("a", 1)], [("a", ("1",))], id="the free GPU is taken"),
        pytest.param([("0",)], [("a", 2), ("b", 1)], [], id="a wide Job is not starved by a narrow one"),
        pytest.param([], [("a", 3), ("b", 2)], [("b", ("0", "1"))], id="an impossible Job holds nobody"),
        pytest.param([("0",)], [("a", 2), ("b", 0)], [("b", ())], id="a CPU Job needs no GPU"),
        pytest.param([()], [("a", 0), ("b", 1)], [("b", ("0",))], id="a CPU Job that waits holds no GPU"),
        pytest.param([], [], [], id="nothing waits"),
    ],
)
def test_each_gpu_is_one_jobs(devices, waiting, starts):
    assert assign([Ask(*ask) for ask in waiting], map(Busy, devices), TWO) == starts


@pytest.mark.parametrize(
    ("busy", "waiting", "starts"),
    [
        pytest.param([], [("a", 2, 1), ("b", 2, 1)], "ab", id="side by side while cores last"),
        pytest.param([(3, 1)], [("a", 1, 1), ("b", 1, 1)], "a", id="the last core is taken once"),
        pytest.param(
            [(3, 1)], [("a", 2, 1), ("b", 1, 1)], "", id="a wide Job is not starved by a narrow one"
        ),
        pytest.param([(1, 5)], [("a", 1, 4)], "", id="memory counts as well"),
        pytest.param([(1, 4)], [("a", 1, 4)], "a", id="to the last byte"),
        pytest.param([], [("a", 9, 1), ("b", 1, 1)], "a", id="more than there is runs alone"),
        pytest.param([(9, 1)], [("a", 1, 1)], "", id="and stays alone"),
        pytest.param([(0.5, 1)], [("a", 3.5, 1)], "a", id="parts of a core"),
    ],
)
def test_cores_and_memory_are_shared(busy, waiting, starts):
    held = [Busy((), Share(cores, memory * GI)) for cores, memory in busy]
    asks = [Ask(name, 0, Share(cores, memory * GI)) for name, cores, memory in waiting]
    assert assign(asks, held, FOUR_CORES) == [(name, ()) for name in starts]


def test_a_gpu_job_takes_no_share_and_without_gpus_asks_for_one_like_any_other():
    on_gpu = [Busy(("0",), Share(4, 8 * GI))]
    machine = Slots(("0",), FOUR_CORES.shared)
    assert assign([Ask("a", 0, Share(4, GI))], on_gpu, machine) == [("a", ())]
    two = [Ask("a", 8, Share(3, GI)), Ask("b", 1, Share(3, GI))]
    assert assign(two, [], FOUR_CORES) == [("a", ())]


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
    assert detect().devices == devices


def test_slots_detect_counts_what_nvidia_smi_lists(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-a)'\necho 'GPU 1: H100 (UUID: GPU-b)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert detect().devices == ("0", "1")
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect().devices == ()


def test_slots_detect_shares_the_cores_we_may_use_and_the_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5})
    shared = detect().shared
    assert shared.cores == 3
    assert shared.memory > GI
