"""A fast kernel that is wrong, broken or right: what is chosen, what is said, and that no result is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer.flags import UsageError
from trainer.jsd import jsd_and_grad_
from trainer.loss_kernel import CheckedKernel, choose_kernel


def _off(factor: float, *, loss: bool) -> Callable[..., Tensor]:
    def kernel(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
        losses = jsd_and_grad_(student, teacher, beta, temperature)
        (losses if loss else student).mul_(factor)
        return losses

    return kernel


def _raising(error: Exception) -> Callable[..., Tensor]:
    def kernel(*_: object) -> Tensor:
        raise error

    return kernel


def _nan(student: Tensor, *_: object) -> Tensor:
    student.fill_(float("nan"))
    return torch.full((len(student),), float("nan"))


def _logits(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return torch.randn(12, 30, generator=drawn).to(dtype), torch.randn(12, 30, generator=drawn).to(dtype)


@pytest.mark.parametrize(
    ("fast", "dtype", "said"),
    [
        pytest.param(_off(1.0, loss=True), torch.float32, None, id="right"),
        pytest.param(_off(1.0001, loss=False), torch.float32, None, id="rounded"),
        pytest.param(_off(1.005, loss=False), torch.bfloat16, None, id="rounded to bf16"),
        pytest.param(_off(1.01, loss=True), torch.float32, "fast one's loss must be", id="loss off"),
        pytest.param(_off(0.99, loss=False), torch.float32, "fast one's gradient must be", id="gradient off"),
        pytest.param(_nan, torch.float32, "fast one's loss must be", id="nan"),
        pytest.param(
            _raising(RuntimeError("no compiler\nx")),
            torch.float32,
            "cannot run, got no compiler",
            id="raises",
        ),
        pytest.param(
            _raising(ImportError("no triton")), torch.float32, "cannot run, got no triton", id="no triton"
        ),
    ],
)
def test_a_fast_kernel_runs_if_it_agrees_and_gives_way_with_a_word_if_not(
    fast: Callable[..., Tensor], dtype: torch.dtype, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def counted(student: Tensor, *rest: object) -> Tensor:
        calls.append(len(student))
        return fast(student, *rest)

    kernel = CheckedKernel(counted)
    (student, teacher), (grad, _) = _logits(dtype), _logits(dtype)
    expected = jsd_and_grad_(grad, teacher.clone(), 0.5, 1.0)

    losses = kernel(student, teacher, 0.5, 1.0)
    kernel(*_logits(dtype), 0.5, 1.0)

    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(student.float(), grad.float(), rtol=2e-2, atol=1e-6)
    if said is None:
        assert calls == [8, 12, 12], "checked once, on few rows"
        assert kernel.note is None
    else:
        assert calls == [8]
        assert said in str(kernel.note)
        assert len(caplog.messages) == 1
        assert caplog.messages[0].endswith("the plain one runs")


def test_memory_that_runs_out_is_not_the_kernels_fault() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        CheckedKernel(_raising(torch.OutOfMemoryError("out")))(*_logits(), 0.5, 1.0)


def test_a_nan_of_the_model_is_left_to_the_loop_to_say() -> None:
    kernel = CheckedKernel(jsd_and_grad_)
    student, teacher = _logits()
    student[3, 2] = float("nan")
    assert torch.isnan(kernel(student, teacher, 0.5, 1.0)[3])
    assert kernel.note is None


def test_devices_and_wishes() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_kernel("auto", cpu) is jsd_and_grad_
    assert choose_kernel("torch", cuda) is jsd_and_grad_
    assert isinstance(choose_kernel("auto", cuda), CheckedKernel)
    with pytest.raises(UsageError, match="triton needs CUDA, got cpu"):
        choose_kernel("triton", cpu)
