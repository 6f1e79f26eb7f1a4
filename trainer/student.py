"""Teacher and student in one model: every decoder linear holds W once and computes any variant of it.

Embeddings and norms are shared; the head is W's in every mode unless `quantize_lm_head`. Q(W) is computed
once, for W never changes; with LoRA inside the quantiser Q(W + s·BA) once for each change of LoRA.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from trainer.adapter import Adapter
from trainer.clipping import clip_for
from trainer.config import LoraOrder, TrainConfig
from trainer.linear import DualLinear, Held, LoraLinear, Mode, Switch
from trainer.quant import (
    GROUPED,
    CodesHash,
    Packed,
    Quantised,
    check_divides,
    quantise_weight,
    quantised_linears,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Student:
    """One model as teacher, ptq, student, merged or rollout; at rest it is the student.

    model: the Hugging Face model, whose linears `build_student` replaced. codes_sha256: hash of Q(W), which
    names the base an adapter belongs to.
    """

    def __init__(
        self, model: PreTrainedModel, config: TrainConfig, switch: Switch, codes_sha256: str
    ) -> None:
        self.model, self.config, self.codes_sha256 = model, config, codes_sha256
        self._switch, self._small = switch, config.base_memory == "small"
        self.linears: dict[str, LoraLinear] = {
            name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)
        }

    @contextlib.contextmanager
    def mode(self, name: Mode) -> Iterator[None]:
        """Compute as `name` inside the block. Weights that LoRA is merged into are made when they are stale.

        Call backward outside of it: recomputed activations (gradient checkpointing) must be the student's.
        """
        before = self._switch.mode
        self._fill(name)
        self._turn(name)
        try:
            yield
        finally:
            self._turn(before)
            # The outermost block's end alone: each token of a rollout is computed in a block of its own.
            if self._small and name == "rollout" != before:
                self.free_merged()

    def _turn(self, mode: Mode) -> None:
        if self._switch.mode != mode:
            self._switch.mode = mode
            if self.config.gradient_checkpointing:
                # Layers recompute in training mode alone, and then drop the cache that rollouts need.
                self.model.train(mode == "student")

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        mode: Mode = "student",
        **inputs: Any,
    ) -> Tensor:
        """Hidden states [batch, time, width] after the final norm; `inputs` go to the decoder as they are.

        Only those of the student carry a gradient. Rows padded on the right need no mask, and one with zeros
        would cost: without it sdpa takes its causal kernels and does not copy grouped heads' keys and values.
        """
        inputs.setdefault("use_cache", False)
        with self.mode(mode), torch.set_grad_enabled(torch.is_grad_enabled() and mode == "student"):
            output = self.model.base_model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **inputs
            )
        states: Tensor = output.last_hidden_state
        return states

    def head(self, mode: Mode = "student") -> Tensor:
        """The output projection [vocabulary, width] of a mode; frozen."""
        head = self.model.get_output_embeddings()
        return head.base if isinstance(head, DualLinear) and mode != "teacher" else head.weight

    def lora_parameters(self) -> list[nn.Parameter]:
        """The trained parameters, float32, in the model's order, A before B."""
        return [part for linear in self.linears.values() for part in (linear.lora_A, linear.lora_B)]

    def lora_tensors(self) -> dict[str, Tensor]:
        """The trained parameters by module name and part, detached but not copied: what is saved."""
        return {
            f"{name}.{part}": getattr(linear, part).detach()
            for name, linear in self.linears.items()
            for part in ("lora_A", "lora_B")
        }

    @torch.no_grad()
    def load_lora(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `lora_tensors()` of an equal student back in place: optimisers keep their parameters.

        Raises ValueError when a name or shape differs.
        """
        own = self.lora_tensors()
        faults = [f"adapter: {name} is missing; it belongs to another model" for name in own.keys() - tensors]
        faults += _faults(tensors, {name: tuple(tensor.shape) for name, tensor in own.items()})
        if faults:
            raise ValueError("\n".join(sorted(faults)))
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def set_adapter(self, adapter: Adapter, order: LoraOrder = "outside") -> None:
        """Put on an adapter as read from files, of any rank; linears it leaves out get none.

        order: how it was trained, which the files do not say.

        The parameters are replaced, so an optimiser made before no longer trains them. Raises ValueError when
        it was made for another base.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for name, linear in self.linears.items():
            shapes[f"{name}.lora_A"] = (adapter.r, linear.in_features)
            shapes[f"{name}.lora_B"] = (linear.out_features, adapter.r)
        faults = _faults(adapter.tensors, shapes)
        if faults:
            raise ValueError("\n".join(faults))
        self._switch.order = order
        for name, linear in self.linears.items():
            for part in ("lora_A", "lora_B"):
                key = f"{name}.{part}"
                value = adapter.tensors.get(key, torch.zeros(shapes[key]))
                # A copy: training this student must not reach into the caller's tensors.
                setattr(linear, part, nn.Parameter(value.to(linear.weight.device, torch.float32, copy=True)))
            linear.scale = adapter.scale
            linear.made_key = None

    def free_merged(self) -> None:
        """Give back the memory of the weights that LoRA is merged into (one copy of the linears)."""
        for linear in self.linears.values():
            linear.made, linear.made_key = None, None

    def weight(self, name: str, mode: Mode) -> Tensor:
        """The dense weight [out, in] of one linear in a mode; that of the student outside is without LoRA."""
        linear = self.linears[name]
        if mode == "teacher":
            return linear.weight
        form = self._form(mode)
        if form is None:
            return linear.base
        weight = self.quantised(name, "merged").weight if form == "merged" else linear.plus_delta(linear.base)
        return weight.to(linear.weight.dtype)

    def _form(self, mode: Mode) -> Mode | None:
        """Which weight with LoRA in it a mode computes with: `merged`, `rollout` or none."""
        if mode == "merged" or (self._switch.order == "inside" and mode in ("student", "rollout")):
            return "merged"
        return "rollout" if mode == "rollout" else None

    # Not no_grad alone: buffers made in inference mode could never be written again outside of it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _fill(self, mode: Mode) -> None:
        form = self._form(mode)
        if form is None:
            return
        packed = self._small and mode != "rollout"
        for name, linear in self.linears.items():
            # In-place updates count versions up, so a changed adapter is never served from an old copy.
            key = (form, packed, linear.lora_A._version, linear.lora_B._version)
            if linear.made_key == key:
                continue
            if packed:
                linear.made = Packed(self.quantised(name, "merged"), linear.weight.dtype)
            else:
                if not isinstance(linear.made, Tensor):
                    linear.made = torch.empty_like(linear.weight)
                linear.made.copy_(self.weight(name, mode))
            linear.made_key = key

    @torch.no_grad()
    def quantised(self, name: str, mode: Literal["ptq", "merged"]) -> Quantised:
        """Codes of one quantised linear, the head's too: Q(W) or Q(W + s·B·A).

        The sum is made in float32, so that bf16 does not swallow a small update before Q sees it.
        """
        linear: Any = self.model.get_submodule(name)
        weight = (
            linear.plus_delta(linear.weight) if mode == "merged" and name in self.linears else linear.weight
        )
        config = self.config
        return quantise_weight(
            weight, config.quant_type, config.group_size, config.qparams_dtype, linear.clip
        )


def build_student(model: PreTrainedModel, config: TrainConfig) -> Student:
    """Replace the linears of `model` in place and freeze everything but LoRA; B is zero, so student = ptq.

    The model computes in the dtype it was loaded in: load it with `dtype=`, for `model.bfloat16()` also
    rounds the rotary frequencies, which is another model. Raises ValueError when `group_size` does not
    divide a width.
    """
    _check_head(model)
    _check_causal(model)
    if config.quant_type in GROUPED:
        check_divides(model, config.group_size, config.quantize_lm_head)
    model.requires_grad_(False)
    switch, codes = Switch(order=config.lora_order), CodesHash()
    head = model.get_output_embeddings()
    # Inside the quantiser the student never reads Q(W).
    pack = config.base_memory == "small" or config.lora_order == "inside"
    for name, linear in quantised_linears(model, config.quantize_lm_head).items():
        clip = clip_for(linear.weight, config)
        quantised = quantise_weight(
            linear.weight, config.quant_type, config.group_size, config.qparams_dtype, clip
        )
        codes.add(name, quantised)
        held: Held = Packed(quantised, linear.weight.dtype) if pack else quantised.weight
        if linear is head:
            model.set_output_embeddings(DualLinear(linear, held, switch, clip))
            continue
        replaced = LoraLinear(linear, held, switch, clip, config.lora_r, config.lora_scale)
        replaced.initialise(config.seed, name)
        model.set_submodule(name, replaced)
    if config.gradient_checkpointing:
        _recompute_activations(model)
    model.train(config.gradient_checkpointing)
    return Student(model, config, switch, codes.hexdigest())


def _check_head(model: PreTrainedModel) -> None:
    """Raise ValueError for models whose logits are more than hidden @ head.T: loss and sampling take that."""
    text = model.config.get_text_config()
    scales = ("final_logit_softcapping", "logits_scaling", "logit_scale")
    found = [name for name in scales if getattr(text, name, None) not in (None, 1, 1.0)]
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        found.append("a bias of the head")
    if found:
        raise ValueError(
            f"model: logits must be a plain product with the head, got {', '.join(found)}; "
            "this architecture is not supported"
        )


def _check_causal(model: PreTrainedModel) -> None:
    """Raise ValueError for models whose positions see later ones: padding on the right would be read."""
    text = model.config.get_text_config()
    ahead = getattr(text, "use_bidirectional_attention", None)
    # "vision" looks ahead in images alone.
    if not getattr(text, "is_causal", True) or ahead in (True, "all"):
        raise ValueError(
            "model: attention must be causal, got one that looks ahead; this architecture is not supported"
        )


def _recompute_activations(model: PreTrainedModel) -> None:
    """Hugging Face's checkpointing of decoder layers, under the name this version has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _faults(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with an adapter for a base whose parts have `shapes`."""
    advice = "it was made for another model or rank"
    faults = [
        f"adapter: the model has no such linear, got {name}; {advice}"
        for name in tensors
        if name not in shapes
    ]
    faults += [
        f"adapter: {name} must have shape {shapes[name]}, got {tuple(tensor.shape)}; {advice}"
        for name, tensor in tensors.items()
        if name in shapes and tuple(tensor.shape) != shapes[name]
    ]
    return faults
