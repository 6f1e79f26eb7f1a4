"""Run folders → arms: runs of one config but for its seed, with what was measured of them.

Reads run.json, metrics.jsonl and eval/ of done runs, and the baselines beside them; writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trainer.durable import read_object
from trainer.flags import UsageError
from trainer.layout import RunFolder, measure_key
from trainer.results import Protocol, VariantName
from trainer.scores import Cell, Measured, read

SHORT = {
    "lora_order": "LoRA",
    "seq_kd": "seq_kd",
    "lmbda": "λ",
    "beta": "β",
    "max_steps": "steps",
    "lora_r": "r",
    "learning_rate": "lr",
    "gradient_accumulation_steps": "accumulation",
    "per_device_train_batch_size": "batch",
}
"""Settings as they are called in an arm's name, in which they stand first and in this order."""


class Point(NamedTuple):
    """A held-out KL on the way: completion tokens and seconds of training until then."""

    tokens: int
    seconds: float
    kl: float


@dataclass(frozen=True)
class RunData:
    """One done run: its settings, what its training took, and what was measured of it by one measure."""

    run_id: str
    config: Mapping[str, Any]
    tokens: int
    seconds: float
    curve: tuple[Point, ...]
    forms: Mapping[VariantName, Measured]

    @property
    def seed(self) -> int:
        return int(self.config["seed"])


@dataclass(frozen=True)
class Arm:
    """A way to train: runs that differ in their seed alone, by seed."""

    name: str
    runs: tuple[RunData, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


@dataclass(frozen=True)
class Study:
    """All arms measured by one measure, and the baselines that belong to it."""

    protocol: Protocol
    arms: tuple[Arm, ...]
    teacher: Measured
    ptq: Measured


class Gathered(NamedTuple):
    """Studies, the files they were read from, and what is left out, in words.

    unmeasured: arms of done runs that no evaluation has measured, but training itself on held-out rows.
    """

    studies: list[Study]
    unmeasured: tuple[Arm, ...]
    files: list[Path]
    left_out: list[str]


def gather(sweeps: Sequence[Path], baselines: Path | None) -> Gathered:
    """Everything measured in the folders of sweeps, one study for each measure.

    baselines: where teacher and ptq lie; default: `.baselines` beside the sweep. Raises UsageError for
    folders without a measured run.
    """
    if not sweeps:
        raise UsageError("--sweeps: must name a folder, got none; give --sweeps dump/SWEEP")
    found: dict[str, dict[str, RunData]] = {}
    homes: dict[str, Path] = {}
    files: list[Path] = []
    left_out: list[str] = []
    unmeasured: dict[str, RunData] = {}
    for sweep in sweeps:
        for folder in _runs(sweep):
            about = read_object(folder.run)
            if about.get("status") != "done":
                left_out.append(f"{sweep.name}/{folder.root.name}: not done")
                continue
            measured = _measured(folder)
            if not measured:
                run = _run(folder, about, {})
                if run.curve and not folder.evaluations.is_dir():
                    unmeasured.setdefault(str(about["digest"]), run)
                    files += [folder.run, folder.metrics]
                else:
                    left_out.append(f"{sweep.name}/{folder.root.name}: not evaluated, or two adapters were")
            for measure, (forms, cells) in measured.items():
                run = _run(folder, about, forms)
                # The same config in two sweeps is one run; what both measured is equal.
                found.setdefault(measure, {}).setdefault(str(about["digest"]), run)
                homes.setdefault(measure, baselines or sweep.parent / ".baselines")
                files += [folder.run, folder.metrics, *cells]
    studies = []
    for measure, runs in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        home = homes[measure] / measure_key(measure)
        teacher, ptq = read(Cell("teacher", home)), read(Cell("ptq", home))
        if teacher is None or ptq is None or teacher.blocks is None or ptq.blocks is None:
            names = ", ".join(sorted(run.run_id for run in runs.values()))
            left_out.append(f"{names}: evaluated without a text, or without teacher and ptq")
            continue
        files += [*_files(home, "teacher"), *_files(home, "ptq")]
        studies.append(Study(ptq.protocol, arms(runs.values()), teacher, ptq))
    if not studies and not unmeasured:
        said = "; ".join(left_out) or "no run"
        raise UsageError(f"--sweeps: nothing to compare in {', '.join(map(str, sweeps))}, got {said}")
    return Gathered(studies, arms(unmeasured.values()), list(dict.fromkeys(files)), left_out)


def arms(runs: Iterable[RunData]) -> tuple[Arm, ...]:
    """Runs grouped by all settings but the seed, named and sorted by the settings that differ."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_without_seed(run.config), sort_keys=True), []).append(run)
    if not groups:
        return ()
    configs = [_without_seed(group[0].config) for group in groups.values()]
    names = [*SHORT, *(name for name in configs[0] if name not in SHORT)]
    varied = [name for name in names if len({json.dumps(one.get(name)) for one in configs}) > 1]
    made = [
        (
            _sort_key(group[0].config, varied),
            Arm(_name(group[0].config, varied), tuple(sorted(group, key=_seed))),
        )
        for group in groups.values()
    ]
    return tuple(arm for _, arm in sorted(made, key=lambda pair: pair[0]))


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "seed"}


def _seed(run: RunData) -> int:
    return run.seed


def _sort_key(config: Mapping[str, Any], varied: Sequence[str]) -> list[tuple[bool, float, str]]:
    values = [config.get(name) for name in varied]
    return [
        (isinstance(value, str), float(value) if isinstance(value, (int, float)) else 0.0, str(value))
        for value in values
    ]


def _name(config: Mapping[str, Any], varied: Sequence[str]) -> str:
    parts = []
    for name in varied:
        value = config.get(name)
        if isinstance(value, bool):
            parts += [name] if value else []
        else:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{SHORT.get(name, name)} {shown}")
    return " · ".join(parts) or "the only arm"


def _runs(sweep: Path) -> Iterator[RunFolder]:
    if not sweep.is_dir():
        raise UsageError(f"--sweeps: no such folder, got {sweep}; give dump/SWEEP")
    for path in sorted(sweep.glob("[!.]*")):
        folder = RunFolder(path)
        if folder.run.is_file():
            yield folder


def _run(folder: RunFolder, about: Mapping[str, Any], forms: Mapping[VariantName, Measured]) -> RunData:
    tokens, seconds, curve = 0, 0.0, []
    for line in folder.metrics.read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        tokens, seconds = tokens + step["tokens"], seconds + step["seconds"]
        if "heldout" in step:
            curve.append(Point(tokens, seconds, step["heldout"]["kl"]))
    return RunData(folder.root.name, about["config"], tokens, seconds, tuple(curve), forms)


def _measured(folder: RunFolder) -> dict[str, tuple[dict[VariantName, Measured], list[Path]]]:
    """(forms, files) by measure; a measure that found two adapters in one folder says nothing of either."""
    found: dict[str, tuple[dict[VariantName, Measured], list[Path]]] = {}
    twice: set[str] = set()
    names: tuple[VariantName, ...] = ("adapter", "merged")
    for home in sorted(folder.evaluations.glob("[!.]*")):
        known = {form: one for form in names if (one := read(Cell(form, home))) is not None}
        for measure in {one.measure for one in known.values()}:
            if measure in found:
                twice.add(measure)
            found[measure] = (known, [file for form in known for file in _files(home, form)])
    return {measure: value for measure, value in found.items() if measure not in twice}


def _files(home: Path, variant: str) -> list[Path]:
    return [home / f"{variant}.json", *home.glob(f"{variant}.items.*")]
