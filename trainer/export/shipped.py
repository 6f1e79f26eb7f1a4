"""The weights of the function that ships: Q(W) with the adapter beside it, or Q(W + s·B·A) in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from trainer.adapter import Adapter
from trainer.config import LoraOrder
from trainer.linear import DualLinear
from trainer.quant import Quantised

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.student import Student


class Shipped:
    """What an export writes, and what it is compared with when it is read back.

    student: wears the adapter. files: the adapter's PEFT files by name, as they were hashed. tokenizer: the
    Hugging Face tokenizer. gguf_source: the GGUF file the model came from, if it did.
    """

    def __init__(
        self,
        student: Student,
        adapter: Adapter,
        files: Mapping[str, bytes],
        order: LoraOrder,
        tokenizer: Any,
        gguf_source: Path | None = None,
    ) -> None:
        self.student, self.model, self.config = student, student.model, student.config
        self.adapter, self.files, self.order = adapter, files, order
        self.tokenizer, self.gguf_source = tokenizer, gguf_source
        head = self.model.get_output_embeddings()
        names = {id(module): name for name, module in self.model.named_modules()}
        self.head = names[id(head)]
        self.quantised_head = isinstance(head, DualLinear)
        self.linears = [*student.linears, *([self.head] if self.quantised_head else [])]

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding, in what ships."""
        return bool(self.model.config.get_text_config().tie_word_embeddings) and not self.quantised_head

    def weight(self, name: str) -> Tensor:
        """The dense weight [out, in] of one quantised linear, in the dtype it computes in."""
        if name == self.head:
            return self.student.head("ptq").detach()
        return self.student.weight(name, "merged" if self.order == "inside" else "ptq").detach()

    def quantised(self, name: str) -> Quantised:
        """The same weight as codes, scales and zero points. Raises RuntimeError if they were another's."""
        made = self.student.quantised(name, "merged" if self.order == "inside" else "ptq")
        if not torch.equal(made.weight.to(self.weight(name).dtype), self.weight(name)):
            raise RuntimeError(
                f"{name}: its codes are not those of the trained weight; this is a fault of ours"
            )
        return made

    def others(self) -> Iterator[tuple[str, Tensor]]:
        """Every other tensor of the model by its name in a checkpoint: embeddings, norms, biases, a head."""
        taken = {f"{name}.weight" for name in self.linears}
        taken |= {f"{name}.{part}" for name in self.student.linears for part in ("lora_A", "lora_B")}
        if self.tied:
            taken.add(f"{self.head}.weight")
        for key, tensor in self.model.state_dict().items():
            if key not in taken:
                yield key, tensor.detach()


class Format(NamedTuple):
    """How one format is written, and read back.

    write(shipped, folder): all its files. check(shipped, folder): raises Differs unless they hold what ships;
    returns figures for the manifest.
    """

    write: Callable[[Shipped, Path], None]
    check: Callable[[Shipped, Path], dict[str, float]]


class Differs(RuntimeError):
    """What was read back is not what was trained."""


def same(place: str, found: Tensor | None, wanted: Tensor) -> None:
    """Raises Differs unless both have one shape, one dtype and equal values."""
    if found is None or found.dtype != wanted.dtype or not torch.equal(found, wanted.cpu()):
        raise Differs(f"{place}: what was written is not the trained weight; export again, or report it")
