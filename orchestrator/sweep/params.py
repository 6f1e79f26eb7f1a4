"""What may be a param of a run: the trainer's own settings, typed as the trainer types them; and in names.

Pure, torch-free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from pydantic import ValidationError

from orchestrator.sweep.spec import Scalar
from trainer.config import TrainConfig, TrainPlace
from trainer.flags import nearest

PARAMS: Final = tuple(name for name in TrainConfig.model_fields if name not in ("nproc", "seed"))
"""Settings a sweep may set, in the trainer's order."""

_ELSEWHERE: Final = {
    "nproc": "is set by the resources; use resources.gpus (one process each)",
    "seed": "is set by the seeds; use seeds: [42, 43]",
    "tags": "are labels, not settings; use tags beside params",
}
_SECRET = re.compile(r"token|secret|password|passwd|credential|(^|_)key(_|$)|apikey")


_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{20,}|://[^/\s:@]+:[^/\s@]+@|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}"
)


def canonical(name: str) -> str:
    """The setting's own spelling: `-` and `_` are one."""
    return name.replace("-", "_")


def shown(value: object) -> str:
    """A value in a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def name_fault(name: str) -> str | None:
    """Why `name` is no param, or None."""
    field = canonical(name)
    if field in PARAMS:
        return None
    if field in _ELSEWHERE:
        return f"{field} {_ELSEWHERE[field]}, got a param"
    if field in TrainPlace.model_fields:
        return f"says where a run is executed, never what it is, got {field}; leave it out, orch sets it"
    if _SECRET.search(field.lower()):
        return f"is no param, got the name of a secret ({shown(name)}); secrets are set up in the profile"
    hint = nearest(field, PARAMS) or "; docs/sweeps.md lists them"
    return f"is no setting of the trainer, got {shown(name)}{hint}"


def value_fault(name: str, value: Scalar) -> str | None:
    """Why the param cannot have this value, or None. Nothing is converted: "1" is no number."""
    if isinstance(value, str) and _SECRET_VALUE.search(value):
        # Never echoed: Jobs, logs and tickets would carry it on.
        return "must not hold a secret, got what looks like one; secrets are set up in the profile"
    try:
        TrainConfig.model_validate({canonical(name): value}, strict=True)
    except ValidationError as error:
        text = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        text = text.replace("Input should be", "must be").replace("String should", "must")
        remedy = f"{canonical(name)}: {TrainConfig.model_fields[canonical(name)].description}"
        if isinstance(value, str) and _is_quoted(value):
            remedy = "write it without quotes"
        return f"{text[0].lower() + text[1:]}, got {shown(value)}; {remedy}"
    return None


def _is_quoted(text: str) -> bool:
    """Whether the text is a number or truth value that got quotes."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return text in ("true", "false")


def typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Checked params in their own spelling and type (0 is 0.0 where the trainer wants a float)."""
    named = {canonical(name): value for name, value in values.items()}
    config = TrainConfig.model_validate(named, strict=True)
    return {name: getattr(config, name) for name in named}


def in_name(value: Scalar) -> str:
    """How a run name spells a value.

    Numbers without fraction as they are (0.0 → 0). Below 0.001 in scientific notation without dot and sign
    (5e-6 → 5e6, 2.5e-5 → 25e5). Other numbers without their dot (0.5 → 05, 1.25 → 125). Switches true, false.
    Of text, what follows the last slash, with `-` for every character a name cannot have.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return re.sub(r"[^A-Za-z0-9_]+", "-", value.rstrip("/").rsplit("/", 1)[-1]).strip("-")
    if value == int(value):
        return str(int(value))
    if abs(value) >= 0.001:
        return re.sub(r"[-+.]", "", repr(value))
    decimal = Decimal(repr(value)).normalize()
    digits = "".join(map(str, decimal.as_tuple().digits))
    return f"{digits}e{-decimal.adjusted()}"
