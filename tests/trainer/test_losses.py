"""The loss against a float64 reference of its own, against TRL, and against the mistakes others made."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from trainer import jsd
from trainer.jsd import jsd_and_grad_
from trainer.losses import fused_jsd, generalized_jsd

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
TEMPERATURES = [1.0, 0.7]
N, H, V = 13, 8, 37


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def _kl(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return (a * np.log(a / b)).sum(-1)


def reference(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> NDArray[np.float64]:
    """The definition in probability space, float64, no log tricks: losses of the rows."""
    s, p = (_softmax(logits.double().numpy() / temperature) for logits in (student, teacher))
    if beta == 0:
        return _kl(p, s)
    if beta == 1:
        return _kl(s, p)
    m = beta * p + (1 - beta) * s
    return beta * _kl(p, m) + (1 - beta) * _kl(s, m)


def reference_grad(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    """Central differences of `reference`: a gradient that shares nothing with closed forms or autograd."""
    step, grad = 1e-5, torch.zeros_like(student, dtype=torch.float64)
    for column in range(student.shape[1]):
        moved = torch.zeros_like(grad)
        moved[:, column] = step
        up = reference(student.double() + moved, teacher, beta, temperature)
        down = reference(student.double() - moved, teacher, beta, temperature)
        grad[:, column] = torch.from_numpy((up - down) / (2 * step))
    return grad


@pytest.fixture
def case() -> dict[str, Tensor]:
    """Hidden states and heads of a student and a wider teacher; their logits spread over about ±10."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "student_hidden_NH": normal(N, H).requires_grad_(),
        "student_head_VH": normal(V, H),
        "teacher_hidden_NH": normal(N, H + 3),
        "teacher_head_VH": normal(V, H + 3),
    }


