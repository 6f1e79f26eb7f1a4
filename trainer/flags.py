"""Command-line flags to settings: any spelling, repeated lists, --no-x, @file.toml; every fault at once.

Torch-free, so that `--help`, `--print-config` and a wrong flag answer before a model library loads.
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from trainer.settings import Settings

S = TypeVar("S", bound=Settings)


class UsageError(ValueError):
    """A user's fault in flags or settings; its text is the whole message, one fault a line."""


def parse(argv: Sequence[str], *kinds: type[Settings]) -> list[Settings]:
    """Settings of each kind from one command line; kinds share the flags of fields they both have.

    `--a-b`, `--a_b` and mixtures are one flag; `--x=v` and `--x v` are one; lists repeat their flag or
    take several values; booleans take no value or true|false; `@file.toml` stands for the file's
    entries; of a flag given twice the last wins. Raises UsageError with every fault, one a line.
    """
    fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
    faults: list[str] = []
    given = _collect(list(argv), fields, faults)
    made: list[Settings] = []
    for kind in kinds:
        values = {name: value for name, value in given.items() if name in kind.model_fields}
        try:
            made.append(kind.model_validate(values))
        except ValidationError as error:
            faults += [f for f in describe(error, "--", values) if f not in faults]
    if faults:
        raise UsageError("\n".join(faults))
    return made


def _collect(argv: list[str], fields: dict[str, FieldInfo], faults: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    words = iter(_join_values(argv))
    for flag, values in words:
        if flag.startswith("@"):
            given |= _from_toml(flag[1:], fields, faults)
            continue
        name = flag.lstrip("-").replace("-", "_")
        negated = name.startswith("no_") and name not in fields
        name = name.removeprefix("no_") if negated else name
        field = fields.get(name)
        if not flag.startswith("--"):
            faults.append(f"{flag}: is no flag, got a bare word; flags start with --")
        elif field is None:
            faults.append(f"{flag}: unknown flag, got {flag!r}{nearest(name, fields, '--')}")
        elif negated and not is_bool(field):
            faults.append(f"{flag}: --no- is for switches, got a flag with a value; use --{name}")
        elif negated and values:
            faults.append(f"{flag}: takes no value, got {values[0]!r}; leave it out")
        elif is_list(field):
            items = given.setdefault(name, []) if values != ["none"] else given.update({name: []})
            if items is not None:
                items.extend(values)
            if not values:
                faults.append(f"{flag}: needs a value, got none; write {flag} VALUE")
        elif is_bool(field) and not values:
            given[name] = "false" if negated else "true"
        elif len(values) != 1:
            got = "none" if not values else " ".join(values)
            faults.append(f"{flag}: needs one value, got {got}; write {flag} VALUE")
        else:
            given[name] = values[0]
    return {name: value for name, value in given.items() if value is not None}


def _join_values(argv: list[str]) -> Iterable[tuple[str, list[str]]]:
    """(flag, its values) in order; a word belongs to the flag before it unless it is one itself."""
    current: tuple[str, list[str]] | None = None
    for word in argv:
        is_flag = word.startswith("@") or (word.startswith("-") and not _is_number(word))
        if is_flag or current is None:
            if current:
                yield current
            flag, equals, value = word.partition("=")
            current = (flag, [value] if equals else []) if is_flag else (word, [])
        else:
            current[1].append(word)
    if current:
        yield current


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _from_toml(path: str, fields: dict[str, FieldInfo], faults: list[str]) -> dict[str, Any]:
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        faults.append(f"@{path}: cannot be read, got {error}; give a TOML file of flags")
        return {}
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in fields:
            faults.append(f"@{path}: {key} is no flag{nearest(name, fields, '')}")
        elif isinstance(value, list):
            values[name] = [str(item) for item in value]
        else:
            values[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return values


def is_list(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is list


def is_bool(field: FieldInfo) -> bool:
    return field.annotation in (bool, bool | None)


ALIASES = {
    "lr": "learning_rate",
    "alpha": "lora_alpha",
    "rank": "lora_r",
    "batch_size": "per_device_train_batch_size",
    "bs": "per_device_train_batch_size",
    "epochs": "max_steps",
    "num_train_epochs": "max_steps",
    "steps": "max_steps",
    "model": "model_name",
    "dataset": "dataset_name",
    "lambda": "lmbda",
    "lambda_": "lmbda",
    "dtype": "mixed_precision",
    "warmup": "warmup_ratio",
}
"""What people of the field type, and the name it has here: too far apart to be found by likeness."""


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """'; did you mean …?' when a known name is near, else the empty string."""
    names = list(known)
    other = ALIASES.get(name.lower())
    close = [other] if other in names else difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    spell = close[0].replace("_", "-") if close and prefix else (close[0] if close else "")
    return f"; did you mean {prefix}{spell}?" if close else ""


def describe(error: ValidationError, prefix: str, values: dict[str, Any]) -> list[str]:
    """A pydantic error as our messages, one a fault: `<place>: <what is wrong>, got <value>`."""
    lines = []
    for fault in error.errors(include_url=False):
        path = [str(part) for part in fault["loc"]]
        name = path[0].replace("_", "-") if path and prefix else ".".join(path)
        text = fault["msg"].removeprefix("Value error, ")
        text = text.replace("Input should be", "must be").replace("String should", "must")
        if not path:
            lines.append(text)
        else:
            got = fault.get("input", values.get(path[0]))
            lines.append(f"{prefix}{name}: {text[0].lower() + text[1:]}, got {got!r}")
    return lines


def usage(command: str, *kinds: type[Settings]) -> str:
    """The help text of `command`: every flag with its default and what it means."""
    lines = [f"usage: python -m trainer {command} [--flag value …] [@file.toml …]", ""]
    seen: set[str] = set()
    for kind in kinds:
        for name, field in kind.model_fields.items():
            if name in seen:
                continue
            seen.add(name)
            default = field.get_default(call_default_factory=True)
            shown = " ".join(map(str, default)) if isinstance(default, list) else default
            lines.append(f"  --{name.replace('_', '-')}  (default {shown if shown != '' else 'none'})")
            lines.append(f"        {field.description}{_choices(field)}")
    return "\n".join(lines)


def _choices(field: FieldInfo) -> str:
    options = [
        str(option)
        for part in (field.annotation, *typing.get_args(field.annotation))
        if typing.get_origin(part) is typing.Literal
        for option in typing.get_args(part)
    ]
    return f" One of: {', '.join(options)}." if options else ""
