"""Sampling against transformers' own generate, and its independence of company and settings of the model."""

from __future__ import annotations

import pytest
import torch

from trainer import decoder, plain
from trainer.config import TrainConfig
from trainer.counters import Stream
from trainer.flags import UsageError
from trainer.noise import Draw, Sampler
from trainer.rollout import Rollouts, disagreement, sample, stop_tokens
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


@pytest.mark.parametrize("mode", ["rollout", "student"])
def test_gradient_checkpointing_keeps_the_cache_in_rollouts(tiny_llama, mode):
    """Bug 16: without a cache a decode step reads the whole sequence again, or its last token alone."""
    config = TrainConfig(group_size=32, mixed_precision="fp32", lora_r=4, gradient_checkpointing=True)
    student = build_student(tiny_llama, config)
    widths: list[int] = []
    student.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    sample(student, PROMPTS, DRAWS, sampler(max_new_tokens=4, stops=frozenset()), mode)
    assert widths[:4] == [5, 1, 1, 1]
    assert student.model.training, "as it was"
    assert len(widths) == 5, "and one forward more, which checks the first batch"


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


SHAPES = {
    "llama": {},
    "qwen3": {},
    "qwen3 with a window": {
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
MANY = [tuple(range(10, 10 + length)) for length in (3, 1, 9, 40, 5, 40, 2, 17)]
MANY_DRAWS = [Draw(0, number) for number in range(len(MANY))]


def student_of(make_model, shape):
    config = TrainConfig(group_size=32, mixed_precision="fp32", lora_r=4)
    return build_student(make_model(shape.split()[0], **SHAPES[shape]), config)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stops", [frozenset(), frozenset(range(0, 320, 9))])
def test_the_decoder_writes_what_its_plain_twin_does(shape, stops, make_model, monkeypatch):
    monkeypatch.setattr(decoder, "WORTH_A_FORWARD", 30)
    student = student_of(make_model, shape)
    settings = sampler(stops=stops, max_new_tokens=16, min_new_tokens=2)
    both = [Rollouts(student, engine) for engine in ("native", "plain")]
    ours, theirs = (one.sample(MANY, MANY_DRAWS, settings, "rollout") for one in both)
    assert both[0].reason is None
    assert ours == theirs
    assert len({len(completion) for completion in ours}) == (1 if not stops else len({*map(len, ours)}))


def test_who_ends_leaves_the_batch(student):
    rows: list[int] = []
    student.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    settings = sampler(stops=frozenset(range(0, 320, 4)), max_new_tokens=16)
    written = decoder.decode(student, MANY, MANY_DRAWS, settings, "rollout", lambda: None)
    longer = [sum(len(one) > count for one in written) for count in range(1, max(map(len, written)))]
    assert rows[-len(longer) :] == longer
    assert longer[-1] < len(MANY)


@pytest.mark.parametrize(
    ("lengths", "cuts"),
    [
        ([5], [(0, 1)]),
        ([5, 4, 1], [(0, 3)]),
        ([300, 299, 200, 100], [(0, 2), (2, 4)]),
        ([3000, 3000, 2900], [(0, 1), (1, 2), (2, 3)]),
        ([5000, 10], [(0, 1), (1, 2)]),
    ],
)
def test_prompts_are_read_in_passes_with_little_padding(lengths, cuts):
    assert [(one.start, one.stop) for one in decoder.prefill_chunks(lengths)] == cuts


@pytest.mark.parametrize(
    ("stay", "size", "moves"),
    [([0, 1, 2], 3, []), ([0, 1], 3, []), ([2], 3, [(0, 2)]), ([1, 3, 4], 6, [(0, 3), (2, 4)])],
)
def test_holes_are_filled_from_behind(stay, size, moves):
    assert decoder.fill_holes(stay, size) == moves


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"_attn_implementation": "eager"}, "attention is eager"),
        ({"num_kv_shared_layers": 2}, "layers share keys"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of linear_attention"),
        ({"sliding_window": 63}, "a window of 63 tokens"),
        ({"sliding_window": 64}, None),
    ],
)
def test_models_that_the_decoder_does_not_serve(fields, reason, student):
    for name, value in fields.items():
        setattr(student.model.config, name, value)
    found = decoder.unsupported(student, 64)
    assert found is None if reason is None else reason in found


def test_such_a_model_is_decoded_plainly_or_refused(student, capsys):
    student.model.config.num_kv_shared_layers = 1
    rollouts = Rollouts(student)
    plainly = plain.decode(student, PROMPTS, DRAWS, sampler(), "teacher", lambda: None)
    assert rollouts.sample(PROMPTS, DRAWS, sampler(), "teacher") == plainly
    assert rollouts.reason == "layers share keys and values"
    assert capsys.readouterr().out.startswith("rollouts by the plain decoder: layers share")
    with pytest.raises(UsageError, match="got layers share keys and values; give plain"):
        Rollouts(student, "native").sample(PROMPTS, DRAWS, sampler(), "teacher")


def test_a_decoder_that_errs_is_found_out_in_the_first_batch(student, monkeypatch):
    right = plain.decode(student, MANY, MANY_DRAWS, sampler(), "teacher", lambda: None)
    assert disagreement(student, MANY, MANY_DRAWS, sampler(), "teacher", right) is None
    real = decoder.Batch.step
    monkeypatch.setattr(decoder.Batch, "step", lambda self, tokens, end: real(self, tokens, end) * 0.5)
    rollouts = Rollouts(student)
    assert rollouts.sample(MANY, MANY_DRAWS, sampler(), "teacher") == right
    assert "the first batch disagrees with a plain forward at token" in rollouts.reason
