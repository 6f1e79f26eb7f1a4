"""Which kernel computes the loss: Triton's on CUDA, once it has shown that it agrees with torch's."""

from __future__ import annotations

import logging
import subprocess
from typing import Literal

import torch
from torch import Tensor

from trainer.flags import UsageError
from trainer.jsd import JsdKernel, jsd_and_grad_

log = logging.getLogger(__name__)

CHECKED_ROWS = 8
RELATIVE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Allowed difference: of the losses' sum, and of the gradients in norm, by the dtype these are kept in."""
ABSOLUTE = 1e-4


class CheckedKernel:
    """A fast kernel that is compared with the plain one on the first rows it gets, and gives way to it.

    note: why the plain one runs, for the log and run.json; None while the fast one does.
    """

    def __init__(self, fast: JsdKernel, plain: JsdKernel = jsd_and_grad_) -> None:
        self._fast, self._plain = fast, plain
        self._chosen: JsdKernel | None = None
        self.note: str | None = None

    def __call__(self, student_CV: Tensor, teacher_CV: Tensor, beta: float, temperature: float) -> Tensor:
        if self._chosen is None and len(student_CV):
            self.note = self._fault(student_CV, teacher_CV, beta, temperature)
            self._chosen = self._plain if self.note else self._fast
            if self.note:
                log.warning("%s; the plain one runs", self.note)
        return (self._chosen or self._plain)(student_CV, teacher_CV, beta, temperature)

    def _fault(self, student_CV: Tensor, teacher_CV: Tensor, beta: float, temperature: float) -> str | None:
        """What is wrong with the fast kernel on copies of the first rows, or None."""
        parts = [logits[:CHECKED_ROWS] for logits in (student_CV, teacher_CV)]
        grad, expected_grad = parts[0].clone(), parts[0].clone()
        expected = self._plain(expected_grad, parts[1].clone(), beta, temperature)
        try:
            losses = self._fast(grad, parts[1].clone(), beta, temperature)
        except torch.OutOfMemoryError:
            raise
        except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
            return f"loss kernel: the fast one cannot run, got {str(error).splitlines()[0]}"
        limit = RELATIVE[grad.dtype]
        for what, got, wanted in (("loss", losses, expected), ("gradient", grad, expected_grad)):
            wanted_norm = float(wanted.float().norm())
            difference = float((got.float() - wanted.float()).norm())
            # A NaN must be a fault here too, unless both have it: then the loop says which samples.
            if not difference <= limit * wanted_norm + ABSOLUTE and wanted.isfinite().all():
                return (
                    f"loss kernel: the fast one's {what} must be {wanted_norm:.3g}, got {difference:.3g} off"
                )
        return None


def choose_kernel(wanted: Literal["auto", "torch", "triton"], device: torch.device) -> JsdKernel:
    """The kernel for a device; `auto` is Triton's on CUDA, checked on its first rows, else torch's.

    Raises UsageError for `triton` without CUDA.
    """
    if wanted == "torch" or (wanted == "auto" and device.type != "cuda"):
        return jsd_and_grad_
    if device.type != "cuda":
        raise UsageError(f"--loss-kernel: triton needs CUDA, got {device.type}; leave it at auto")
    return _triton if wanted == "triton" else CheckedKernel(_triton)


def _triton(student_CV: Tensor, teacher_CV: Tensor, beta: float, temperature: float) -> Tensor:
    from trainer import jsd_triton

    return jsd_triton.jsd_and_grad_(student_CV, teacher_CV, beta, temperature)
