"""The Triton kernel without a GPU: its arithmetic in the interpreter, and that it builds for real GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
TEMPERATURES = [0.5, 1.0, 2.0]
BLOCK, VOCABULARY = 64, 100


def logits_of(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits [2, 100]; 100 is no multiple of the block."""
    drawn = torch.Generator().manual_seed(3)
    student, teacher = (4 * torch.randn(2, VOCABULARY, generator=drawn) for _ in range(2))
    if name == "extreme":
        student[0, 0], student[0, 99], teacher[0, 99] = 1e4, -1e4, -1e4
        student[1], teacher[1] = -1e4, 1e4
    if name == "equal":
        teacher = student.clone()
    return student.to(dtype), teacher.to(dtype)


def definition(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Losses of the rows and their gradient in float64, by autograd."""
    student = student.double().requires_grad_()
    log_s = torch.log_softmax(student / temperature, -1)
    log_p = torch.log_softmax(teacher.double() / temperature, -1)
    if beta in (0, 1):
        a, b = (log_p, log_s) if beta == 0 else (log_s, log_p)
        losses = (a.exp() * (a - b)).sum(-1)
    else:
        log_m = (beta * log_p.exp() + (1 - beta) * log_s.exp()).clamp(min=1e-300).log()
        losses = (beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_s.exp() * (log_s - log_m)).sum(-1)
    losses.sum().backward()
    assert student.grad is not None
    return losses.detach(), student.grad


def _interpret() -> None:
    """Every case through the interpreter, in a process of its own: it must be chosen before triton loads."""
    from trainer import jsd_triton

    jsd_triton.BLOCK = BLOCK
    found = []
    for name in ("normal", "extreme", "equal"):
        for dtype in (torch.float32, torch.bfloat16):
            for beta in BETAS:
                every = name == "normal" and dtype == torch.float32
                for temperature in TEMPERATURES if every else [0.5]:
                    student, teacher = logits_of(name, dtype)
                    losses, grads = definition(student, teacher, beta, temperature)
                    # Rows of a wider buffer, as the slices of a chunk are.
                    buffer = torch.full((2, VOCABULARY + 5), 7.0, dtype=dtype)
                    mine = buffer[:, :VOCABULARY].copy_(student)
                    got = jsd_triton.jsd_and_grad_(mine, teacher, beta, temperature)
                    found.append(
                        {
                            "case": f"{name} {dtype} beta {beta} temperature {temperature}",
                            "loss": float(((got - losses).abs() / (1e-3 + losses)).max()),
                            "grad": float((mine.double() - grads).abs().max()),
                            "finite": bool(mine.isfinite().all()),
                            "beyond": bool((buffer[:, VOCABULARY:] == 7).all()),
                            "largest": float(grads.abs().max()),
                            "bf16": dtype == torch.bfloat16,
                        }
                    )
    sys.stdout.write(json.dumps(found))


@pytest.fixture(scope="module")
def interpreted() -> list[dict[str, Any]]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cases: list[dict[str, Any]] = json.loads(done.stdout)
    return cases


@pytest.mark.slow
def test_the_arithmetic_is_the_definitions_in_float64(interpreted: list[dict[str, Any]]) -> None:
    assert len(interpreted) == 15 + 5 + 2 * (5 + 5)
    # The interpreter cuts bf16 where a GPU rounds: 2^-7 and not 2^-8.
    wrong = [
        case
        for case in interpreted
        if not (
            case["loss"] < 2e-4
            and case["finite"]
            and case["beyond"]
            and case["grad"] < 1e-5 + case["largest"] * (2**-7 if case["bf16"] else 1e-5)
        )
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("arch", "mode", "dtype"),
    [(80, 2, "bf16"), (90, 2, "bf16"), (100, 2, "bf16"), (90, 0, "bf16"), (90, 1, "fp32")],
)
def test_it_builds_for_gpus_that_are_not_here(
    arch: int, mode: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trainer import jsd_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = [f"*{dtype}", f"*{dtype}", "*fp32", "i32", "i32", "i32", "fp32", "fp32", "constexpr", "constexpr"]
    names = jsd_triton.jsd_kernel.arg_names
    source = ASTSource(
        fn=jsd_triton.jsd_kernel,
        signature=dict(zip(names, kinds, strict=True)),
        constexprs={"MODE": mode, "BLOCK": jsd_triton.BLOCK},
    )

    built = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": jsd_triton.WARPS}
    )

    assert f".target sm_{arch}" in built.asm["ptx"]
    assert built.asm["cubin"][:4] == b"\x7fELF"


if __name__ == "__main__":
    _interpret()
