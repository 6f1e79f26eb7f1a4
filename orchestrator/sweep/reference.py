"""The reference page docs/sweeps.md, made from the schema.

python -m orchestrator.sweep.reference > docs/sweeps.md
"""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel

from orchestrator.sweep.naming import RUN_NAME_LIMIT, SWEEP_NAME_LIMIT
from orchestrator.sweep.params import PARAMS
from orchestrator.sweep.spec import (
    MAX_RUNS,
    EvalSpec,
    Group,
    Metadata,
    NamedRun,
    Resources,
    Retry,
    Scheduling,
    Sweep,
    SweepSpec,
)
from trainer.config import TrainConfig

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The file", Sweep),
    ("metadata", Metadata),
    ("spec", SweepSpec),
    ("spec.groups[]", Group),
    ("spec.groups[].runs[]", NamedRun),
    ("spec.resources", Resources),
    ("spec.scheduling", Scheduling),
    ("spec.retry", Retry),
    ("spec.eval", EvalSpec),
)

HEAD = f"""\
# Sweep files

<!-- Made by `python -m orchestrator.sweep.reference > docs/sweeps.md`; a test fails when it is old. -->

A sweep file is one question: which runs, and how they are run and measured. `orch plan FILE` shows what
it means and `orch submit FILE` runs it. The files in `sweeps/` are examples. Every fault of a file is
told at once, with its place and, where a name is unknown, the nearest right one.

## How runs come out

- `params` of the sweep, of the group and of the run are laid over one another, the nearest last. Names
  are the trainer's flags, with `-` or `_`.
- A group has `grid` (every combination), `zip` (lists of one length that move together) or both (each
  row of `zip` with each combination of `grid`), less what `exclude` names; or else `runs`, written out.
- Settings go in the trainer's order, the later faster, whatever their order in the file, for Kubernetes
  does not keep it.
- Every run is made once per seed. With more than one seed, `_s<seed>` is added to its name.
- At most {MAX_RUNS:,} runs come from one file, counted before `exclude`.
- A run's identity is its config: its id is its name and 8 hex digits of a hash over every setting that
  differs from its default, seed and number of processes (`resources.gpus`) included. Tags, scheduling
  and evaluation are not in it. Two names for one config make one run under the first name; one name for
  two configs is a fault.

## Names

`run` is a template: `{{learning_rate}}` stands for the value of any setting, `{{effective_batch}}` for
per_device_train_batch_size × gradient_accumulation_steps, `{{global_batch}}` for that times the number
of processes, `{{group}}` for the group's name. Values are spelled by type, so `5e-6` and `0.000005` give
one name:

| value | in a name |
|---|---|
| a number without fraction: 0.0, 256 | as it is: `0`, `256` |
| a number below 0.001: 5e-6, 2.5e-5 | scientific, no dot, no sign: `5e6`, `25e5` |
| another number: 0.5, 0.05, 1.25 | without its dot: `05`, `005`, `125` |
| true, false | `true`, `false` |
| text: Qwen/Qwen3-4B | after the last slash, `-` for other characters: `Qwen3-4B` |

Without `run` a name is the group's name and each varied setting with its value: `lr_learning_rate5e6`.
Names of runs have letters, digits, `_` and `-`, at most {RUN_NAME_LIMIT} characters; names of sweeps
have small letters, digits and single `-`, at most {SWEEP_NAME_LIMIT}.

## What YAML is accepted

Plain YAML that every reader understands alike. kubectl reads YAML 1.1, where `no` is false and `017` is
15, so what the versions of YAML read differently is refused:

| refused | write |
|---|---|
| `y n yes no on off` | `true`, `false`, or in quotes |
| `017`, `0o17`, `0x10`, `0b1`, `1_000` | a decimal number, or in quotes |
| `12:30`, `2024-05-01`, `=`, `<<` | in quotes |
| `.inf`, `.nan`, `1e400` | a finite number |
| `null`, `~`, nothing | a value, or leave the key out |
| `&anchor`, `*alias`, `<<:`, `!tag` | the value, each time |
| a key given twice | one of them |

`5e-6`, `1e-5` and `1e5` are numbers. Nothing is converted: `"1"` is text and never a number. A file
holds one document, at most 1 MiB, at most 16 levels deep.
"""

PARAMS_HEAD = """\
## Params

Not params, since they are set elsewhere: `nproc` (`resources.gpus`), `seed` (`seeds`), paths, devices
and tags. Secrets are never in a sweep file.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    parts += [f"## {title}\n\n{model.__doc__}\n\n{_table(model)}" for title, model in SECTIONS]
    parts.append(f"{PARAMS_HEAD}\n{_table(TrainConfig, PARAMS)}")
    return "\n".join(parts)


def _table(model: type[BaseModel], names: tuple[str, ...] | None = None) -> str:
    schema = model.model_json_schema()
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name in names or tuple(model.model_fields):
        field = model.model_fields[name]
        kind = _kind(schema["properties"][name], schema.get("$defs", {}))
        default = (
            "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        )
        rows.append(_row(f"`{name}`", kind, default, field.description or ""))
    return "\n".join(rows) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "its fields' defaults"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value) or "none"
    if isinstance(value, dict) or value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    """A JSON schema in words: `integer 0 to 64`, `list of text, 1 to 16`."""
    if "$ref" in schema:
        return _kind(defs[schema["$ref"].rsplit("/", 1)[-1]], defs)
    if "anyOf" in schema:
        kinds = (_kind(option, defs) for option in schema["anyOf"] if option.get("type") != "null")
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{item}`" for item in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"list of {_kind(schema['items'], defs)}{_size(schema, 'Items')}"
    if schema["type"] == "object" and "properties" not in schema:
        return f"setting: {_kind(_values(schema), defs)}{_size(schema, 'Properties')}"
    words = {"string": "text", "boolean": "true or false", "object": "mapping"}
    kind = words.get(schema["type"], schema["type"])
    pattern = f" `{schema['pattern']}`" if "pattern" in schema else ""
    return f"{kind}{pattern}{_size(schema, 'Length')}{_range(schema)}"


def _values(schema: dict[str, Any]) -> dict[str, Any]:
    # Keys with a pattern are patternProperties to pydantic.
    values = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
    return dict(values)


def _size(schema: dict[str, Any], unit: str) -> str:
    low, high = schema.get(f"min{unit}", 0), schema.get(f"max{unit}")
    if high is None:
        return ""
    return f", {low} to {high}" if low else f", at most {high}"


def _range(schema: dict[str, Any]) -> str:
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {schema[key]}" for key, sign in bounds.items() if key in schema)


if __name__ == "__main__":
    sys.stdout.write(page())
