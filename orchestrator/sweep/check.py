"""What is wrong with a sweep, as data: the schema's faults, the params' and the groups', all at once.

Pure. Works on the plain tree of a file, whatever is in it, so that one fault does not hide another.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.sweep import template
from orchestrator.sweep.document import FAULTS_SHOWN, REFUSED
from orchestrator.sweep.params import canonical, name_fault, shown, typed, value_fault
from orchestrator.sweep.spec import Scalar, Sweep
from trainer.flags import nearest

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Fault:
    """`<what is wrong>, got <value>; <what to do>` at a path of the tree."""

    path: Path
    text: str

    def line(self, place: str) -> str:
        """`<place>: spec.groups[0].grid: <text>`."""
        return ": ".join(part for part in (place, spell(self.path), self.text) if part)


def spell(path: Path) -> str:
    """`spec.groups[0].grid.lmbda[1]`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).lstrip(".")


def lines(found: Collection[Fault], place: str) -> list[str]:
    """The faults as lines, at most FAULTS_SHOWN and how many more."""
    shown_ones = [fault.line(place) for fault in list(found)[:FAULTS_SHOWN]]
    more = len(found) - len(shown_ones)
    return [*shown_ones, *([f"{place}: and {more} more faults; correct these first"] if more else [])]


def faults(tree: Any) -> list[Fault]:
    """Every fault of a tree that can be seen without expanding it; refused values are passed over."""
    found = _schema_faults(tree)
    spec = tree.get("spec") if isinstance(tree, dict) else None
    if isinstance(spec, dict):
        found += _param_faults(spec)
        for index, group in enumerate(_list(spec.get("groups"))):
            if isinstance(group, dict):
                found += _group_faults(group, ("spec", "groups", index))
        found += _twice(spec)
    return sorted(found, key=lambda fault: [(isinstance(p, str), p) for p in fault.path])


def sound_groups(count: int, found: Collection[Fault]) -> list[int]:
    """Indices of the groups that can be expanded although `found` is wrong elsewhere."""
    if any(fault.path[:2] == ("spec", "params") for fault in found):
        return []
    faulty = {fault.path[2] for fault in found if fault.path[:2] == ("spec", "groups") and fault.path[2:]}
    return [index for index in range(count) if index not in faulty]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# The schema ------------------------------------------------------------------


def _schema_faults(tree: Any) -> list[Fault]:
    try:
        Sweep.model_validate(tree)
    except ValidationError as error:
        return [
            Fault(_path(fault["loc"]), _schema_text(fault, fault["loc"]))
            for fault in error.errors(include_url=False)
            if fault["input"] is not REFUSED
        ]
    return []


def _path(loc: Path) -> Path:
    return tuple(part for part in loc if part != "[key]")


def _schema_text(fault: Any, loc: Path) -> str:
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(loc[:-1])
        hint = nearest(str(loc[-1]), known) or f"; the fields here are {', '.join(known)}"
        return f"is no field, got {shown(loc[-1])}{hint}"
    if kind == "missing":
        return "is missing, got nothing; add it"
    if kind == "too_short":
        return f"must not be empty, got {shown(value)}; give a value or leave the field out"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}, got {shown(value)}; write it so"
    if kind in ("model_type", "dict_type"):
        return f"must be a mapping, got {shown(value)}; write `key: value` lines under it"
    text = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    text = text.replace("String should", "must").replace("List should", "must")
    text = text.replace("Dictionary should", "must").replace("a valid dictionary", "a mapping")
    text = text[0].lower() + text[1:]
    remedy = "write it without quotes" if _quoted(kind, value) else "see docs/sweeps.md"
    return f"{text}, got {shown(value)}; {remedy}"


def _quoted(kind: str, value: Any) -> bool:
    if kind not in ("int_type", "float_type", "bool_type") or not isinstance(value, str):
        return False
    return value in ("true", "false") or value.replace(".", "", 1).lstrip("-").isdigit()


def _fields_at(loc: Path) -> list[str]:
    """Field names of the model at `loc`, by walking the annotations."""
    model: Any = Sweep
    for part in loc:
        if isinstance(part, str) and isinstance(model, type) and issubclass(model, BaseModel):
            model = _model_in(model.model_fields[part].annotation)
    return list(model.model_fields)


