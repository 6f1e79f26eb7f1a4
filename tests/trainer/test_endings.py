"""Rollouts that do not end: what is counted, and when a run is refused, a resumed one too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.fakes import TOY, toy_session
from trainer.config import TrainConfig
from trainer.data import Example, Item
from trainer.endings import FIRST, Endings, count, fault, of_line, total
from trainer.flags import UsageError
from trainer.layout import RunFolder
from trainer.session import Session
from trainer.train import train

STOP = 3


@pytest.fixture(autouse=True)
def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.publish.sample_completions", lambda session: [])


def _item(own: Sequence[int], written: Sequence[int], on_policy: bool = True) -> Item:
    return Item(0, Example((1,), tuple(own)), on_policy, tuple(written))


@pytest.mark.parametrize(
    ("items", "found"),
    [
        ([], Endings()),
        ([_item([5, STOP], [5, STOP], on_policy=False)], Endings()),
        ([_item([5, STOP], [5, STOP])], Endings(1, 1, 1, 1, 1, 0)),
        ([_item([5, STOP], [5, 6, 7])], Endings(1, 0, 1, 0, 1, 1)),
        # Longer than max_new_tokens, which is 3: it says nothing of what would have fitted.
        ([_item([5, 5, 5, STOP], [5, 6, 7])], Endings(1, 0, 1, 0, 0, 0)),
        ([_item([5, 5, STOP], [5, 6, 7])], Endings(1, 0, 1, 0, 1, 1)),
        # A row without an end of its own: a window of text, or cut at max_length.
        ([_item([5, 6], [5, 6, 7])], Endings(1, 0, 0, 0, 0, 0)),
        ([_item([5, 6], [STOP])], Endings(1, 1, 0, 0, 0, 0)),
    ],
)
def test_what_is_counted(items: list[Item], found: Endings) -> None:
    assert count(items, frozenset({STOP}), 3) == found
    assert of_line(found.line()) == found
    assert total([found, found]) == Endings(*(2 * one for one in found))


@pytest.mark.parametrize(
    ("closed", "closed_ended", "fitting", "fitting_cut", "said"),
    [
        (0, 0, 0, 0, None),  # text
        (64, 0, 0, 0, "got 0 of 64 that did"),
        (64, 1, 0, 0, None),  # long rows: cut off as the data would be
        (10, 0, 10, 10, "got 0 of 10 that did"),
        (9, 0, 9, 9, None),  # too few to tell
        (64, 20, 64, 44, None),  # 64 / 2 + 1.5 · 8 = 44
        (64, 19, 64, 45, "got 45 of 64 cut off at 128 tokens"),
        (64, 40, 16, 14, None),
        (64, 40, 16, 15, "got 15 of 16 cut off"),
        (64, 64, 64, 0, None),
    ],
)
def test_which_first_rollouts_are_refused(
    closed: int, closed_ended: int, fitting: int, fitting_cut: int, said: str | None
) -> None:
    found = fault(Endings(64, closed_ended, closed, closed_ended, fitting, fitting_cut), TrainConfig())
    assert (found is None) == (said is None)
    if said and found:
        assert said in found
        assert "; raise --max-new-tokens" in found
        assert "--allow-cut-rollouts" in found


def test_a_minimum_that_forbids_every_end_is_named() -> None:
    config = TrainConfig(max_new_tokens=16, min_new_tokens=16)
    assert "; lower --min-new-tokens, raise" in str(fault(Endings(64, 0, 64, 0, 64, 64), config))


class _Scripted:
    """Rollouts of the toy that never end, or always."""

    how = "native"

    def __init__(self, ending: bool) -> None:
        self._ending = ending

    def sample(self, prompts: Sequence[Any], *asked: Any) -> list[list[int]]:
        return [[5, STOP if self._ending else 6] for _ in prompts]


def _session(folder: Path, config: TrainConfig, ending: bool = False) -> Session:
    session = toy_session(folder, config)
    session.stops = frozenset({STOP})
    session.rollouts = _Scripted(ending)  # type: ignore[assignment]
    return session


def _config(**fields: Any) -> TrainConfig:
    batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    return TOY.model_copy(update={**batch, "lmbda": 1.0, "max_steps": 6, "max_new_tokens": 2, **fields})


def test_a_run_is_refused_at_the_step_that_makes_its_first_rollouts_whole(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"got 0 of 64 that did .*\(the first 64 rollouts\)"):
        train(_session(tmp_path, _config()))
    assert FIRST == 64
    lines = RunFolder(tmp_path).metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert json.loads(lines[0])["rollouts_cut_share"] == 1.0
    with pytest.raises(UsageError, match=r"got 0 of 64 that did .*\(the first 64 rollouts\)"):
        train(_session(tmp_path, _config()))
    assert not RunFolder(tmp_path).done.exists()


def test_a_resumed_run_decides_by_what_came_before(tmp_path: Path) -> None:
    """Its own 16 rollouts would do as they are; with the 48 of the attempts before, they do not."""
    with pytest.raises(UsageError):
        train(_session(tmp_path, _config()))
    with pytest.raises(UsageError, match="got 48 of 64 cut off at 2 tokens"):
        train(_session(tmp_path, _config(), ending=True))


@pytest.mark.parametrize(
    ("fields", "ending"), [({}, True), ({"allow_cut_rollouts": True}, False), ({"max_steps": 3}, False)]
)
def test_who_may_go_on(fields: dict[str, Any], ending: bool, tmp_path: Path) -> None:
    assert train(_session(tmp_path, _config(**fields), ending)) is not None
    about = json.loads(RunFolder(tmp_path).run.read_text())["rollouts"]
    assert about["cut_share"] == (0.0 if ending else 1.0)
    assert about["rollouts"] == 16 * (fields.get("max_steps", 6))
