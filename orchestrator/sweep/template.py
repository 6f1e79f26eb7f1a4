"""Run names from templates such as `lr{learning_rate}`. Pure."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from orchestrator.sweep.naming import RUN_NAME, RUN_NAME_LIMIT
from orchestrator.sweep.params import in_name
from trainer.config import TrainConfig
from trainer.flags import nearest

PLACEHOLDERS = (*TrainConfig.model_fields, "effective_batch", "global_batch", "group")
"""What a template may name: every setting, the two batches of TrainConfig, the group's name."""


def faults(template: str) -> list[str]:
    """What is wrong with a template, each `<what>, got <value>; <what to do>`."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return [f"is no template ({error}), got {template!r}; write {{learning_rate}} for a value"]
    found = []
    for _, name, form, conversion in parts:
        if name is not None and name not in PLACEHOLDERS:
            hint = nearest(name, PLACEHOLDERS)
            hint = hint or "; name a setting, effective_batch, global_batch or group"
            found.append(f"has an unknown placeholder, got {{{name}}}{hint}")
        elif form or conversion:
            found.append(f"has a format of its own, got {template!r}; write {{{name}}} alone")
    return found


def run_name(template: str | None, group: str, config: TrainConfig, varied: Iterable[str]) -> str:
    """The name of a run. Without a template: the group and each varied setting with its value."""
    if template is None:
        template = "_".join(["{group}", *(f"{name}{{{name}}}" for name in varied)])
    return "".join(
        literal + ("" if name is None else _spelled(name, group, config))
        for literal, name, _, _ in string.Formatter().parse(template)
    )


def _spelled(name: str, group: str, config: TrainConfig) -> str:
    return in_name(group if name == "group" else getattr(config, name))


def name_fault(name: str) -> str | None:
    """Why this cannot be a run name, or None."""
    if len(name) > RUN_NAME_LIMIT:
        return (
            f"makes a name of {len(name)} characters, got {name!r}; give a `run` of at most {RUN_NAME_LIMIT}"
        )
    if not re.fullmatch(RUN_NAME, name):
        return f"makes a name that does not match {RUN_NAME}, got {name!r}; change the template"
    return None