def _model_in(annotation: Any) -> Any:
    """The model inside `list[M]`, `M | None` and the like; the annotation itself when there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in typing.get_args(annotation))
    return next(
        (part for part in found if isinstance(part, type) and issubclass(part, BaseModel)), annotation
    )


# Params ----------------------------------------------------------------------


def _param_faults(spec: dict[str, Any]) -> list[Fault]:
    found = []
    for path, values in _param_maps(spec):
        spelled: dict[str, str] = {}
        for name, value in values.items():
            here = (*path, name)
            fault = name_fault(name)
            first = spelled.setdefault(canonical(name), name)
            if fault:
                found.append(Fault(here, fault))
            elif first != name:
                found.append(Fault(here, f"is given twice, got {first} too; keep one spelling"))
            else:
                found += _value_faults(here, name, value)
    return found


def _value_faults(path: Path, name: str, value: Any) -> Iterator[Fault]:
    items: list[tuple[Path, Any]] = [(path, value)]
    if isinstance(value, list):
        items = [((*path, index), item) for index, item in enumerate(value)]
    for where, item in items:
        if isinstance(item, Scalar):
            fault = value_fault(name, item)
            if fault:
                yield Fault(where, fault)


def _param_maps(spec: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every mapping of params or of axes in a spec, with its path."""
    yield ("spec", "params"), _dict(spec.get("params"))
    for index, group in enumerate(_list(spec.get("groups"))):
        path: Path = ("spec", "groups", index)
        group = _dict(group)
        for key in ("params", "grid", "zip"):
            yield (*path, key), _dict(group.get(key))
        for number, cut in enumerate(_list(group.get("exclude"))):
            yield (*path, "exclude", number), _dict(cut)
        for number, run in enumerate(_list(group.get("runs"))):
            yield (*path, "runs", number, "params"), _dict(_dict(run).get("params"))


# Groups ----------------------------------------------------------------------


def _group_faults(group: dict[str, Any], path: Path) -> Iterator[Fault]:
    has = {key for key in ("grid", "zip", "runs", "run", "exclude") if group.get(key) not in (None, [])}
    if not has & {"grid", "zip", "runs"}:
        yield Fault(path, "has no runs, got neither grid, zip nor runs; give one of them")
    for other in sorted(has & {"grid", "zip", "run", "exclude"}) if "runs" in has else ():
        yield Fault((*path, other), "does not go with runs, got both; put the runs in a group of their own")
    zipped = {name: values for name, values in _dict(group.get("zip")).items() if isinstance(values, list)}
    if len({len(values) for values in zipped.values()}) > 1:
        got = ", ".join(f"{name} {len(values)}" for name, values in zipped.items())
        yield Fault((*path, "zip"), f"lists must be of one length, got {got}; pad or cut them")
    if isinstance(group.get("run"), str):
        for text in template.faults(group["run"]):
            yield Fault((*path, "run"), text)
    yield from _doubly_set(group, path)
    yield from _repeated_values(_dict(group.get("grid")), (*path, "grid"))


def _doubly_set(group: dict[str, Any], path: Path) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    for key in ("params", "grid", "zip"):
        for name in _dict(group.get(key)):
            first = seen.setdefault(canonical(name), key)
            if first != key:
                yield Fault((*path, key, name), f"is set twice, got it in {first} too; keep one")


def _repeated_values(axes: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    for name, values in axes.items():
        seen: dict[Any, int] = {}
        for index, value in enumerate(_list(values)):
            if not isinstance(value, Scalar) or name_fault(name) or value_fault(name, value):
                continue
            # 1 and 1.0 are one float, yet true is no number.
            first = seen.setdefault(typed({name: value})[canonical(name)], index)
            if first != index:
                yield Fault((*path, name, index), f"is the value of [{first}] again, got {value!r}; keep one")


def _twice(spec: dict[str, Any]) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for index, group in enumerate(_list(spec.get("groups"))):
        name = _dict(group).get("name")
        if isinstance(name, str) and first.setdefault(name, index) != index:
            where = spell(("spec", "groups", first[name]))
            yield Fault(
                ("spec", "groups", index, "name"), f"is the name of {where} too, got {name!r}; rename one"
            )
