"""Which adapters are evaluated or exported, and on which base: an adapter's own run decides. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import BaseChoice, LoraOrder, ModelSettings, TrainConfig
from trainer.durable import read_json, read_object
from trainer.flags import UsageError
from trainer.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RunFolder

BASE_FIELDS = (
    "model_name",
    "model_revision",
    "quant_type",
    "group_size",
    "qparams_dtype",
    "quantize_lm_head",
    "ptq_init",
)
GROUPED_ONLY = ("group_size", "qparams_dtype", "ptq_init")
"""Fields that say nothing about a base whose quant type has no groups."""


@dataclass(frozen=True)
class AdapterSource:
    """One adapter as found: its PEFT folder, and the run it came from if there is one.

    home: the run folder. run: its run.json. note: what to say about the choice made, if anything.
    """

    given: str
    folder: Path
    home: Path | None = None
    run: dict[str, Any] | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The run's id (with the checkpoint, if it is one); for a foreign adapter its folder's name."""
        if not self.run or self.home is None:
            return self.folder.name
        run_id = str(self.run.get("run_id") or self.home.name)
        return f"{run_id}@{self.folder.name}" if self.folder.name.startswith("checkpoint-") else run_id

    @property
    def config(self) -> dict[str, Any] | None:
        """The TrainConfig fields the run recorded."""
        return self.run.get("config") if self.run else None

    @property
    def lora_order(self) -> LoraOrder:
        """Whether it was trained outside or inside the quantiser; a foreign adapter is outside."""
        return "inside" if self.config and self.config.get("lora_order") == "inside" else "outside"

    def probe(self) -> dict[str, Any] | None:
        """What the run's last forward left (`trainer.probe`); None for a checkpoint or a foreign adapter."""
        if self.home is None or self.folder != RunFolder(self.home).adapter:
            return None
        return read_object(RunFolder(self.home).probe) or None

    def sha256(self) -> str:
        """Hash of the adapter's weights and scaling."""
        digest = hashlib.sha256()
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()


def find_adapters(paths: Sequence[str]) -> list[AdapterSource]:
    """Every adapter meant by `paths`; raises UsageError with all that are missing or given twice."""
    faults: list[str] = []
    found: list[AdapterSource] = []
    for path in paths:
        try:
            source = find_adapter(path)
        except UsageError as error:
            faults.append(str(error))
            continue
        if any(other.folder.resolve() == source.folder.resolve() for other in found):
            faults.append(f"lora_paths: must be different adapters, got {path!r} twice; give each once")
        found.append(source)
    if faults:
        raise UsageError("\n".join(faults))
    return found


def find_adapter(path: str) -> AdapterSource:
    """The adapter in a run folder (its result, else its newest checkpoint), a checkpoint or a PEFT folder.

    Raises UsageError naming what is missing.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UsageError(
            f"lora_paths: no such folder, got {path!r}; give a run folder, a checkpoint or an adapter"
        )
    run_folder = RunFolder(root)
    newest = run_folder.checkpoints()
    for folder in (root, run_folder.adapter, *newest):
        missing = _missing(folder)
        if not missing:
            home = next((place for place in (root, root.parent) if RunFolder(place).run.is_file()), None)
            note = f"{path}: has no adapter/ yet, taking {folder.name}" if folder in newest else ""
            return AdapterSource(path, folder, home, _read_run(home), note)
        if folder.is_dir() and len(missing) == 1:
            raise UsageError(
                f"lora_paths: {folder} has no {missing[0]}, got {path!r}; copy the whole adapter"
            )
    raise UsageError(
        f"lora_paths: no adapter here, got {path!r}; a run folder has adapter/ or checkpoint-N/, "
        f"an adapter has {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
    )


def _missing(folder: Path) -> list[str]:
    return [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]


def _read_run(home: Path | None) -> dict[str, Any] | None:
    if home is None:
        return None
    file = RunFolder(home).run
    try:
        run = read_json(file)
    except ValueError as error:
        raise UsageError(
            f"{file}: not JSON, got {error}; restore it, or move the adapter elsewhere"
        ) from error
    if not isinstance(run, dict) or not isinstance(run.get("config"), dict):
        raise UsageError(
            f"{file}: must hold the run's config, got none; restore it, or move the adapter elsewhere"
        )
    return run


def resolve_base(config: BaseChoice, sources: Sequence[AdapterSource]) -> TrainConfig:
    """The one base all measurements stand on, as the config that `build_student` takes.

    An adapter's own run decides; flags fill in what no run says. Raises UsageError, all faults at once, when
    a flag contradicts an adapter, adapters disagree, or a foreign adapter's base is not said.
    """
    faults: list[str] = []
    chosen: dict[str, Any] = {}
    given = {name: getattr(config, name) for name in (*BASE_FIELDS, "mixed_precision")}
    if config.model_revision == BaseChoice().model_revision:
        given["model_revision"] = None
    for name, flag in given.items():
        if name in GROUPED_ONLY and not str(chosen.get("quant_type")).startswith("int4"):
            continue
        own = {
            source.given: source.config[name] for source in sources if source.config and name in source.config
        }
        # The dtype of an evaluation is a matter of measuring; the base is the same in either.
        if flag is not None and name != "mixed_precision":
            faults += [
                f"lora_paths: {path} was trained with {name} {value}, got --{name.replace('_', '-')} {flag}; "
                "leave the flag out, an adapter is evaluated on its own base"
                for path, value in own.items()
                if value != flag
            ]
        elif flag is None and len(set(own.values())) > 1:
            listed = ", ".join(f"{path}: {value}" for path, value in own.items())
            faults.append(
                f"lora_paths: all must have one base, got different {name} ({listed}); evaluate apart"
            )
        default = ModelSettings.model_fields[name].default
        chosen[name] = flag if flag is not None else next(iter(own.values()), None)
        if chosen[name] is None and name == "model_name":
            chosen[name] = next(iter(_foreign_models(sources)), None)
        foreign = [source.given for source in sources if not source.config]
        if chosen[name] is None and foreign and name in ("model_name", "quant_type"):
            faults.append(
                f"lora_paths: {foreign[0]} does not say its {name}, got no run.json; "
                f"give --{name.replace('_', '-')}"
            )
        if chosen[name] is None:
            chosen[name] = default
    if faults:
        raise UsageError("\n".join(faults))
    # Adapters bring their own rank; the smallest is enough to hold the place.
    return TrainConfig(**chosen, lora_r=1)


def _foreign_models(sources: Sequence[AdapterSource]) -> list[str]:
    """The base models that foreign adapters name themselves."""
    names: list[str] = []
    for source in sources:
        if not source.config:
            meta = read_json(source.folder / ADAPTER_CONFIG)
            name = meta.get("base_model_name_or_path") if isinstance(meta, dict) else None
            names += [name] if isinstance(name, str) and name else []
    return names


def check_codes(sources: Sequence[AdapterSource], codes_sha256: str) -> None:
    """Raise UsageError unless the quantised base is, code for code, the one each adapter was trained on."""
    faults = [
        f"lora_paths: {source.given} was trained on another Q(W), codes {source.run['codes_sha256'][:12]} "
        f"there, got {codes_sha256[:12]} here; the model's files, their revision or the device differ"
        for source in sources
        if source.run and source.run.get("codes_sha256") not in (None, codes_sha256)
    ]
    if faults:
        raise UsageError("\n".join(faults))
