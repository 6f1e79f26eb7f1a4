"""`--rollout vllm` against a small vllm over transformers: weights, settings, order, traces, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer import fake_vllm
from tests.trainer.students import perturb, small_config
from trainer.config import TrainConfig
from trainer.counters import Stream
from trainer.data import MIN_COMPLETION_ROOM
from trainer.flags import UsageError
from trainer.noise import Draw, Sampler, Trace
from trainer.rollout import Rollouts
from trainer.student import Student, build_student
from trainer.vllm_rollouts import ENVIRONMENT, VllmRollouts, check_served, refusal, seed_of, weights

PROMPTS = [(10, 20, 30), (40,), (50, 60, 70, 80, 90)]
DRAWS = [Draw(3, number) for number in range(3)]
SAMPLER = Sampler(1, Stream.ROLLOUT, 0.7, 12, 2, frozenset(range(200, 259)))


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())


@pytest.fixture
def student(tiny_llama: Any) -> Student:
    return perturb(build_student(tiny_llama, small_config()))


def rollouts(student: Student) -> Rollouts:
    return Rollouts(student, "vllm", vllm=VllmRollouts(student, 0.25))


def logits(student: Student, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return student.hidden(torch.tensor([ids]), mode="rollout")[0] @ student.head("rollout").T


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "fields", [{}, {"quantize_lm_head": True}, {"lora_order": "inside"}, {"base_memory": "small"}], ids=str
)
def test_vllm_computes_with_the_students_merged_weights(
    tied: bool, fields: dict[str, Any], make_model: Any
) -> None:
    model = make_model("qwen3", tie_word_embeddings=tied)
    student = perturb(build_student(model, small_config(**fields)))
    ours = rollouts(student)
    for seed in (1, 2):
        ours.sample(PROMPTS, DRAWS, SAMPLER, "rollout")
        [llm] = fake_vllm.LLM.started
        assert not llm.awake
        assert llm.loads == seed, "loaded anew for each step's rollouts"
        llm.wake_up()
        with student.mode("rollout"):
            llm.apply_model(lambda its: its.load_weights(weights(student)))
            llm.loads -= 1
            expected = logits(student, [1, 2, 3])
        torch.testing.assert_close(llm.model(torch.tensor([[1, 2, 3]])).logits[0], expected)
        llm.sleep(level=2)
        perturb(student, seed)


def test_the_trace_holds_each_tokens_untempered_log_probability(student: Student) -> None:
    trace = Trace()
    written = rollouts(student).sample(PROMPTS, DRAWS, SAMPLER, "rollout", lambda: None, trace)
    for prompt, ids, found in zip(PROMPTS, written, trace.log_probs(written), strict=True):
        log_p = logits(student, [*prompt, *ids]).log_softmax(-1)[len(prompt) - 1 : -1]
        assert found == pytest.approx([float(at[i]) for at, i in zip(log_p, ids, strict=True)], abs=1e-5)
    assert len({len(ids) for ids in written}) > 1


def test_tokens_depend_on_draws_and_not_on_order_or_company(student: Student) -> None:
    ours = rollouts(student)
    together = ours.sample(PROMPTS, DRAWS, SAMPLER, "rollout")
    assert ours.sample(PROMPTS[::-1], DRAWS[::-1], SAMPLER, "rollout") == together[::-1]
    assert ours.sample(PROMPTS[1:2], DRAWS[1:2], SAMPLER, "rollout") == together[1:2]
    assert ours.sample(PROMPTS, [Draw(4, n) for n in range(3)], SAMPLER, "rollout") != together
    assert all(ids[-1] in SAMPLER.stops or len(ids) == 12 for ids in together)
    assert all(not SAMPLER.stops & set(ids[:-1]) and len(ids) > 2 for ids in together)


def test_a_seed_of_its_own_for_each_sequence_and_step() -> None:
    draws = [Draw(step, sample) for step in range(20) for sample in range(20)]
    seeds = {seed_of(SAMPLER, draw) for draw in draws}
    assert len(seeds) == len(draws)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(SAMPLER, draws[7]) == seed_of(SAMPLER, Draw(0, 7))


def test_every_setting_is_ours(student: Student) -> None:
    student.model.generation_config.top_k = 1
    rollouts(student).sample(PROMPTS, DRAWS, SAMPLER, "rollout")
    [llm] = fake_vllm.LLM.started
    assert llm.asked == {
        "generation_config": "vllm",
        "enable_sleep_mode": True,
        "enable_prefix_caching": False,
        "logprobs_mode": "raw_logprobs",
        "gpu_memory_utilization": 0.25,
        "max_model_len": 1024 - MIN_COMPLETION_ROOM + 128,
    }
    assert [params.seed for params in llm.params] == [seed_of(SAMPLER, draw) for draw in DRAWS]
    assert {(p.temperature, p.top_p, p.top_k, p.max_tokens, p.min_tokens) for p in llm.params} == {
        (0.7, 1.0, 0, 12, 2)
    }
    assert all(p.stop_token_ids == sorted(SAMPLER.stops) and p.ignore_eos for p in llm.params)
    assert {name: os.environ[name] for name in ENVIRONMENT} == ENVIRONMENT


def test_other_modes_are_decoded_by_our_own(student: Student) -> None:
    ours = rollouts(student)
    expected = Rollouts(student).sample(PROMPTS, DRAWS, SAMPLER, "teacher")
    assert ours.sample(PROMPTS, DRAWS, SAMPLER, "teacher") == expected
    assert fake_vllm.LLM.started == []
    assert ours.how == "vllm"


def test_check_may_end_it_before_and_after(student: Student) -> None:
    calls: list[int] = []
    rollouts(student).sample(PROMPTS, DRAWS, SAMPLER, "rollout", lambda: calls.append(1))
    assert len(calls) == 2


def test_a_model_that_vllm_does_not_know_is_refused(student: Student) -> None:
    student.model.config.__class__ = type("Odd", (type(student.model.config),), {"model_type": "odd"})
    student.model.config.__class__.from_dict = classmethod(lambda cls, fields: _gpt2())  # type: ignore[attr-defined]
    with pytest.raises(
        UsageError, match=r"vllm cannot serve the model, got Model architectures .*; give native"
    ):
        rollouts(student).sample(PROMPTS, DRAWS, SAMPLER, "rollout")


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8)


@pytest.mark.parametrize(
    ("nproc", "device", "installed", "said"),
    [
        (1, "cuda", True, None),
        (1, "cuda", False, "vllm is not installed, got vllm; take an image built with VARIANT=vllm"),
        (1, "cpu", True, "vllm needs CUDA, got cpu"),
        (2, "cuda", True, "vllm serves a run of one process, got nproc 2"),
    ],
)
def test_runs_that_vllm_cannot_write_for(nproc: int, device: str, installed: bool, said: str | None) -> None:
    found = refusal(TrainConfig(nproc=nproc), device, installed)
    assert found is None if said is None else found is not None and found.startswith(said)


def test_without_vllm_the_message_names_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm")
    with pytest.raises(UsageError, match=r"--rollout: vllm is not installed, .* VARIANT=vllm"):
        check_served(TrainConfig(), "cuda")


@pytest.mark.slow
def test_a_run_without_vllm_ends_as_a_users_fault(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "trainer",
        "train",
        "--rollout",
        "vllm",
        "--output-dir",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert "VARIANT=vllm" in done.stderr
    assert "Traceback" not in done.stderr
