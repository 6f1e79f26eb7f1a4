"""Sweep files and stored Sweep objects → checked sweeps. The only I/O of orchestrator.sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import SweepError
from orchestrator.sweep import check
from orchestrator.sweep.document import REFUSED, SIZE_LIMIT, parse
from orchestrator.sweep.expand import expand, expand_groups
from orchestrator.sweep.spec import API_VERSION, KIND, Sweep


def load(path: Path) -> Sweep:
    """The checked sweep in a file, its runs included. Raises SweepError with every fault."""
    place = str(path)
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise SweepError([f"{place}: cannot be read, got {error.strerror}; name a sweep file"]) from None
    try:
        return loads(data.decode("utf-8-sig"), place)
    except UnicodeDecodeError as error:
        if len(data) > SIZE_LIMIT:
            return loads(data.decode("utf-8", "replace"), place)
        raise SweepError([f"{place}: is not text, got {error}; save it as UTF-8"]) from None


def loads(text: str, place: str) -> Sweep:
    """The checked sweep in `text`; `place` heads every message. Raises SweepError with every fault."""
    tree, lines = parse(text, place)
    return _checked(tree, lines, place)


def from_object(value: Mapping[str, Any], place: str = "") -> Sweep:
    """The checked sweep in a stored Sweep object: status, control and foreign metadata are left aside.

    Raises SweepError with every fault.
    """
    spec = value.get("spec")
    if isinstance(spec, Mapping):
        spec = {key: item for key, item in spec.items() if key != "control"}
    metadata = value.get("metadata")
    if isinstance(metadata, Mapping):
        metadata = {key: item for key, item in metadata.items() if key == "name"}
    tree = {key: value[key] for key in ("apiVersion", "kind") if key in value}
    return _checked(tree | {"metadata": metadata, "spec": spec}, [], place)


def _checked(tree: Any, lines: list[str], place: str) -> Sweep:
    if tree is REFUSED:
        raise SweepError(lines)
    found = check.faults(tree)
    if not found and not lines:
        sweep = Sweep.model_validate(tree)
        expand(sweep, place)
        return sweep
    found += _faults_of_sound_groups(tree, found)
    raise SweepError([*lines, *check.lines(found, place)])


def _faults_of_sound_groups(tree: Any, found: list[check.Fault]) -> list[check.Fault]:
    """What expanding the sound groups shows, so that a fault elsewhere does not hide it."""
    spec = tree.get("spec") if isinstance(tree, dict) else None
    if not isinstance(spec, dict) or not isinstance(spec.get("groups"), list):
        return []
    groups = spec["groups"]
    indices = [i for i in check.sound_groups(len(groups), found) if not _holds_refused(groups[i])]
    if not indices or _holds_refused(spec.get("params")):
        return []
    faulty = {fault.path[1] for fault in found if len(fault.path) > 1 and fault.path[0] == "spec"}
    kept = {key: value for key, value in spec.items() if key not in faulty and not _holds_refused(value)}
    placeholder = {"name": "refused", "runs": [{"name": "refused"}]}
    kept["groups"] = [group if i in indices else placeholder for i, group in enumerate(groups)]
    try:
        sweep = Sweep.model_validate(
            {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "refused"}, "spec": kept}
        )
    except ValidationError:
        return []  # its faults are known already
    return expand_groups(sweep.spec, indices)[1]


def _holds_refused(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_refused(item) for item in value.values())
    if isinstance(value, list):
        return any(_holds_refused(item) for item in value)
    return value is REFUSED
