"""Text scores against a naive float64 reference that keeps all logits."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.trainer.worlds import ALONE, played
from trainer import perplexity
from trainer.attempt import Diverged
from trainer.config import TrainConfig
from trainer.distributed import World
from trainer.flags import UsageError
from trainer.perplexity import TextScorer, TokenScores, text_tokens, windows
from trainer.quant import quantise_weight
from trainer.student import Student, build_student
from trainer.text import Text, load_text, split_topics, text_sha256, topics_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

WINDOW, STRIDE, TOKENS = 64, 32, 150


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (TOKENS,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def original(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_model("llama", seed=3)


@pytest.fixture(scope="module")
def student(original: PreTrainedModel) -> Student:
    built = build_student(copy.deepcopy(original), TrainConfig(group_size=32, lora_r=4))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for linear in built.linears.values():
            linear.lora_B.copy_(torch.randn(linear.lora_B.shape, generator=generator) * 0.02)
    return built


def dense_weights(student: Student, mode: str) -> dict[str, torch.Tensor]:
    """The linears' weights in float64 by the definitions of the modes, from W, A and B alone."""
    weights: dict[str, torch.Tensor] = {}
    for name, linear in student.linears.items():
        weight = linear.weight.detach()
        delta = linear.scale * (linear.lora_B.detach().double() @ linear.lora_A.detach().double())
        quantised = quantise_weight(weight, "int4", 32).weight
        weights[name] = {
            "teacher": weight.double(),
            "ptq": quantised.double(),
            "student": quantised.double() + delta,
            "merged": quantise_weight((weight.double() + delta).float(), "int4", 32).weight.double(),
        }[mode]
    return weights


