"""Sampling against transformers' own generate, and its independence of company and settings of the model."""

from __future__ import annotations

import pytest
import torch

from trainer.config import TrainConfig
from trainer.counters import Stream
from trainer.rollout import Draw, Sampler, sample, stop_tokens
from trainer.student import build_student

PROMPTS = [(10, 20, 30), (40,), (50, 60, 70, 80, 90)]
DRAWS = [Draw(3, number) for number in range(3)]


def sampler(**changes) -> Sampler:
    settings = {
        "seed": 1,
        "stream": Stream.ROLLOUT,
        "temperature": 0.9,
        "max_new_tokens": 12,
        "min_new_tokens": 0,
        "stops": frozenset({258}),
    }
    return Sampler(**{**settings, **changes})


@pytest.fixture
def student(tiny_llama):
    return build_student(tiny_llama, TrainConfig(group_size=32, mixed_precision="fp32", lora_r=4))


def test_greedy_equals_generate_of_transformers(student):
    ours = sample(student, PROMPTS, DRAWS, sampler(temperature=0.0), "teacher")
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        with student.mode("teacher"):
            theirs = student.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=12,
                do_sample=False,
            )
        assert completion == theirs[0, len(prompt) :].tolist()


def test_tokens_do_not_depend_on_order_or_company(student):
    together = sample(student, PROMPTS, DRAWS, sampler(), "rollout")
    backwards = sample(student, PROMPTS[::-1], DRAWS[::-1], sampler(), "rollout")
    alone = [sample(student, [p], [d], sampler(), "rollout")[0] for p, d in zip(PROMPTS, DRAWS, strict=True)]
    assert together == backwards[::-1] == alone


def test_another_step_sample_or_seed_gives_other_tokens(student):
    base = sample(student, PROMPTS[:1], [Draw(0, 0)], sampler(), "rollout")
    for draw, settings in ((Draw(1, 0), {}), (Draw(0, 1), {}), (Draw(0, 0), {"seed": 2})):
        assert sample(student, PROMPTS[:1], [draw], sampler(**settings), "rollout") != base


def test_the_models_own_generation_config_never_leaks_in(student):
    """Bugs 14 and 15: Qwen3 ships top_p and top_k, which would truncate the policy."""
    before = sample(student, PROMPTS, DRAWS, sampler(temperature=5.0), "rollout")
    config = student.model.generation_config
    config.do_sample, config.top_k, config.top_p, config.temperature = True, 1, 0.01, 0.01
    assert sample(student, PROMPTS, DRAWS, sampler(temperature=5.0), "rollout") == before


def test_a_completion_ends_with_its_stop_token_and_not_before_the_minimum(student):
    stops = frozenset(range(320))
    assert [len(c) for c in sample(student, PROMPTS, DRAWS, sampler(stops=stops), "rollout")] == [1, 1, 1]
    few = frozenset(range(0, 320, 2))
    for completion in sample(student, PROMPTS, DRAWS, sampler(stops=few, min_new_tokens=4), "rollout"):
        assert len(completion) >= 5 or len(completion) == 12
        assert all(token not in few for token in completion[:-1])


def test_gradient_checkpointing_keeps_the_cache_in_rollouts(tiny_llama):
    """Bug 16: without a cache every decode step would read the whole sequence again."""
    config = TrainConfig(group_size=32, mixed_precision="fp32", lora_r=4, gradient_checkpointing=True)
    student = build_student(tiny_llama, config)
    widths: list[int] = []
    student.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    sample(student, PROMPTS, DRAWS, sampler(max_new_tokens=4, stops=frozenset()), "rollout")
    assert widths == [5, 1, 1, 1]


def test_check_is_called_between_decode_steps_and_may_end_them(student):
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(student, PROMPTS, DRAWS, sampler(stops=frozenset()), "rollout", check)
    assert len(calls) == 3


def test_stop_tokens_are_the_tokenizers_and_all_of_the_models(student):
    student.model.generation_config.eos_token_id = [258, 256]
    assert stop_tokens(student, 257) == frozenset({256, 257, 258})