def _logits(case: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    student = case["student_hidden_NH"].detach() @ case["student_head_VH"].T
    return student, case["teacher_hidden_NH"] @ case["teacher_head_VH"].T


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", BETAS)
def test_both_forms_equal_the_float64_reference(
    case: dict[str, Tensor], beta: float, temperature: float
) -> None:
    student, teacher = _logits(case)
    expected = reference(student, teacher, beta, temperature)

    rows = generalized_jsd(student, teacher, beta, temperature)
    fused = fused_jsd(**case, beta=beta, temperature=temperature)

    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fused.item(), expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", BETAS)
def test_both_gradients_equal_finite_differences_and_float64_autograd(
    case: dict[str, Tensor], beta: float, temperature: float
) -> None:
    student, teacher = _logits(case)
    hidden = case["student_hidden_NH"]
    expected = reference_grad(student, teacher, beta, temperature) @ case["student_head_VH"].double()

    (3 * fused_jsd(**case, beta=beta, temperature=temperature)).backward()
    wide = hidden.detach().double().requires_grad_()
    logits = wide @ case["student_head_VH"].double().T
    (3 * generalized_jsd(logits, teacher.double(), beta, temperature).sum()).backward()

    assert hidden.grad is not None
    assert wide.grad is not None
    torch.testing.assert_close(wide.grad, 3 * expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), wide.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # TRL's import alone takes a tenth of the fast suite
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", BETAS)
def test_both_forms_equal_trl(case: dict[str, Tensor], beta: float, temperature: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd")
    student, teacher = _logits(case)
    trl = gkd.GKDTrainer.generalized_jsd_loss(
        student.double(), teacher.double(), beta=beta, temperature=temperature, reduction="none"
    )

    rows = generalized_jsd(student.double(), teacher.double(), beta, temperature)
    fused = fused_jsd(**case, beta=beta, temperature=temperature)

    torch.testing.assert_close(rows, trl.sum(-1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fused.double(), trl.sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("chunk_rows", [1, 4, 13, 100])
def test_fused_jsd_does_not_depend_on_the_chunk(
    case: dict[str, Tensor], beta: float, chunk_rows: int
) -> None:
    hidden = case["student_hidden_NH"]
    whole = fused_jsd(**case, beta=beta, chunk_rows=N)
    (whole_grad,) = torch.autograd.grad(whole, hidden)

    chunked = fused_jsd(**case, beta=beta, chunk_rows=chunk_rows)
    (chunked_grad,) = torch.autograd.grad(chunked, hidden)

    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(chunked_grad, whole_grad, rtol=1e-5, atol=1e-5)


def test_mixture_is_of_probabilities_not_of_their_logarithms() -> None:
    """Bug 1 (trl #2202): the mixture in log space. Here P = (1/2, 1/2), S = (1/4, 3/4), M = (3/8, 5/8)."""
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    kl_p = 0.5 * np.log(0.5 / 0.375) + 0.5 * np.log(0.5 / 0.625)
    kl_s = 0.25 * np.log(0.25 / 0.375) + 0.75 * np.log(0.75 / 0.625)

    loss = generalized_jsd(student, teacher, beta=0.5, temperature=1.0).item()

    assert loss == pytest.approx(0.5 * kl_p + 0.5 * kl_s, rel=1e-6)


def test_beta_weighs_the_teacher_and_its_ends_are_the_two_kls() -> None:
    """Bug 2 (trl #3043): roles of β swapped in M, and β = 0 or 1 gave 0."""
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.1, 0.9]]).log()
    forward = 0.5 * np.log(0.5 / 0.1) + 0.5 * np.log(0.5 / 0.9)
    reverse = 0.1 * np.log(0.1 / 0.5) + 0.9 * np.log(0.9 / 0.5)
    m = (0.9 * 0.5 + 0.1 * 0.1, 0.9 * 0.5 + 0.1 * 0.9)
    kl_p = 0.5 * np.log(0.5 / m[0]) + 0.5 * np.log(0.5 / m[1])
    kl_s = 0.1 * np.log(0.1 / m[0]) + 0.9 * np.log(0.9 / m[1])

    losses = {beta: generalized_jsd(student, teacher, beta, 1.0).item() for beta in (0.0, 0.9, 1.0)}

    assert losses[0.0] == pytest.approx(forward, rel=1e-6)
    assert losses[1.0] == pytest.approx(reverse, rel=1e-6)
    assert losses[0.9] == pytest.approx(0.9 * kl_p + 0.1 * kl_s, rel=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_fused_jsd_is_a_sum_over_rows_and_nothing_is_divided(case: dict[str, Tensor], beta: float) -> None:
    """Bug 4 (trl #4105): batchmean divided by B·T in one version and by B in another."""
    once = fused_jsd(**case, beta=beta)
    (once_grad,) = torch.autograd.grad(once, case["student_hidden_NH"])
    twice = {name: value if "head" in name else torch.cat([value, value]) for name, value in case.items()}

    doubled = fused_jsd(**twice, beta=beta)
    (doubled_grad,) = torch.autograd.grad(doubled, case["student_hidden_NH"])

    torch.testing.assert_close(doubled, 2 * once)
    torch.testing.assert_close(doubled_grad, 2 * once_grad)


@pytest.mark.parametrize("beta", BETAS)
def test_equal_models_lose_nothing_at_any_temperature(case: dict[str, Tensor], beta: float) -> None:
    """Bug 9 (trl #5731): half cross-entropy in the loss, and a temperature of 0.9 nobody asked for."""
    hidden, head = case["student_hidden_NH"], case["student_head_VH"]
    for temperature in TEMPERATURES:
        loss = fused_jsd(hidden, head, hidden.detach(), head, beta, temperature)
        (grad,) = torch.autograd.grad(loss, hidden)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert grad.abs().max().item() < 1e-6
    student, teacher = _logits(case)
    default = fused_jsd(**case, beta=beta)
    assert default.item() == pytest.approx(reference(student, teacher, beta, 1.0).sum(), rel=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_rows_left_out_count_for_nothing_even_when_they_are_nan(case: dict[str, Tensor], beta: float) -> None:
    """Bug 11 (Liger #974, #862): masked positions were trained, and their NaN spread."""
    keep = torch.arange(N) % 3 == 0
    poisoned = case["student_hidden_NH"].detach().clone()
    poisoned[~keep] = float("nan")
    poisoned.requires_grad_()

    loss = fused_jsd(
        poisoned[keep],
        case["student_head_VH"],
        case["teacher_hidden_NH"][keep],
        case["teacher_head_VH"],
        beta,
    )
    loss.backward()

    student, teacher = _logits(case)
    expected = reference(student[keep], teacher[keep], beta, 1.0).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert poisoned.grad is not None
    assert torch.count_nonzero(poisoned.grad[~keep]) == 0
    assert torch.isfinite(poisoned.grad).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_bf16_logits_are_computed_with_in_float32(
    case: dict[str, Tensor], beta: float, temperature: float
) -> None:
    """Bug 12 (Liger): log_softmax in bf16, a few percent off. Here logits and gradient alone are bf16."""
    student, teacher = (logits.bfloat16() for logits in _logits(case))
    expected = reference(student, teacher, beta, temperature)
    expected_grad = reference_grad(student, teacher, beta, temperature)
    in_bf16 = torch.log_softmax(student, -1).exp().sum(-1).float()
    assert (in_bf16 - 1).abs().max() > 1e-4, "the case must be one where bf16 shows"

    grad = student.clone()
    losses = jsd_and_grad_(grad, teacher, beta, temperature)

    assert losses.dtype == torch.float32
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("has_bf16_units", [True, False])
@pytest.mark.parametrize("beta", BETAS)
def test_bf16_heads_give_the_loss_of_their_product_with_and_without_bf16_units(
    case: dict[str, Tensor], beta: float, has_bf16_units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsd, "_widened", lambda head_VH: not has_bf16_units)
    monkeypatch.setattr(jsd, "SLICE_ENTRIES", 10)
    low = {name: value.detach().bfloat16() for name, value in case.items()}
    hidden = low["student_hidden_NH"].requires_grad_()
    wide = {name: value.detach().double() for name, value in low.items()}
    student = wide["student_hidden_NH"] @ wide["student_head_VH"].T
    teacher = wide["teacher_hidden_NH"] @ wide["teacher_head_VH"].T

    loss = fused_jsd(**low, beta=beta)
    loss.backward()

    # With units the logits are rounded to bf16 before the loss; the wide way rounds the result alone.
    tolerance = 2e-2 if has_bf16_units else 1e-5
    assert loss.item() == pytest.approx(reference(student, teacher, beta, 1.0).sum(), rel=tolerance)
    expected = reference_grad(student, teacher, beta, 1.0) @ wide["student_head_VH"]
    assert hidden.grad is not None
    error = (hidden.grad.double() - expected).norm() / expected.norm()
    assert error < (2e-2 if has_bf16_units else 2**-8)


@pytest.mark.parametrize("beta", BETAS)
def test_logits_go_through_the_kernel_in_blocks(
    case: dict[str, Tensor], beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = _logits(case)
    whole, losses = student.clone(), jsd_and_grad_(student.clone(), teacher.clone(), beta, 0.7)
    jsd_and_grad_(whole, teacher.clone(), beta, 0.7)

    monkeypatch.setattr(jsd, "BLOCK_ELEMENTS", 5 * V)
    in_blocks = student.clone()

    assert torch.equal(jsd_and_grad_(in_blocks, teacher, beta, 0.7), losses)
    assert torch.equal(in_blocks, whole)


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in (result,) if isinstance(result, Tensor) else ():
            self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return result


def test_no_logits_beyond_a_chunk_are_ever_made() -> None:
    rows, vocabulary = 40, 500
    hidden, head = torch.randn(rows, 3, requires_grad=True), torch.randn(vocabulary, 3)
    with _Largest() as largest:
        fused_jsd(hidden, head, torch.randn(rows, 3), head, 0.5, chunk_rows=8).backward()
    # Five rows of float32 scratch for each row of a block, which is no more than the chunk.
    assert largest.elements <= 5 * 8 * vocabulary


def test_extreme_logits_keep_loss_and_gradient() -> None:
    student, teacher = torch.tensor([[1e4, -1e4, 3.0]]), torch.tensor([[1e4, 9e3, -1e4]])
    for beta in BETAS:
        grad = student.clone()
        loss = jsd_and_grad_(grad, teacher.clone(), beta, 1.0)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(grad).all()
        assert loss.item() == pytest.approx(0, abs=1e-6), "both are certain of the same token"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    vocabulary=st.integers(2, 70),
    chunk_rows=st.integers(1, 12),
    beta=st.floats(0, 1),
    temperature=st.floats(0.25, 4),
    spread=st.floats(0, 8),
)
def test_any_loss_is_the_references_and_within_its_bounds(
    seed: int, rows: int, vocabulary: int, chunk_rows: int, beta: float, temperature: float, spread: float
) -> None:
    """0 ≤ JSD_β ≤ H(β), the entropy of a coin of bias β; independent of the chunk."""
    drawn = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(rows, vocabulary, generator=drawn) for _ in range(2))
    hidden, eye = student.clone().requires_grad_(), torch.eye(vocabulary)

    loss = fused_jsd(hidden, eye, teacher, eye, beta, temperature, chunk_rows)
    loss.backward()

    expected = reference(student, teacher, beta, temperature).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert loss.item() >= -1e-5
    if 0 < beta < 1:
        entropy = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
        assert loss.item() <= rows * entropy + 1e-5
    assert hidden.grad is not None
    wanted = reference_grad(student, teacher, beta, temperature)
    torch.testing.assert_close(hidden.grad.double(), wanted, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_fused_jsd_multiplies_three_times_and_never_for_the_head(
    case: dict[str, Tensor], beta: float
) -> None:
    """Bug 12 (Liger): a [V, H] gradient for a frozen head and one GEMM more. Ours: 6·N·H·V in all."""
    case["teacher_hidden_NH"], case["teacher_head_VH"] = torch.randn(N, H), torch.randn(V, H)
    with FlopCounterMode(display=False) as counter:
        fused_jsd(**case, beta=beta, chunk_rows=5).backward()
    assert counter.get_total_flops() == 6 * N * H * V

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fused_jsd(**case, beta=beta, chunk_rows=5)
    assert counter.get_total_flops() == 4 * N * H * V


def test_unequal_vocabularies_are_refused_with_both_sizes(case: dict[str, Tensor]) -> None:
    """Bug 18 (trl #2215): 151,936 against 152,064 died deep inside with a shape error."""
    case["teacher_head_VH"] = torch.randn(V + 4, H + 3)
    with pytest.raises(ValueError, match=r"^loss: .* one vocabulary, got 41 and 37 entries; distil from"):
        fused_jsd(**case, beta=0.5)
    with pytest.raises(ValueError, match=r"^loss: .* one vocabulary, got 41 and 37 entries; distil from"):
        generalized_jsd(torch.zeros(2, 37), torch.zeros(2, 41), 0.5)


def test_heads_that_would_be_trained_are_refused(case: dict[str, Tensor]) -> None:
    case["student_head_VH"].requires_grad_()
    with pytest.raises(ValueError, match="heads must be frozen"):
        fused_jsd(**case, beta=0.5)


@pytest.mark.parametrize(
    ("beta", "temperature", "message"),
    [
        pytest.param(-0.1, 1.0, "beta: must lie in", id="beta below 0"),
        pytest.param(1.1, 1.0, "beta: must lie in", id="beta above 1"),
        pytest.param(float("nan"), 1.0, "beta: must lie in", id="beta nan"),
        pytest.param(0.5, 0.0, "loss_temperature: must be positive", id="temperature 0"),
    ],
)
def test_parameters_out_of_range_are_refused(
    case: dict[str, Tensor], beta: float, temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fused_jsd(**case, beta=beta, temperature=temperature)


def test_rows_of_teacher_and_student_must_match(case: dict[str, Tensor]) -> None:
    case["teacher_hidden_NH"] = case["teacher_hidden_NH"][:-1]
    with pytest.raises(ValueError, match="same rows, got 12 and 13"):
        fused_jsd(**case, beta=0.5)


def test_no_rows_give_zero_and_a_zero_gradient(case: dict[str, Tensor]) -> None:
    hidden = case["student_hidden_NH"]
    loss = fused_jsd(
        hidden[:0], case["student_head_VH"], case["teacher_hidden_NH"][:0], case["teacher_head_VH"], 0.5
    )
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert torch.count_nonzero(hidden.grad) == 0


@pytest.mark.parametrize("beta", BETAS)
def test_saturated_softmaxes_stay_finite(beta: float) -> None:
    """Probabilities that underflow float32 keep a finite loss and gradient."""
    student, teacher = torch.tensor([[400.0, 0.0, -400.0]]), torch.tensor([[-400.0, 0.0, 400.0]])
    hidden = student.clone().requires_grad_()
    loss = fused_jsd(hidden, torch.eye(3), teacher, torch.eye(3), beta)
    loss.backward()
    assert torch.isfinite(loss)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()
    assert loss.item() == pytest.approx(generalized_jsd(student, teacher, beta).item())


@pytest.mark.parametrize("beta", BETAS)
def test_a_nan_that_counts_shows_in_the_loss(case: dict[str, Tensor], beta: float) -> None:
    """Divergence must not hide: the training loop looks at the loss."""
    broken = case["student_hidden_NH"].detach().clone()
    broken[4, 2] = float("nan")
    case["student_hidden_NH"] = broken
    assert torch.isnan(fused_jsd(**case, beta=beta))
