"""The adapter's files in PEFT's layout.

PEFT itself is never imported: its import costs 13 s, and what is trained must be exactly what the files say.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from trainer.config import TrainConfig
from trainer.durable import write_bytes, write_json
from trainer.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS

PEFT_PREFIX = "base_model.model."


class Adapter(NamedTuple):
    """A LoRA adapter as read from files.

    tensors: float32, by module name and part (`model.layers.0.mlp.up_proj.lora_A`), all of rank r.
    The factor on B·A is alpha / r for every module. meta: adapter_config.json as it is.
    """

    tensors: dict[str, Tensor]
    r: int
    alpha: float
    meta: dict[str, Any]

    @property
    def scale(self) -> float:
        return self.alpha / self.r


def save_adapter(tensors: Mapping[str, Tensor], folder: Path, config: TrainConfig) -> None:
    """Write adapter_model.safetensors and adapter_config.json into a folder: same tensors, same bytes.

    `tensors`: float32 by module name and part, as `Student.lora_tensors()` gives them. The folder
    must exist: FileNotFoundError.
    """
    from safetensors.torch import save

    named = {
        f"{PEFT_PREFIX}{name}.weight": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()
    }
    targets = sorted({name.rsplit(".", 2)[-2] for name in tensors})
    # `folder` is the desk, too: one that another attempt took away must not come back.
    write_bytes(folder / ADAPTER_WEIGHTS, save(named, metadata={"format": "pt"}), folder)
    write_json(folder / ADAPTER_CONFIG, _peft_config(config, targets), folder)


def _peft_config(config: TrainConfig, targets: list[str]) -> dict[str, Any]:
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": config.model_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": config.lora_alpha or 2 * config.lora_r,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.lora_r,
        "rank_pattern": {},
        "revision": config.model_revision,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def load_adapter(path: Path) -> Adapter:
    """Read any PEFT LoRA adapter of plain linears: ranks and alphas per module and rsLoRA are folded in.

    Modules of a smaller rank are padded with zeros and B takes up a module's own factor, so that one r and
    alpha hold for all. Raises ValueError for a folder that holds no adapter, or one of another kind.
    """
    config_file, weights_file = Path(path) / ADAPTER_CONFIG, Path(path) / ADAPTER_WEIGHTS
    missing = [file.name for file in (config_file, weights_file) if not file.is_file()]
    if missing:
        raise ValueError(
            f"{path}: not a PEFT adapter, {' and '.join(missing)} missing; give a folder that holds both"
        )
    text = config_file.read_bytes()
    try:
        meta = json.loads(text)
    except ValueError:
        meta = None
    if not isinstance(meta, dict):
        raise ValueError(f"{config_file}: not a JSON object, got {text[:40]!r}; save the adapter again")
    _check_supported(config_file, meta)
    tensors = _read_tensors(weights_file)
    ranks = {name: len(tensor) for name, tensor in tensors.items() if name.endswith("lora_A")}
    r = max(ranks.values())
    return Adapter(_one_rank(tensors, ranks, r, meta), r, r * _scale(meta, None, int(meta["r"])), meta)


def _check_supported(place: Path, meta: dict[str, Any]) -> None:
    """Raise ValueError for everything in the adapter that a plain pair of A and B does not say."""
    wanted: dict[str, tuple[object, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        **{name: (False, None, [], {}) for name in _UNSUPPORTED},
    }
    faults = [
        f"{place}: {name} is not supported, got {meta[name]!r}; only plain LoRA on linear layers is"
        for name, allowed in wanted.items()
        if name in meta and meta[name] not in allowed
    ]
    init = meta.get("init_lora_weights")
    if isinstance(init, str) and init not in _INITS_THAT_KEEP_W:
        faults.append(
            f"{place}: init_lora_weights changes the base, got {init!r}; convert the adapter to plain LoRA "
            "(PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    for name in ("r", "lora_alpha"):
        if not isinstance(meta.get(name), (int, float)) or meta[name] <= 0:
            faults.append(f"{place}: {name} must be a positive number, got {meta.get(name)!r}; save it again")
    if faults:
        raise ValueError("\n".join(faults))


_UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "fan_in_fan_out",
    "lora_bias",
    "use_qalora",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
_INITS_THAT_KEEP_W = ("gaussian", "orthogonal", "eva")


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """Float32 tensors by module name and part, PEFT's prefix and suffix taken off."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        stored = load(file.read_bytes())
    except SafetensorError as error:
        raise ValueError(
            f"{file}: not a safetensors file, got {error}; copy or save the adapter again"
        ) from error
    tensors: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        match = re.fullmatch(r"(?:base_model\.model\.)?(.+\.lora_[AB])(?:\.default)?\.weight", key)
        if match is None or tensor.dim() != 2:
            raise ValueError(
                f"{file}: not a LoRA matrix, got {key!r}; only plain LoRA on linear layers is read"
            )
        tensors[match[1]] = tensor.float()
    modules = {name.rpartition(".")[0] for name in tensors}
    for module in sorted(modules):
        a, b = tensors.get(f"{module}.lora_A"), tensors.get(f"{module}.lora_B")
        if a is None or b is None or a.shape[0] != b.shape[1]:
            shapes = [None if part is None else tuple(part.shape) for part in (a, b)]
            raise ValueError(
                f"{file}: A and B of {module} do not belong together, got {shapes}; save it again"
            )
    if not modules:
        raise ValueError(f"{file}: holds no LoRA matrices, got an empty file; save the adapter again")
    return tensors


def _scale(meta: dict[str, Any], module: str | None, rank: int) -> float:
    """PEFT's factor on B·A: alpha / rank (rsLoRA: alpha / √rank), alpha_pattern's first match going first."""
    alpha = float(meta["lora_alpha"])
    if module is not None:
        for pattern, own in (meta.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(own)
                break
    return alpha / (math.sqrt(rank) if meta.get("use_rslora") else rank)


def _one_rank(
    tensors: dict[str, Tensor], ranks: dict[str, int], r: int, meta: dict[str, Any]
) -> dict[str, Tensor]:
    """The same functions with rank `r` and the default factor for every module."""
    common = _scale(meta, None, int(meta["r"]))
    result: dict[str, Tensor] = {}
    for name_a, rank in ranks.items():
        module = name_a.rpartition(".")[0]
        factor = _scale(meta, module, rank) / common
        a, b = tensors[name_a], tensors[f"{module}.lora_B"] * factor
        result[name_a] = F.pad(a, (0, 0, 0, r - rank))
        result[f"{module}.lora_B"] = F.pad(b, (0, r - rank))
    return result
