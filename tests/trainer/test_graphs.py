"""Recorded decode steps: against the plain step, on a tape in place of a graph; when they are dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.trainer.students import perturb, small_config
from tests.trainer.tape import Recorder
from trainer import decoder, graphs
from trainer.counters import Stream
from trainer.flags import UsageError
from trainer.graphs import CudaRecorder, Graphs, bucket
from trainer.noise import Draw, Sampler, Trace
from trainer.rollout import Rollouts
from trainer.student import Student, build_student

PROMPTS = [tuple(range(10, 10 + length)) for length in (3, 1, 9, 40, 5)]
DRAWS = [Draw(0, number) for number in range(len(PROMPTS))]
STOPS = frozenset(range(0, 320, 9))
WINDOW = {
    "use_sliding_window": True,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
SHAPES = [("llama", {}), ("qwen3", {}), ("qwen3", WINDOW)]


def sampler(stops: frozenset[int] = STOPS, new: int = 24) -> Sampler:
    return Sampler(1, Stream.ROLLOUT, 0.9, new, 2, stops)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def recorded(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Graphs:
    monkeypatch.setattr(graphs, "SPAN", 16)
    return Graphs(lambda: recorder)


@pytest.fixture
def student(tiny_llama: Any) -> Student:
    return perturb(build_student(tiny_llama, small_config()))


def written(student: Student, by: Graphs | None, prompts: Any = PROMPTS, **asked: Any) -> list[list[int]]:
    return Rollouts(student, "native", by).sample(prompts, DRAWS[: len(prompts)], sampler(**asked), "rollout")


@pytest.mark.parametrize(
    ("rows", "end", "key"),
    [(1, 1, (1, 256)), (2, 256, (2, 256)), (3, 257, (4, 512)), (8, 600, (8, 768)), (9, 512, (16, 512))],
)
def test_a_steps_graph_is_that_of_its_rows_and_length_alone(
    rows: int, end: int, key: tuple[int, int]
) -> None:
    assert bucket(rows, end) == key


@pytest.mark.parametrize(("kind", "fields"), SHAPES, ids=["llama", "qwen3", "window"])
@pytest.mark.parametrize("rows", [3, 4])
def test_a_static_step_computes_what_a_plain_one_does(
    kind: str, fields: dict[str, Any], rows: int, make_model: Callable[..., Any]
) -> None:
    student = perturb(build_student(make_model(kind, **fields), small_config()))
    lengths = [7, 5, 1]
    prompts = [list(range(20, 20 + length)) for length in lengths]
    with student.mode("rollout"), torch.no_grad():
        plain, static = (decoder.Batch(student, "rollout", size, 32) for size in (3, 4))
        for batch in (plain, static):
            batch.begin(lengths)
            batch.read(prompts, slice(0, 3))
        for end in range(8, 16):
            tokens = torch.tensor([end, 2 * end, 3 * end])
            expected = plain.step(tokens, end)
            static.aim(tokens, end)
            found = static.static_step(rows, 24)[:3]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(("kind", "fields"), SHAPES, ids=["llama", "qwen3", "window"])
@pytest.mark.parametrize("stops", [frozenset(), STOPS], ids=["to the end", "rows leave"])
def test_replayed_steps_write_the_plain_tokens(
    kind: str,
    fields: dict[str, Any],
    stops: frozenset[int],
    make_model: Callable[..., Any],
    recorded: Graphs,
    recorder: Recorder,
) -> None:
    student = perturb(build_student(make_model(kind, **fields), small_config()))
    plain = written(student, None, stops=stops)
    assert written(student, recorded, stops=stops) == plain
    assert recorded.fault is None
    steps = max(map(len, plain)) - 1
    assert recorder.replayed == steps
    assert 1 < recorder.recorded < steps


def test_the_traced_log_probabilities_are_the_plain_ones(student: Student, recorded: Graphs) -> None:
    found = []
    for by in (None, recorded):
        trace = Trace()
        ids = Rollouts(student, "native", by).sample(
            PROMPTS, DRAWS, sampler(), "rollout", lambda: None, trace
        )
        found.append([value for row in trace.log_probs(ids) for value in row])
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_graphs_outlive_an_update_of_the_weights_in_place(
    student: Student, recorded: Graphs, recorder: Recorder
) -> None:
    to_the_end: frozenset[int] = frozenset()
    first = written(student, recorded, stops=to_the_end)
    recordings = recorder.recorded
    perturb(student, seed=8)
    plain = written(student, None, stops=to_the_end)
    assert written(student, recorded, stops=to_the_end) == plain != first
    assert recorder.recorded == recordings


def test_graphs_are_dropped_when_the_weights_lie_elsewhere(
    student: Student, recorded: Graphs, recorder: Recorder
) -> None:
    plain = written(student, recorded)
    recordings = recorder.recorded
    kept = [linear.made for linear in student.linears.values()]  # so that no new one gets an old one's place
    student.free_merged()
    assert written(student, recorded) == plain
    assert recorder.recorded == 2 * recordings
    assert all(linear.made is not old for linear, old in zip(student.linears.values(), kept, strict=True))


def test_a_larger_batch_gets_a_larger_cache_and_a_smaller_one_keeps_it(
    student: Student, recorded: Graphs, recorder: Recorder
) -> None:
    assert written(student, recorded, PROMPTS[:2]) == written(student, None, PROMPTS[:2])
    few = recorder.recorded
    assert written(student, recorded) == written(student, None)
    many = recorder.recorded
    assert many > few
    assert written(student, recorded) == written(student, None)
    assert recorder.recorded == many
    assert written(student, recorded, PROMPTS[3:4]) == written(student, None, PROMPTS[3:4])


def test_other_modes_are_plain_and_leave_the_graphs(
    student: Student, recorded: Graphs, recorder: Recorder
) -> None:
    Rollouts(student, "native", recorded).sample(PROMPTS, DRAWS, sampler(), "teacher")
    assert recorder.recorded == 0


def test_small_memory_keeps_neither_graphs_nor_cache(
    tiny_llama: Any, recorded: Graphs, recorder: Recorder
) -> None:
    student = perturb(build_student(tiny_llama, small_config(base_memory="small")))
    plain = written(student, None)
    assert written(student, recorded) == plain
    assert recorded._batch is None
    assert not recorded._recorded
    assert recorder.recorded
    assert all(linear.made is None for linear in student.linears.values())


def _fails(step: Callable[[], Any]) -> Any:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")


def _is_off(step: Callable[[], Any]) -> Any:
    logits = step()
    return lambda: logits.add_(0.1 * logits.abs().max()), logits


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            _fails,
            "a step cannot be recorded, got CUDA error: operation not permitted when stream",
        ),
        (_is_off, "off the plain one's logits"),
    ],
)
def test_graphs_that_fail_give_way_to_plain_steps(
    record: Any, said: str, student: Student, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = written(student, None)
    rollouts = Rollouts(student, "auto", Graphs(lambda: record))
    assert rollouts.how == "native, CUDA graphs"
    for _ in range(2):
        assert rollouts.sample(PROMPTS, DRAWS, sampler(), "rollout") == plain
    out = capsys.readouterr().out
    assert out.startswith("rollouts without CUDA graphs: ")
    assert said in out
    assert len(out.splitlines()) == 1, "said once"
    assert rollouts.how == "native"


def test_a_value_of_the_host_in_a_step_would_be_found(
    student: Student, recorded: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tape is for: a slot that Python names stays what it was at the recording."""
    real = decoder.Batch.aim

    def aim(self: decoder.Batch, tokens: Any, end: int) -> None:
        real(self, tokens, end)
        self.index = torch.tensor([end - 1])  # another tensor at each step

    monkeypatch.setattr(decoder.Batch, "aim", aim)
    with pytest.raises(UsageError, match="the first batch disagrees with a plain forward at token"):
        written(student, recorded)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("kind", "fields"), SHAPES, ids=["llama", "qwen3", "window"])
def test_cuda_graphs_write_the_plain_tokens(
    kind: str, fields: dict[str, Any], make_model: Callable[..., Any]
) -> None:
    student = perturb(build_student(make_model(kind, **fields).to("cuda"), small_config()))
    ours = Graphs(CudaRecorder)
    for seed in (8, 9):
        assert written(student, ours) == written(student, None)
        perturb_on_cuda(student, seed)
    assert ours.fault is None
    assert ours._recorded


def perturb_on_cuda(student: Student, seed: int) -> None:
    generator = torch.Generator("cuda").manual_seed(seed)
    with torch.no_grad():
        for parameter in student.lora_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, device="cuda"))
