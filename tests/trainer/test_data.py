"""Rows to examples: where the prompt ends, what counts, and the order."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from trainer.config import TrainConfig
from trainer.counters import Stream, generator, gumbel, is_on_policy, permutation
from trainer.data import DataError, TrainData, collate, examples_of, is_heldout, load_rows, micro_batches

CPU = torch.device("cpu")


def chat(*turns: str) -> dict[str, object]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def test_chat_completion_is_the_last_answer_with_its_end_of_turn(tiny_tokenizer):
    (example,) = examples_of(chat("a", "b", "c", "d"), tiny_tokenizer, TrainConfig())
    assert tiny_tokenizer.decode(example.prompt).endswith("c<|im_end|>\n<|im_start|>assistant\n")
    # bug 13: pad is eos here, and the end of turn must still be learnt
    assert tiny_tokenizer.decode(example.completion) == "d<|im_end|>"


def test_messages_after_the_last_answer_are_left_out(tiny_tokenizer):
    (example,) = examples_of(chat("a", "b", "c"), tiny_tokenizer, TrainConfig())
    assert tiny_tokenizer.decode(example.completion) == "b<|im_end|>"


def test_prompt_and_completion_rows_end_with_eos(tiny_tokenizer):
    row = {"prompt": "2+2=", "completion": "4"}
    (example,) = examples_of(row, tiny_tokenizer, TrainConfig())
    assert tiny_tokenizer.decode(example.prompt) == "2+2="
    assert tiny_tokenizer.decode(example.completion) == "4<|im_end|>"


def test_text_is_cut_into_windows_whose_first_tokens_are_the_prompt(tiny_tokenizer):
    config = TrainConfig(max_length=40, prompt_length=8)
    found = examples_of({"text": "x" * 100}, tiny_tokenizer, config)
    assert [(len(e.prompt), len(e.completion)) for e in found] == [(8, 32), (8, 32)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "no assistant message"),
        ({"messages": "hi"}, "list of"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "no assistant message"),
        ({"prompt": "x" * 1020, "completion": "y"}, "fewer than 16 tokens"),
        ({"question": "?"}, "a row needs"),
    ],
    ids=["no answer", "no list", "an answer to nothing", "a prompt that fills the window", "no known field"],
)
def test_a_row_of_no_use_says_why(row, reason, tiny_tokenizer):
    with pytest.raises(DataError, match=reason):
        examples_of(row, tiny_tokenizer, TrainConfig())


def test_five_percent_of_bad_rows_is_an_error_that_counts_them(tiny_tokenizer):
    rows = [chat("hi", "there")] * 90 + [{"messages": []}] * 10
    with pytest.raises(DataError, match=r"10 of 100 \(10 × no assistant"):
        TrainData(rows, tiny_tokenizer, TrainConfig())[0]


def test_few_bad_rows_at_first_do_not_judge_the_whole(tiny_tokenizer):
    """4 % of no use is allowed, whatever the order the seed gives the rows."""
    rows = [chat(f"q{i}", "a") if i % 25 else {"messages": []} for i in range(2000)]
    for seed in range(20):
        data = TrainData(rows, tiny_tokenizer, TrainConfig(seed=seed))
        data[1500]


def test_a_template_that_refuses_a_row_drops_it(tiny_tokenizer):
    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="the chat template refuses it"):
        examples_of(chat("a", "b"), strict, TrainConfig())


def test_files_that_are_not_what_they_say_are_bad_data(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match="no UTF-8"):
        load_rows(TrainConfig(dataset_name=str(tmp_path / "a.jsonl")))
    (tmp_path / "a.parquet").write_bytes(b"oops")
    with pytest.raises(DataError, match="no parquet"):
        load_rows(TrainConfig(dataset_name=str(tmp_path / "a.parquet")))


def test_a_longer_completion_is_cut_to_max_length(tiny_tokenizer):
    (example,) = examples_of(
        {"prompt": "p" * 20, "completion": "c" * 90}, tiny_tokenizer, TrainConfig(max_length=50)
    )
    assert len(example.prompt) + len(example.completion) == 50


def test_order_is_a_permutation_each_epoch_and_a_function_of_the_seed(tiny_tokenizer):
    rows = [{"prompt": f"{i:03d}", "completion": "x"} for i in range(40)]

    def first(seed: int, count: int) -> list[str]:
        data = TrainData(rows, tiny_tokenizer, TrainConfig(seed=seed))
        return [tiny_tokenizer.decode(data[i].prompt) for i in range(count)]

    two_epochs = first(1, 80)
    assert sorted(two_epochs[:40]) == sorted(two_epochs[40:]) == sorted(r["prompt"] for r in rows)
    assert two_epochs[:40] != two_epochs[40:]
    assert first(1, 80) == two_epochs
    assert first(2, 40) != two_epochs[:40]


def test_access_order_does_not_change_what_lies_at_a_position(tiny_tokenizer):
    rows = [{"prompt": f"{i:04d}", "completion": "x"} for i in range(600)]
    straight = TrainData(rows, tiny_tokenizer, TrainConfig())
    jumping = TrainData(rows, tiny_tokenizer, TrainConfig())
    far = jumping[550]
    assert [straight[i] for i in range(551)][550] == far
    assert [jumping[i] for i in range(550)] == [straight[i] for i in range(550)]


def test_held_out_rows_depend_on_the_row_alone_and_are_never_trained_on(tiny_tokenizer):
    rows = [{"prompt": f"{i:05d}", "completion": "x"} for i in range(2000)]
    held = {row["prompt"] for row in rows if is_heldout(row)}
    assert 5 < len(held) < 50
    data = TrainData(rows, tiny_tokenizer, TrainConfig(seed=7))
    trained = {tiny_tokenizer.decode(data[i].prompt) for i in range(2000 - len(held))}
    assert trained == {row["prompt"] for row in rows} - held


def test_collate_keeps_every_completion_token_of_short_and_long_prompts():
    """Bugs 3 and 5: nothing of a prompt counts, and no completion token is lost beside a longer prompt."""
    batch = collate([((1, 2, 3, 4, 5), (6, 7)), ((8,), (9, 10, 11))], pad=9, device=CPU)
    targets = [
        [int(batch.ids_BT[row, t + 1]) for t in range(6) if batch.predicts_BT[row, t]] for row in range(2)
    ]
    assert targets == [[6, 7], [9, 10, 11]]
    assert batch.tokens == 5
    # A token equal to pad (9) inside a sequence is a token; padding is told by position.
    assert batch.ids_BT[1].tolist() == [8, 9, 10, 11, 9, 9, 9]
    assert [row.nonzero().flatten().tolist() for row in batch.predicts_BT] == [[4, 5], [0, 1, 2]]


def test_micro_batches_lose_nothing():
    assert [list(part) for part in micro_batches(range(5), 2)] == [[0, 1], [2, 3], [4]]


def test_local_jsonl_and_its_faults(tmp_path):
    good = tmp_path / "a.jsonl"
    good.write_text(json.dumps({"text": "x"}) + "\n\n")
    assert list(load_rows(TrainConfig(dataset_name=str(good)))) == [{"text": "x"}]
    bad = tmp_path / "b.jsonl"
    bad.write_text('{"text": "x"}\n{oops\n')
    with pytest.raises(DataError, match=r"b\.jsonl:2: is no JSON"):
        load_rows(TrainConfig(dataset_name=str(bad)))
    with pytest.raises(DataError, match="no such file"):
        load_rows(TrainConfig(dataset_name=str(tmp_path / "c.jsonl")))


def test_a_local_parquet_file_is_read(tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"text": "hello"}]).to_parquet(str(tmp_path / "a.parquet"))
    rows = load_rows(TrainConfig(dataset_name=str(tmp_path / "a.parquet")))
    assert dict(rows[0]) == {"text": "hello"}


def test_counters_are_pure_functions_of_their_key():
    assert generator(1, Stream.ROLLOUT, 2, 3, 4).random() == generator(1, Stream.ROLLOUT, 2, 3, 4).random()
    draws = {
        generator(seed, stream, step, sample, position).random()
        for seed in (1, 2)
        for stream in Stream
        for step in (0, 1)
        for sample in (0, 1)
        for position in (0, 1)
    }
    assert len(draws) == 2 * len(Stream) * 8
    assert permutation(3, 0, 9).tolist() == permutation(3, 0, 9).tolist()


@pytest.mark.parametrize("lmbda", [0.0, 0.25, 1.0])
def test_the_share_of_on_policy_sequences_is_lmbda(lmbda):
    share = sum(is_on_policy(5, step, sample, lmbda) for step in range(100) for sample in range(100)) / 10_000
    assert share == pytest.approx(lmbda, abs=0.02 if 0 < lmbda < 1 else 0)


def test_gumbel_argmax_samples_the_softmax():
    """Chi-square of 4,000 draws against the probabilities, 3 degrees of freedom: 99.9 % is below 16.3."""
    import numpy as np

    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    counts = np.bincount(
        [int((logits + gumbel(1, Stream.ROLLOUT, 0, i, 0, 4)).argmax()) for i in range(4000)], minlength=4
    )
    expected = 4000 * np.exp(logits)
    assert ((counts - expected) ** 2 / expected).sum() < 16.3
