"""The schema of a sweep file → the CustomResourceDefinition of Sweep.

python -m orchestrator.sweep.crd > manifests/base/crd.yaml

Pure. The API server accepts *structural* schemas only: no references, no unions, every field typed once.
What it cannot say, the loader says for files and the controller for stored Sweeps (`Accepted=False`).

No field has a default there. The server would fill it in on every read, so a later orch with another
default would change what stored sweeps mean, and with it the identity of their runs; and what `kubectl
apply` sent would come back as something else. Defaults are written out by `orch submit`, or taken from
spec.py.

Every list and every map below `spec` is atomic. Otherwise what one field manager (kubectl) set is never
removed when another (`orch submit`) applies a smaller file: the sweep would keep a run, a param or a queue
that the file no longer has.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from orchestrator import __version__
from orchestrator.sweep.naming import (
    ANNOTATION_VERSION,
    LABEL_PART_OF,
    PART_OF,
    SWEEP_NAME,
    SWEEP_NAME_LIMIT,
)
from orchestrator.sweep.objectstate import CONTROL, STATUS
from orchestrator.sweep.spec import API_VERSION, KIND, EvalSpec, Group, Sweep, SweepSpec

Schema = dict[str, Any]

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "sweeps"
HEAD = (
    "# Made by `python -m orchestrator.sweep.crd > manifests/base/crd.yaml`; a test fails when it is old.\n"
)

_COPIED = ("type", "enum", "pattern", "minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum")
_MAP_BOUNDS = ("minProperties", "maxProperties")

_ALWAYS: dict[str, int] = {}  # priority 0 is stored as none, and a list with it is another one
_WIDE = {"priority": 1}
_COLUMNS = (
    ("Total", "integer", ".status.counts.total", _ALWAYS, "Runs."),
    ("Running", "integer", ".status.counts.running", _ALWAYS, "Runs that train now."),
    ("Done", "integer", ".status.counts.done", _ALWAYS, "Runs that are trained and evaluated."),
    ("Failed", "integer", ".status.counts.failed", _ALWAYS, "Runs that have failed."),
    ("Best", "string", ".status.best.run", _ALWAYS, "The run nearest to the teacher."),
    ("GPU-Hours", "number", ".status.gpuHours", _ALWAYS, "GPU-hours used."),
    ("Age", "date", ".metadata.creationTimestamp", _ALWAYS, "Time since it was submitted."),
    ("Pending", "integer", ".status.counts.pending", _WIDE, "Runs that wait."),
    ("Queue", "string", ".spec.scheduling.queue", _WIDE, "Queue of its Jobs."),
    # The newest condition is last: what halts it, else how far it is, else why it is refused.
    ("Message", "string", ".status.conditions[-1:].message", _WIDE, "What the controller said last."),
)


def _rule(rule: str, message: str) -> Schema:
    return {"rule": rule, "message": message}


_DISTINCT = _rule(
    "self.all(one, self.exists_one(other, other == one))",
    "must not hold one value twice, got it twice; leave one out",
)

_RULES: dict[tuple[type[BaseModel], str], list[Schema]] = {
    (SweepSpec, "groups"): [
        _rule(
            "self.all(one, self.exists_one(other, other.name == one.name))",
            "names must differ, got one name twice; rename one",
        )
    ],
    (SweepSpec, "tags"): [_DISTINCT],
    (SweepSpec, "seeds"): [_DISTINCT],
    (Group, "tags"): [_DISTINCT],
    (Group, "seeds"): [_DISTINCT],
    (EvalSpec, "tasks"): [_DISTINCT],
    (EvalSpec, "variants"): [_DISTINCT],
    (EvalSpec, "baselines"): [_DISTINCT],
}
"""What CEL checks of a field. For the tags of runs (64 × 1,000 lists) the server's cost limit is too low."""

_MODEL_RULES: dict[type[BaseModel], list[Schema]] = {
    Group: [
        _rule(
            "has(self.grid) || has(self.zip) || has(self.runs)",
            "has no runs, got neither grid, zip nor runs; give one of them",
        ),
        _rule(
            "!has(self.runs) || !(has(self.grid) || has(self.zip))",
            "runs go with neither grid nor zip, got both; put the runs in a group of their own",
        ),
        _rule(
            "!has(self.runs) || !(has(self.run) || (has(self.exclude) && size(self.exclude) > 0))",
            "run and exclude are for grid and zip, got them with runs; leave them out",
        ),
    ],
}


def crd() -> Schema:
    """The CustomResourceDefinition, as plain data."""
    version = _version()
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            "labels": {LABEL_PART_OF: PART_OF},
            "annotations": {ANNOTATION_VERSION: f"{__version__}+{_digest(version)}"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": "sweep",
                "shortNames": ["sw"],
                "categories": ["orch"],
            },
            "versions": [version],
        },
    }


