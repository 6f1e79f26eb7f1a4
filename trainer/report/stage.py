"""`python -m trainer report`: gather, compare, write; and copy the few files that the table rests on."""

from __future__ import annotations

from pathlib import Path

from trainer.config import ReportConfig
from trainer.durable import write_bytes, write_json
from trainer.flags import UsageError
from trainer.report import page, plots
from trainer.report.arms import Gathered, gather
from trainer.report.compare import FormTable, compare

PAGE, NUMBERS = "report.md", "report.json"


def report(config: ReportConfig) -> str:
    """Compare the arms of the sweeps, write page, numbers and plots to `output_dir`; returns the page.

    Raises UsageError for folders without measured runs, and for a reference that is no arm.
    """
    sweeps = [Path(one) for one in config.sweeps]
    gathered = gather(sweeps, Path(config.baselines) if config.baselines else None)
    tables = [
        [found for form in config.forms if (found := compare(study, form, config.margin, config.reference))]
        for study in gathered.studies
    ]
    _check_reference(config.reference, tables)
    text = page.markdown(gathered, tables, config.margin)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for number, (study, forms) in enumerate(zip(gathered.studies, tables, strict=True), 1):
        if forms:
            write_bytes(output / f"recovered-{number}.svg", plots.recovered(forms))
        if picture := plots.curves(study):
            write_bytes(output / f"curves-{number}.svg", picture)
    write_json(output / NUMBERS, page.to_json(gathered, tables, config.margin))
    write_bytes(output / PAGE, text.encode())
    if config.records:
        keep(gathered, sweeps, Path(config.records))
    return text


def keep(gathered: Gathered, sweeps: list[Path], target: Path) -> None:
    """Copy every file the report was made from, in the volume's own layout, so that it can be made again."""
    for file in gathered.files:
        home = next((sweep.parent for sweep in sweeps if file.is_relative_to(sweep.parent)), None)
        place = file.relative_to(home) if home else Path(".baselines", *file.parts[-2:])
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target / place, file.read_bytes())


def _check_reference(reference: str | None, tables: list[list[FormTable]]) -> None:
    names = [line.arm.name for forms in tables for table in forms for line in table.lines]
    if reference is not None and reference not in names:
        known = "; ".join(dict.fromkeys(names))
        raise UsageError(f"--reference: must be an arm, got {reference!r}; use one of: {known}")
