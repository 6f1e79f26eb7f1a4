"""`python -m trainer eval`: teacher, ptq and adapters measured by one protocol, on one model.

Several processes share batches and windows; each knows all results, the first alone writes and speaks.
Results are files named by the hash of what they measure; a variant that is already there is not measured
again, so an evaluation killed anywhere goes on where it was.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.attempt import report
from trainer.bases import AdapterSource, check_codes, find_adapters, resolve_base
from trainer.config import EvalConfig, EvalPlace, TrainConfig
from trainer.durable import write_json
from trainer.fetch import fetch_model
from trainer.flags import UsageError
from trainer.launch import is_first, processes
from trainer.layout import ATTEMPT_ENV
from trainer.models import default_models_dir, local_path, resolve_device
from trainer.protocol import Plan, plan
from trainer.results import Progress, Record, Stage, VariantName
from trainer.scores import BlockSums, Cell, Measured, publish, read, scores
from trainer.settings import digest

if TYPE_CHECKING:
    from trainer.distributed import World
    from trainer.harness import Benchmark, Item
    from trainer.linear import Mode
    from trainer.perplexity import TextScorer
    from trainer.student import Student

RESULTS = "results.json"
MODES: dict[VariantName, Mode] = {
    "teacher": "teacher",
    "ptq": "ptq",
    "adapter": "student",
    "merged": "merged",
}


def evaluate(config: EvalConfig, place: EvalPlace) -> Record | None:
    """Measure what is not measured yet; everything asked for as one record, from the first process alone.

    Writes <baselines_dir>/<hash>/ for teacher and ptq, <run folder>/eval/<hash>/ for each adapter, and
    results.json in the output folder. Raises UsageError and ModelError for the user's faults, Diverged for
    scores that are not finite.
    """
    # Bars of the libraries would be written between the progress lines. Read when the first of them loads.
    os.environ.setdefault("TQDM_DISABLE", "1")
    several = processes(place.nproc) > 1
    sources = find_adapters(config.lora_paths)
    for source in sources:
        if source.note:
            _say(source.note)
    base = resolve_base(config, sources)
    device = resolve_device(place.device)
    models_dir = Path(place.models_dir) if place.models_dir else None
    if local_path(base.model_name, base.model_revision, models_dir) is None:
        fetch_model(base.model_name, base.model_revision, models_dir or default_models_dir())
    measure = plan(config, base, device, models_dir)
    output = Path(place.output_dir) if place.output_dir else _dump() / "solo" / f"eval-{measure.key()}"
    cells = plan_cells(config, place, measure, sources, output)
    ptq = ptq_cell(place, measure)
    missing = [cell for cell in cells if read(cell) is None]
    if ptq.result.is_file() and ptq not in cells and read(ptq) is None:
        missing.append(ptq)  # without it what is asked for would be compared with nothing
    if missing or several:
        from trainer.distributed import join_world, leave_world

        world = join_world(device)
        try:
            # Another evaluation may have published between two processes' looks: the first one's counts.
            missing = world.gather(missing)[0]
            if missing:
                _measure(missing, config, base, measure, world, models_dir, sources)
        finally:
            leave_world()
    if not is_first():
        return None
    record = _record(config, place, cells, ptq)
    write_json(output / RESULTS, record.model_dump(mode="json", exclude_none=True))
    return record


def _say(text: str) -> None:
    """One line for people; all processes would say the same."""
    if is_first():
        sys.stderr.write(text + "\n")


def _record(config: EvalConfig, place: EvalPlace, cells: Sequence[Cell], ptq: Cell) -> Record:
    """Everything asked for, read from its files; differences are to ptq, if it was ever measured."""
    reference = read(ptq)
    found = [_measured(cell) for cell in cells]
    return Record(
        stage="eval" if config.lora_paths else "baseline",
        status="done",
        exit_code=0,
        run_id=place.run_id,
        config_digest=digest(config),
        attempt=os.environ.get(ATTEMPT_ENV),
        protocol=found[0].protocol,
        variants=[
            scores(cell, measured, None if cell.variant == "ptq" else reference)
            for cell, measured in zip(cells, found, strict=True)
        ],
    )


def _measured(cell: Cell) -> Measured:
    found = read(cell)
    if found is None:
        raise RuntimeError(f"{cell.result}: what was just written is gone or damaged; check the volume")
    return found


def plan_cells(
    config: EvalConfig, place: EvalPlace, measure: Plan, sources: Sequence[AdapterSource], output: Path
) -> list[Cell]:
    """Every variant asked for, baselines first, with where its files lie."""
    shared = ptq_cell(place, measure).folder
    cells = [Cell("teacher", shared)] if config.eval_teacher else []
    cells += [Cell("ptq", shared)] if config.eval_ptq else []
    for source in sources:
        key = measure.key(source.sha256())
        # A foreign adapter's folder is not ours to write in.
        home = source.home / "eval" if source.home else output / source.name
        cells += [Cell(form, home / key, source) for form in dict.fromkeys(config.variants)]
    if not cells:
        raise UsageError("eval: nothing is measured, got no adapter and no baseline; give --lora-paths")
    return cells


def ptq_cell(place: EvalPlace, measure: Plan) -> Cell:
    """Where the ptq results of a measure lie, whether it is asked for or only compared with."""
    root = Path(place.baselines_dir) if place.baselines_dir else _dump() / ".baselines"
    return Cell("ptq", root / measure.key())


def _dump() -> Path:
    return Path(os.environ.get("ORCH_DUMP") or "dump")


def _measure(
    cells: Sequence[Cell],
    config: EvalConfig,
    base: TrainConfig,
    measure: Plan,
    world: World,
    models_dir: Path | None,
    sources: Sequence[AdapterSource],
) -> None:
    """Load the model and measure the cells one after another, publishing each as soon as it is known."""
    from trainer.models import load_model, load_tokenizer
    from trainer.perplexity import TextScorer, text_tokens
    from trainer.student import build_student

    # Before the model: a misspelt task should not cost its loading.
    benchmarks: list[Benchmark] = []
    if measure.tasks:
        from trainer.harness import load_benchmarks

        benchmarks = load_benchmarks(list(measure.tasks), config.task_data)
    model = load_model(base.model_name, base.model_revision, base.mixed_precision, models_dir, world.device)
    tokenizer = load_tokenizer(base.model_name, base.model_revision, models_dir)
    if measure.text:
        _check_window(config.window, getattr(model.config, "max_position_embeddings", None))
    try:
        student = build_student(model, base)
    except ValueError as error:
        raise UsageError(str(error)) from error
    check_codes(sources, student.codes_sha256)
    scorer: TextScorer | None = None
    if measure.text:
        tokens = text_tokens(measure.text, tokenizer, config.perplexity_tokens)
        scorer = TextScorer(student, tokens, world, config.window, config.stride)
    parts = [*(["text"] if scorer else []), *measure.tasks]
    clock = Clock("eval" if config.lora_paths else "baseline", len(cells), parts)
    worn: AdapterSource | None = None
    probe: dict[str, Any] | None = None
    for cell in cells:
        if cell.source and cell.source is not worn:
            worn, probe = cell.source, _wear(student, cell.source, base)
        found = _score(cell, student, tokenizer, benchmarks, scorer, config, clock, world)
        if world.is_main:
            publish(cell, *found, measure, probe if cell.source else None)


def _check_window(window: int, longest: int | None) -> None:
    if longest and window > longest:
        raise UsageError(f"window: must be at most the model's {longest} positions, got {window}; shorten it")


def _wear(student: Student, source: AdapterSource, base: TrainConfig) -> dict[str, Any] | None:
    """Put an adapter on; returns how its function compares with the one trained, if the run left a probe."""
    from trainer.adapter import load_adapter
    from trainer.probe import TOLERANCE, compare

    try:
        student.set_adapter(load_adapter(source.folder), source.lora_order)
    except ValueError as error:
        raise UsageError(f"lora_paths: {source.given} does not fit its base\n{error}") from error
    left = source.probe()
    if left is None:
        return None
    found = compare(left, student, base)
    why = ", ".join(found.changed) or "equal conditions"
    if found.kl > TOLERANCE:
        raise UsageError(
            f"lora_paths: {source.given} does not compute what was trained, got KL {found.kl:.2g} nats a "
            f"token on its probe ({why}); its files, the model's or the libraries changed: bring the old back"
        )
    if not found.equal:
        _say(f"{source.given}: not bit for bit the function trained, KL {found.kl:.1e} ({why})")
    return found._asdict()


def _score(
    cell: Cell,
    student: Student,
    tokenizer: Any,
    benchmarks: Sequence[Benchmark],
    scorer: TextScorer | None,
    config: EvalConfig,
    clock: Clock,
    world: World,
) -> tuple[list[Item], BlockSums | None]:
    """(every item of every task, sums of the text's blocks) of one variant."""
    mode = MODES[cell.variant]
    blocks: BlockSums | None = None
    if scorer:
        from trainer.statistics import block_tokens, in_blocks

        per_token = scorer.score(mode)
        size = block_tokens(len(per_token.nll))
        nll, kl = in_blocks(per_token.nll, size), in_blocks(per_token.kl, size)
        blocks = {"tokens": nll.counts.tolist(), "nll": nll.sums.tolist(), "kl": kl.sums.tolist()}
        clock.done(cell.label, "text")
    items: list[Item] = []
    for benchmark in benchmarks:
        from trainer.harness import StudentLM, run

        model = StudentLM(student, tokenizer, mode, config.batch_size, world)
        items += run(benchmark, model, config.limit)
        clock.done(cell.label, benchmark.name)
    return items, blocks


class Clock:
    """Prints a progress line for each finished part, with the time left by what equal parts took before."""

    def __init__(self, stage: Stage, variants: int, parts: Sequence[str]) -> None:
        self._stage, self._parts = stage, list(parts)
        self._left = [part for _ in range(variants) for part in parts]
        self._total, self._took, self._last = len(self._left), dict[str, float](), time.monotonic()

    def done(self, variant: str, part: str) -> None:
        now = time.monotonic()
        self._took[part], self._last = now - self._last, now
        self._left.remove(part)
        usual = sum(self._took.values()) / len(self._took)
        left = sum(self._took.get(other, usual) for other in self._left)
        done = self._total - len(self._left)
        if is_first():
            report(
                Progress(
                    stage=self._stage,
                    done=done,
                    total=self._total,
                    what=f"{variant}: {part}",
                    seconds_left=left,
                )
            )