def _version() -> Schema:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "selectableFields": [
            {"jsonPath": ".spec.scheduling.queue"},
            {"jsonPath": ".spec.scheduling.priority"},
        ],
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "description": text, **wide}
            for name, kind, path, wide, text in _COLUMNS
        ],
        "schema": {"openAPIV3Schema": _sweep()},
    }


def _digest(version: Schema) -> str:
    """8 hex that tell two schemas apart, whatever version of orch made them."""
    return hashlib.sha256(json.dumps(version, sort_keys=True).encode()).hexdigest()[:8]


def _sweep() -> Schema:
    spec = _model(SweepSpec)
    del spec["x-kubernetes-map-type"]  # two owners: the file's and control's
    spec["properties"]["control"] = CONTROL
    fields = Sweep.model_fields
    return {
        "description": _sentence(Sweep.__doc__),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": fields["apiVersion"].description},
            "kind": {"type": "string", "description": fields["kind"].description},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": STATUS,
        },
        "x-kubernetes-validations": [
            {
                "rule": f"self.metadata.name.size() <= {SWEEP_NAME_LIMIT} "
                f"&& self.metadata.name.matches('{SWEEP_NAME}')",
                "message": "metadata.name: must have small letters, digits and single dashes, at most "
                f"{SWEEP_NAME_LIMIT} characters; rename the sweep",
            }
        ],
    }


def _model(model: type[BaseModel]) -> Schema:
    """A model as a structural schema; its fields in their order."""
    made: Schema = {"description": _sentence(model.__doc__), "type": "object"}
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    if required:
        made["required"] = required
    made["properties"] = {name: _field(model, name) for name in model.model_fields}
    made["x-kubernetes-map-type"] = "atomic"
    if model in _MODEL_RULES:
        made["x-kubernetes-validations"] = _MODEL_RULES[model]
    return made


def _field(model: type[BaseModel], name: str) -> Schema:
    field = model.model_fields[name]
    schema = model.model_json_schema()
    made = _structural(schema["properties"][name], schema.get("$defs", {}), model)
    default = "" if field.is_required() else _default(field.get_default(call_default_factory=True))
    made = {"description": (field.description or "") + default, **_without(made, "description")}
    rules = _RULES.get((model, name))
    return {**made, "x-kubernetes-validations": rules} if rules else made


def _structural(schema: Mapping[str, Any], defs: Mapping[str, Any], within: type[BaseModel]) -> Schema:
    """A field's JSON schema, as pydantic makes it, in the API server's terms."""
    if "$ref" in schema:
        return _model(_models()[schema["$ref"].rsplit("/", 1)[-1]])
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise TypeError(f"crd: {within.__name__}: a union is not structural, got {schema['anyOf']}")
        return _structural(options[0], defs, within)
    made = {key: _whole(schema[key]) for key in _COPIED if key in schema}
    if schema["type"] == "array":
        items = _structural(schema["items"], defs, within)
        return {**made, "items": items, "x-kubernetes-list-type": "atomic"}
    if schema["type"] == "object":
        # Its values are numbers, text or booleans, or lists of them: no one type.
        bounds = {key: schema[key] for key in _MAP_BOUNDS if key in schema}
        free = {"x-kubernetes-preserve-unknown-fields": True, "x-kubernetes-map-type": "atomic"}
        return {**made, **bounds, **free}
    return {**made, **_exclusive(schema)}


def _exclusive(schema: Mapping[str, Any]) -> Schema:
    """Bounds that are not reached themselves: a flag beside the bound, as OpenAPI 3.0 has it."""
    made: Schema = {}
    for bound, whole in (("Minimum", 1), ("Maximum", -1)):
        value = schema.get(f"exclusive{bound}")
        if value is None:
            continue
        integer = schema["type"] == "integer"
        made[bound.lower()] = _whole(value + whole if integer else value)
        if not integer:
            made[f"exclusive{bound}"] = True
    return made


def _whole(value: Any) -> Any:
    """1.0 as 1: to the API server they are two values, and two clients that send one each are in conflict."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _models() -> dict[str, type[BaseModel]]:
    """The models that a SweepSpec is made of, by name."""
    found: dict[str, type[BaseModel]] = {}

    def walk(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found[annotation.__name__] = annotation
            for field in annotation.model_fields.values():
                walk(field.annotation)
        for part in getattr(annotation, "__args__", ()):
            walk(part)

    walk(SweepSpec)
    return found


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(value: Any) -> str:
    if value is None or value == [] or isinstance(value, (dict, BaseModel)):
        return ""
    shown = ", ".join(map(str, value)) if isinstance(value, list) else value
    return f" Default: {str(shown).lower() if isinstance(shown, bool) else shown}."


def _without(schema: Schema, key: str) -> Schema:
    return {name: value for name, value in schema.items() if name != key}


def page() -> str:
    """manifests/base/crd.yaml."""
    return HEAD + yaml.dump(crd(), Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """Without anchors: kubectl would expand them, people would have to."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    sys.stdout.write(page())