def naive_log_probs(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [tokens - 1, vocabulary] by Hugging Face's strided loop, all logits in float64."""
    rows: list[torch.Tensor] = []
    previous_end = 1
    for begin in range(0, len(tokens), STRIDE):
        end = min(begin + WINDOW, len(tokens))
        with torch.no_grad():
            logits = model(tokens[begin:end].unsqueeze(0)).logits[0]
        rows.append(torch.log_softmax(logits, -1)[previous_end - 1 - begin : end - 1 - begin])
        previous_end = end
        if end == len(tokens):
            break
    return torch.cat(rows)


def reference(original: PreTrainedModel, student: Student, mode: str, tokens: torch.Tensor) -> torch.Tensor:
    model: Any = copy.deepcopy(original).double()
    for name, weight in dense_weights(student, mode).items():
        model.get_submodule(name).weight.data.copy_(weight)
    return naive_log_probs(model, tokens)


@pytest.mark.parametrize("mode", ["teacher", "ptq", "student", "merged"])
def test_scores_equal_a_naive_float64_loop(
    mode: Any, original: PreTrainedModel, student: Student, tokens: torch.Tensor
) -> None:
    scores = TextScorer(student, tokens, ALONE, WINDOW, STRIDE).score(mode)
    log_q = reference(original, student, mode, tokens)
    log_p = reference(original, student, "teacher", tokens)
    nll = -log_q.gather(1, tokens[1:, None]).squeeze(1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1)
    np.testing.assert_allclose(scores.nll, nll.numpy(), atol=3e-5)
    np.testing.assert_allclose(scores.kl, kl.numpy(), atol=3e-5)
    assert len(scores.nll) == TOKENS - 1


def test_variants_differ_so_that_the_comparison_means_something(
    student: Student, tokens: torch.Tensor
) -> None:
    scorer = TextScorer(student, tokens, ALONE, WINDOW, STRIDE)
    kl = {mode: scorer.score(mode).kl.mean() for mode in ("ptq", "student", "merged")}  # type: ignore[arg-type]
    assert min(kl.values()) > 1e-3
    assert len({round(value, 6) for value in kl.values()}) == 3


def test_scores_do_not_depend_on_the_rows_of_logits_alive(
    student: Student, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TextScorer(student, tokens, ALONE, WINDOW, STRIDE).score("ptq")
    monkeypatch.setattr(perplexity, "LOGITS_BYTES", 7 * 4 * perplexity.LIVE_COPIES * 320)
    parts = TextScorer(student, tokens, ALONE, WINDOW, STRIDE).score("ptq")
    np.testing.assert_allclose(parts.nll, whole.nll, atol=1e-6)
    np.testing.assert_allclose(parts.kl, whole.kl, atol=1e-6)


def test_teacher_runs_once_for_all_variants(
    student: Student, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []
    hidden = student.hidden
    monkeypatch.setattr(student, "hidden", lambda ids, mode: (modes.append(mode), hidden(ids, mode=mode))[1])
    scorer = TextScorer(student, tokens, ALONE, WINDOW, STRIDE)
    for mode in ("teacher", "ptq", "student"):
        scorer.score(mode)  # type: ignore[arg-type]
    steps = len(windows(TOKENS, WINDOW, STRIDE))
    assert [modes.count(mode) for mode in ("teacher", "ptq", "student")] == [steps] * 3


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("mode", ["teacher", "student"])
def test_scores_are_to_the_bit_those_of_one_process(
    student: Student, tokens: torch.Tensor, mode: Any, size: int
) -> None:
    def scores(world: World) -> TokenScores:
        return TextScorer(student, tokens, world, WINDOW, STRIDE).score(mode)

    assert len(windows(TOKENS, WINDOW, STRIDE)) == 4, "some of seven have nothing to do"
    for ours, alone in zip(played(size, scores), scores(ALONE), strict=True):
        np.testing.assert_array_equal(ours, alone)


def test_scores_that_are_not_finite_are_an_error(student: Student, tokens: torch.Tensor) -> None:
    broken = copy.deepcopy(student)
    with torch.no_grad():
        next(iter(broken.linears.values())).lora_B.fill_(float("nan"))
    with pytest.raises(Diverged, match="finite"):
        TextScorer(broken, tokens, ALONE, WINDOW, STRIDE).score("student")


@pytest.mark.parametrize("tokens", [2, 63, 64, 65, 96, 97, 1000, 2048])
def test_windows_score_every_token_but_the_first_once_and_with_context(tokens: int) -> None:
    scored: list[int] = []
    for window in windows(tokens, WINDOW, STRIDE):
        assert window.end - window.start <= WINDOW
        assert window.first > window.start
        scored += range(window.first, window.end)
    assert scored == list(range(1, tokens))


def test_windows_refuse_a_stride_that_leaves_no_context() -> None:
    with pytest.raises(ValueError, match="stride: must be below the window 64, got 64"):
        windows(100, 64, 64)


def test_topics_are_cut_into_two_parts_that_share_nothing() -> None:
    train, heldout = split_topics()
    assert train + "\n\n" + heldout == topics_text()
    assert 0.08 < len(heldout) / len(topics_text()) <= 0.1
    assert heldout[:200] not in train


def test_load_text_hashes_what_it_says() -> None:
    text = load_text("pydoc_topics")
    assert text == Text("pydoc_topics", split_topics()[1], text_sha256(split_topics()[1]))


def test_load_text_reads_local_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" = Heading = \n\n word \n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b" = Heading = \n\n word \n"))
    plain, packed = load_text(str(tmp_path / "a.txt")), load_text(str(tmp_path / "b.txt.gz"))
    assert plain.text == packed.text == " = Heading = \n\n word \n"
    assert plain.sha256 == packed.sha256


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("wikitxt", "must be wikitext, pydoc_topics", id="a misspelt name"),
        pytest.param("missing.txt", "missing.txt: cannot be read", id="a file that is not there"),
    ],
)
def test_load_text_refuses(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_text(name)


def test_text_tokens_are_the_first_of_the_text(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text = Text("t", "abc " * 1000, "")
    whole = text_tokens(text, tiny_tokenizer, None)
    assert len(whole) == 4000
    assert torch.equal(text_tokens(text, tiny_tokenizer, 100), whole[:100])
    with pytest.raises(UsageError, match="64 tokens or more, got 8"):
        text_tokens(Text("t", "abc abc ", ""), tiny_tokenizer, None)
