"""Sweep → runs. Pure and deterministic: the same sweep gives the same runs in the same order.

The order of keys in a mapping never matters, for Kubernetes does not keep it: settings go in the trainer's
order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import SweepError
from orchestrator.sweep import check, template
from orchestrator.sweep.check import Fault, Path
from orchestrator.sweep.naming import DIGEST_CHARS, run_id
from orchestrator.sweep.params import PARAMS, canonical, shown, typed
from orchestrator.sweep.spec import MAX_RUNS, Group, Params, Sweep, SweepSpec
from trainer.config import TrainConfig
from trainer.settings import digest


@dataclass(frozen=True)
class Run:
    """One resolved training config of a sweep. Its digest is its identity; names and tags are labels.

    `id` is the name and 8 hex of `digest` (64 hex); `also` holds other names the sweep gives this config.
    """

    name: str
    id: str
    digest: str
    group: str
    tags: tuple[str, ...]
    config: TrainConfig
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Point:
    """One run before its seeds: where it is written, its name (None: to be made), its params and tags."""

    path: Path
    name: str | None
    params: Mapping[str, Any]
    tags: tuple[str, ...] = ()


Placed = tuple[Path, Run]
"""A run with the place that makes it."""


def expand(sweep: Sweep, place: str = "") -> tuple[Run, ...]:
    """The runs of a sweep in order: groups, then rows of `zip`, then `grid`, then seeds.

    Two names of one config are one run under the first name. `place` heads every message.
    Raises SweepError with every fault.
    """
    found = check.faults(sweep.model_dump(exclude_none=True))
    runs, more = expand_groups(sweep.spec, check.sound_groups(len(sweep.spec.groups), found))
    if found or more:
        raise SweepError(check.lines([*found, *more], place))
    return runs


def expand_groups(spec: SweepSpec, indices: Collection[int]) -> tuple[tuple[Run, ...], list[Fault]]:
    """(runs, faults) of the groups at `indices`, in which `check.faults` found nothing."""
    count = sum(_count(spec, spec.groups[index]) for index in indices)
    if count > MAX_RUNS:
        text = f"make too many runs, got {count}; at most {MAX_RUNS} in one sweep, split it"
        return (), [Fault(("spec", "groups"), text)]
    placed: list[Placed] = []
    found: list[Fault] = []
    for index in indices:
        points, faults = _points(spec.groups[index], ("spec", "groups", index), spec.params)
        runs, more = _runs(spec, spec.groups[index], points)
        placed += runs
        found += faults + more
    runs_by_digest, faults = _collapse(placed)
    return runs_by_digest, found + faults


def _count(spec: SweepSpec, group: Group) -> int:
    """Runs of a group before `exclude`, without making them."""
    rows = min((len(values) for values in (group.zip or {}).values()), default=1)
    product = rows * math.prod(len(values) for values in (group.grid or {}).values())
    return (len(group.runs) if group.runs else product) * len(group.seeds or spec.seeds)


def _points(group: Group, path: Path, common: Params) -> tuple[list[_Point], list[Fault]]:
    """The points of a group, with the params of the sweep and the group, after `exclude`."""
    base = typed(common) | typed(group.params)
    if group.runs:
        return [
            _Point((*path, "runs", index), run.name, base | typed(run.params), tuple(run.tags))
            for index, run in enumerate(group.runs)
        ], []
    points = [_Point(path, None, base | combination) for combination in _combinations(group)]
    return _exclude(points, group, path)


def _combinations(group: Group) -> Iterator[dict[str, Any]]:
    rows, axes = _in_order(group.zip or {}), _in_order(group.grid or {})
    zipped = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)] or [{}]
    for row in zipped:
        for values in itertools.product(*axes.values()):
            yield typed(row | dict(zip(axes, values, strict=True)))


def _in_order(axes: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    named = {canonical(name): values for name, values in axes.items()}
    return {name: named[name] for name in PARAMS if name in named}


def _exclude(points: list[_Point], group: Group, path: Path) -> tuple[list[_Point], list[Fault]]:
    found: list[Fault] = []
    gone: set[int] = set()
    configs = [TrainConfig.model_validate(point.params) for point in points] if group.exclude else []
    for number, cut in enumerate(group.exclude):
        wanted = typed(cut)
        hits = {i for i, config in enumerate(configs) if wanted and _matches(config, wanted)}
        if not hits:
            text = f"leaves out nothing, got {shown(cut)}; name values that runs of this group have"
            found.append(Fault((*path, "exclude", number), text))
        gone |= hits
    if len(gone) == len(points):
        text = f"leaves no run, got all {len(points)} left out; exclude less"
        found.append(Fault((*path, "exclude"), text))
    return [point for i, point in enumerate(points) if i not in gone], found


def _matches(config: TrainConfig, wanted: Mapping[str, Any]) -> bool:
    return all(getattr(config, name) == value for name, value in wanted.items())


def _runs(spec: SweepSpec, group: Group, points: list[_Point]) -> tuple[list[Placed], list[Fault]]:
    seeds = group.seeds or spec.seeds
    varied = [*_in_order(group.zip or {}), *_in_order(group.grid or {})]
    varied.sort(key=PARAMS.index)
    nproc = max(1, spec.resources.gpus)
    runs: list[Placed] = []
    found: list[Fault] = []
    for point in points:
        for seed in seeds:
            config = TrainConfig.model_validate({**point.params, "seed": seed, "nproc": nproc})
            name = point.name or template.run_name(group.run, group.name, config, varied)
            name = f"{name}_s{seed}" if len(seeds) > 1 else name
            fault = template.name_fault(name)
            if fault:
                found.append(Fault(point.path, fault))
            tags = tuple(dict.fromkeys((*spec.tags, group.name, *group.tags, *point.tags)))
            key = digest(config)
            runs.append((point.path, Run(name, run_id(name, key), key, group.name, tags, config)))
    return runs, found


def _collapse(placed: list[Placed]) -> tuple[tuple[Run, ...], list[Fault]]:
    """One run a config, in order; a name that two configs share is a fault."""
    runs: dict[str, Run] = {}
    named: dict[str, Placed] = {}
    short: dict[str, str] = {}
    found: dict[str, Fault] = {}
    for path, run in placed:
        if short.setdefault(run.digest[:DIGEST_CHARS], run.digest) != run.digest:
            # One in a hundred sweeps of 10,000 runs; their Jobs could share a name.
            text = f"has the digest of another config in its id, got {run.id}; move it to another sweep"
            found.setdefault(run.id, Fault(path, text))
        first_path, first = named.setdefault(run.name, (path, run))
        if first.digest != run.digest and run.name not in found:
            found[run.name] = Fault(path, _one_name(first_path, first, path, run))
        known = runs.setdefault(run.digest, run)
        also = known.also if run.name in (known.name, *known.also) else (*known.also, run.name)
        tags = tuple(dict.fromkeys((*known.tags, *run.tags)))
        runs[run.digest] = replace(known, also=also, tags=tags)
    return tuple(runs.values()), list(found.values())


def _one_name(first_path: Path, first: Run, path: Path, run: Run) -> str:
    differ = [
        name for name in TrainConfig.model_fields if getattr(first.config, name) != getattr(run.config, name)
    ]
    here = ", ".join(f"{name} {getattr(run.config, name)}" for name in differ)
    there = ", ".join(f"{name} {getattr(first.config, name)}" for name in differ)
    where = "here too" if first_path == path else f"in {check.spell(first_path)}"
    return (
        f"gives one name to two configs, got {run.name!r} for {here} and {where} for {there}; "
        f"put what differs into the name"
    )
