"""1, 2 and 4 processes with the same global batch: same order, same λ, same gradients; only LoRA's travel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.fakes import TOY, toy_session
from tests.trainer.worlds import run_ranks
from trainer import train as loop
from trainer.distributed import World, undealt

SIZES = (1, 2, 4)


@pytest.mark.parametrize("size", SIZES)
def test_the_shares_of_all_processes_are_the_global_batch(size: int, tmp_path: Path) -> None:
    """Sample, example and λ draw of each sequence are equal to the bit, whoever computes it."""
    config = TOY.model_copy(
        update={"nproc": size, "gradient_accumulation_steps": 4 // size, "lmbda": 0.5, "max_steps": 8}
    )
    alone = toy_session(tmp_path, TOY.model_copy(update={"gradient_accumulation_steps": 4, "lmbda": 0.5}))
    assert alone.config.global_batch == config.global_batch == 8
    for step in range(8):
        whole = loop._items(alone, step)
        shares = []
        for rank in range(size):
            session = toy_session(tmp_path, config)
            session.world = World(rank, size, torch.device("cpu"))
            shares.append(loop._items(session, step))
        assert {len(share) for share in shares} == {8 // size}
        together = sorted((item for share in shares for item in share), key=lambda item: item.sample)
        assert together == whole


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 10])
def test_what_is_dealt_comes_back_in_order(count: int, size: int) -> None:
    shares = [World(rank, size, torch.device("cpu")).share(range(count)) for rank in range(size)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert undealt(shares) == list(range(count))


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, make_tiny_folder: Callable[[Path], Path]
) -> dict[str, Any]:
    """What every rank of every size saw, by case, size and rank; see tests/trainer/ranks.py."""
    folder = tmp_path_factory.mktemp("ranks")
    make_tiny_folder(folder / "model")
    run_ranks("tests.trainer.ranks", folder, max(SIZES))
    return {
        case: {
            size: [json.loads((folder / f"{case}-{size}-{rank}.json").read_text()) for rank in range(size)]
            for size in SIZES
        }
        for case in ("off", "free", "replayed")
    }


def gradients(ranks: list[dict[str, Any]]) -> torch.Tensor:
    """[steps, LoRA elements] of rank 0, which has the sum of all."""
    return torch.tensor(ranks[0]["gradients"], dtype=torch.float64)


def sequences(ranks: list[dict[str, Any]]) -> list[list[list[Any]]]:
    """For each step the global batch in order: sample, prompt, who wrote it, completion."""
    steps = zip(*(rank["sequences"] for rank in ranks), strict=True)
    return [sorted(one for share in step for one in share) for step in steps]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["off", "replayed"])
@pytest.mark.parametrize("size", SIZES[1:])
def test_gradients_are_those_of_one_process(case: str, size: int, runs: dict[str, Any]) -> None:
    """Bugs 8 and 10: λ = 0, and λ = 0.5 with the rollouts of one process given to all."""
    one, many = runs[case][1], runs[case][size]
    assert sequences(many) == sequences(one)
    reference, found = gradients(one), gradients(many)
    assert (reference.norm(dim=1) > 0).all()
    assert ((found - reference).norm(dim=1) / reference.norm(dim=1)).max() < 1e-5
    for rank in many[1:]:
        assert rank["gradients"] == many[0]["gradients"], "every process must make the same update"
        assert rank["losses"] == many[0]["losses"]
    assert many[0]["losses"] == pytest.approx(one[0]["losses"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES[1:])
def test_each_process_writes_its_own_rollouts(
    size: int, runs: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    """Free-running: order and λ are equal to the bit; rollouts may part where two tokens tie."""
    one, many = sequences(runs["free"][1]), sequences(runs["free"][size])
    for ours, theirs in zip(many, one, strict=True):
        assert [sequence[:3] for sequence in ours] == [sequence[:3] for sequence in theirs]
    written = [
        (mine[3], other[3])
        for ours, theirs in zip(many, one, strict=True)
        for mine, other in zip(ours, theirs, strict=True)
        if other[2]
    ]
    equal = sum(mine == other for mine, other in written) / len(written)
    record_property("rollouts_equal", equal)
    assert equal >= 0.9
    counts = [rank["sampled"] for rank in runs["free"][size]]
    assert sum(map(sum, counts)) == len(written)
    for rank, sampled in zip(runs["free"][size], counts, strict=True):
        assert sampled == [n for n in (sum(one[2] for one in step) for step in rank["sequences"]) if n]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES[1:])
def test_only_lora_gradients_and_counts_travel(size: int, runs: dict[str, Any]) -> None:
    steps, elements = gradients(runs["off"][size]).shape
    for rank in runs["off"][size]:
        assert rank["travelled"].count(elements) == steps
        assert max(n for n in rank["travelled"] if n != elements) <= 9
    assert runs["off"][1][0]["travelled"] == []
