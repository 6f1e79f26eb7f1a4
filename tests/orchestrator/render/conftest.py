"""One request, and its variations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.profile import Profile
from orchestrator.render import JobRequest
from orchestrator.sweep.spec import Resources, Scheduling

IMAGE = "registry.example/trainer@sha256:" + "ab" * 32


@pytest.fixture
def profile() -> Profile:
    return Profile(
        image=IMAGE,
        imagePullSecrets=["pull"],
        hubTokenSecret="hub",
        nodeSelector={"pool": "gpu"},
        env={"NCCL_DEBUG": "WARN", "PRICE": "5$", "HF_HUB_OFFLINE": "0"},
        maxMemory="400Gi",
    )


@pytest.fixture
def request_of() -> Callable[..., JobRequest]:
    base = JobRequest(
        sweep="night",
        sweep_uid="1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        stage="train",
        run_id="lmbda0_lr5e6-0123abcd",
        attempt=2,
        args=("train", "--lmbda", "0.0", "--output-dir", "/data/dump/night/lmbda0_lr5e6-0123abcd"),
        digest="0123abcd" * 8,
        resources=Resources(gpus=8, gpuType=["H200", "H100"], cpu=0.5, memory="200Gi", maxDuration="90m"),
        scheduling=Scheduling(queue="gpu", priority="low"),
        memory="300Gi",
        avoid_nodes=("node-7",),
    )

    def make(**changes: Any) -> JobRequest:
        return replace(base, **changes)

    return make
