"""docs/results.md shows what its records say."""

from __future__ import annotations

from pathlib import Path

from trainer.config import ReportConfig
from trainer.report.stage import report

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs/results/records"


def test_every_table_of_the_study_is_made_again_from_its_records(tmp_path: Path) -> None:
    sweeps = sorted(str(folder) for folder in RECORDS.iterdir() if not folder.name.startswith("."))
    page = report(ReportConfig(sweeps=sweeps, output_dir=str(tmp_path)))
    shown = (ROOT / "docs/results.md").read_text()
    made = [line for line in page.splitlines() if line.startswith(("|", "Measured", "In brackets"))]
    assert len(made) > 20
    assert [line for line in made if line not in shown] == []
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert [line for line in rows if line not in made] == []


def test_the_plot_is_made_again_too(tmp_path: Path) -> None:
    measured = [str(RECORDS / "study-off"), str(RECORDS / "study-on")]
    report(ReportConfig(sweeps=measured, output_dir=str(tmp_path)))
    shown = (ROOT / "docs/results/recovered.svg").read_bytes()
    assert (tmp_path / "recovered-1.svg").read_bytes() == shown
