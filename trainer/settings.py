"""What all settings are: checked once, frozen, hashed after typing, spelt as flags. Torch-free."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

CONFIG_VERSION = 1
"""Bumped when a default of TrainConfig changes, so that old run ids keep their meaning."""


def _integral(value: object) -> object:
    """A float without a fraction is an int: YAML, JSON and Kubernetes spell 2 and 2.0 alike."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _finite(value: object) -> object:
    """Refuse nan and infinity here, so that the message says what the value must be."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) else 0.0
    except ValueError:
        return value
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    # -0.0 and 0.0 are one value, so they must be one run.
    return value + 0.0 if isinstance(value, float) else value


Int = Annotated[int, BeforeValidator(_integral)]
Float = Annotated[float, BeforeValidator(_finite)]


class Settings(BaseModel):
    """Base of all settings: unknown names are errors, values are checked once and then frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __hash__(self) -> int:
        """Lists among the values would make frozen settings unhashable."""
        return hash((type(self), self.model_dump_json()))


def explicit(settings: Settings) -> dict[str, Any]:
    """The fields that differ from their defaults, as JSON values, in field order."""
    defaults = type(settings)()
    return {
        name: value
        for name, value in settings.model_dump(mode="json").items()
        if getattr(settings, name) != getattr(defaults, name)
    }


def digest(settings: Settings) -> str:
    """SHA-256 (64 hex) over CONFIG_VERSION and every field that differs from its default.

    Values are hashed after typing, so 0, 0.0 and 1e-5, 1.0e-05 are one value wherever they came from.
    """
    canonical = json.dumps(
        {"config_version": CONFIG_VERSION, **explicit(settings)},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def to_flags(settings: Settings) -> list[str]:
    """The command-line flags that make `settings`: only what differs from the defaults.

    `trainer.flags.parse` of the result gives equal settings; floats survive exactly (repr).
    """
    flags: list[str] = []
    for name, value in explicit(settings).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            # An empty list that replaces a default has no spelling but the word for it.
            flags += [part for item in value or ["none"] for part in _flag(flag, str(item))]
        else:
            flags += _flag(flag, repr(value) if isinstance(value, float) else str(value))
    return flags


def _flag(flag: str, text: str) -> list[str]:
    # Text that looks like a flag would be read as the next flag.
    return [f"{flag}={text}"] if text.startswith(("-", "@")) else [flag, text]
