"""A report of a volume that the trainer's own writers made: its arms, what it leaves out, its records."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer.__main__ import main
from trainer.config import ReportConfig, TrainConfig
from trainer.flags import UsageError
from trainer.layout import Dump, measure_key
from trainer.protocol import Plan
from trainer.report.stage import report
from trainer.results import Protocol, VariantName
from trainer.scores import Cell, publish
from trainer.settings import digest

PROTOCOL = Protocol(
    model="a/m", quant="int4 g64", dtype="fp32", batch_size=8, text="t.txt", text_sha256="ab" * 32
)
MEASURE = Plan(tasks=(), text=None, protocol=PROTOCOL, sha256="1" * 64)
BLOCKS = 40
RNG = np.random.default_rng(5)
TEXT = RNG.gamma(4.0, 5.0, BLOCKS)


def measured(folder: Path, variant: VariantName, kl: float, measure: Plan = MEASURE) -> None:
    """A variant whose KL is `kl` of ptq's in each block, and whose perplexity goes with it."""
    blocks = {
        "tokens": [64.0] * BLOCKS,
        "nll": (64 * 3.0 + TEXT * kl).tolist(),
        "kl": (TEXT * kl).tolist(),
    }
    publish(Cell(variant, folder), [], blocks, measure)


def run(
    dump: Dump,
    sweep: str,
    name: str,
    share: float | None,
    *,
    done: bool = True,
    curve: bool = True,
    **settings: object,
) -> None:
    config = TrainConfig.model_validate({"max_steps": 2, **settings})
    folder = dump.run(sweep, name)
    folder.root.mkdir(parents=True)
    about = {"status": "done" if done else "running", "digest": digest(config), "config": config.model_dump()}
    folder.run.write_text(json.dumps(about))
    lines: list[dict[str, object]] = [{"step": step, "tokens": 100, "seconds": 2.5} for step in (1, 2)]
    for line in lines if curve else []:
        line["heldout"] = {"kl": 0.3 / float(str(line["step"])), "ppl": 9.0}
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if share is not None:
        home = folder.evaluation(measure_key(MEASURE.sha256, name))
        measured(home, "adapter", 1 - share)
        measured(home, "merged", 1 - share / 2)


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    dump = Dump(tmp_path / "dump")
    base = dump.baselines / measure_key(MEASURE.sha256)
    measured(base, "teacher", 0.0)
    measured(base, "ptq", 1.0)
    for seed, noise in ((1, -0.004), (2, 0.0), (3, 0.004)):
        run(dump, "s", f"a{seed}", 0.60 + noise, lmbda=0, seed=seed)
        run(dump, "s", f"b{seed}", 0.70 + noise, lmbda=0.5, seed=seed)
        run(dump, "t", f"c{seed}", 0.70 - noise / 4, lmbda=1, seed=seed)
    return dump


def config_of(dump: Dump, output: Path, **settings: object) -> ReportConfig:
    sweeps = [str(dump.root / "s"), str(dump.root / "t")]
    return ReportConfig.model_validate({"sweeps": sweeps, "output_dir": str(output), **settings})


def arms_of(output: Path, form: int = 0) -> dict[str, dict[str, object]]:
    [study] = json.loads((output / "report.json").read_text())["studies"]
    return {arm["arm"]: arm for arm in study["forms"][form]["arms"]}


def test_arms_are_compared_over_seeds_and_sweeps(dump: Dump, tmp_path: Path) -> None:
    page = report(config_of(dump, tmp_path / "out", reference="λ 1"))
    arms = arms_of(tmp_path / "out")
    assert list(arms) == ["λ 0", "λ 0.5", "λ 1"]
    assert [arm["kl_recovered"]["value"] for arm in arms.values()] == pytest.approx([0.6, 0.7, 0.7])
    assert arms["λ 0"]["difference"]["verdict"] == "worse"
    assert arms["λ 0.5"]["difference"]["verdict"] == "alike"
    assert arms["λ 1"]["difference"] is None
    assert arms["λ 0"]["seeds"] == [1, 2, 3]
    assert (arms["λ 0"]["tokens"], arms["λ 0"]["seconds"]) == (200, 5.0)
    assert "| λ 0 | 3 | 200 | 5 |" in page
    assert arms_of(tmp_path / "out", 1)["λ 0"]["kl_recovered"]["value"] == pytest.approx(0.3)
    assert (tmp_path / "out" / "report.md").read_text() == page


def test_the_best_is_the_reference_unless_one_is_named(dump: Dump, tmp_path: Path) -> None:
    assert "Reference: λ 0.5 (the best here" in report(config_of(dump, tmp_path / "out"))
    with pytest.raises(
        UsageError, match=r"^--reference: must be an arm, got 'λ 2'; use one of: λ 0; λ 0\.5; λ 1$"
    ):
        report(config_of(dump, tmp_path / "out", reference="λ 2"))


def test_the_records_alone_make_the_same_report(dump: Dump, tmp_path: Path) -> None:
    first = report(config_of(dump, tmp_path / "one", records=str(tmp_path / "records")))
    again = report(config_of(Dump(tmp_path / "records"), tmp_path / "two"))
    assert again == first
    names = ["report.md", "report.json", "recovered-1.svg", "curves-1.svg"]
    assert [(tmp_path / "one" / n).read_bytes() for n in names] == [
        (tmp_path / "two" / n).read_bytes() for n in names
    ]


def test_what_cannot_be_compared_is_left_out_and_said(dump: Dump, tmp_path: Path) -> None:
    run(dump, "s", "going", None, done=False, beta=0)
    run(dump, "s", "unmeasured", None, curve=False, beta=0.25)
    run(dump, "s", "two", 0.5, beta=0.75)
    measured(dump.run("s", "two").evaluation("0" * 16), "adapter", 0.1)
    page = report(config_of(dump, tmp_path / "out"))
    assert list(arms_of(tmp_path / "out")) == ["λ 0", "λ 0.5", "λ 1"]
    assert (
        "s/going: not done; s/two: not evaluated, or two adapters were; s/unmeasured: not evaluated" in page
    )


def test_runs_that_nothing_evaluated_are_told_by_their_held_out_kl(dump: Dump, tmp_path: Path) -> None:
    for seed in (1, 2):
        run(dump, "tune", f"fast{seed}", None, learning_rate=1e-3, seed=seed)
        run(dump, "tune", f"slow{seed}", None, learning_rate=1e-4, seed=seed)
    config = ReportConfig(sweeps=[str(dump.root / "tune")], output_dir=str(tmp_path / "out"))
    page = report(config)
    assert "| lr 0.0001 | 2 | 200 | 5 | 0.1500 |" in page
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [arm["heldout_kl"] for arm in numbers["unmeasured"]] == [0.15, 0.15]
    assert numbers["studies"] == []


def test_one_seed_supports_no_claim_and_corrects_nobody_elses(dump: Dump, tmp_path: Path) -> None:
    report(config_of(dump, tmp_path / "without", reference="λ 1"))
    run(dump, "s", "lonely", 0.1, lmbda=0.75, seed=1)
    page = report(config_of(dump, tmp_path / "with", reference="λ 1"))
    before, after = arms_of(tmp_path / "without"), arms_of(tmp_path / "with")
    assert after["λ 0.75"]["difference"]["verdict"] == "one seed: no claim"
    assert (after["λ 0.75"]["difference"]["p"], after["λ 0.75"]["difference"]["p_beyond"]) == (None, None)
    assert after["λ 0"]["difference"]["p"] == before["λ 0"]["difference"]["p"]
    assert "| – | one seed: no claim |" in page
    assert "Holm over 2 arms" in page


def test_the_same_run_in_two_sweeps_counts_once(dump: Dump, tmp_path: Path) -> None:
    run(dump, "t", "a1-again", 0.596, lmbda=0, seed=1)
    report(config_of(dump, tmp_path / "out"))
    assert arms_of(tmp_path / "out")["λ 0"]["seeds"] == [1, 2, 3]


def test_other_measures_never_share_a_table(dump: Dump, tmp_path: Path) -> None:
    other = Plan(tasks=(), text=None, protocol=PROTOCOL.model_copy(update={"dtype": "bf16"}), sha256="2" * 64)
    base = dump.baselines / measure_key(other.sha256)
    measured(base, "teacher", 0.0, other)
    measured(base, "ptq", 1.0, other)
    measured(dump.run("s", "a1").evaluation("9" * 16), "adapter", 0.2, other)
    report(config_of(dump, tmp_path / "out"))
    first, second = json.loads((tmp_path / "out" / "report.json").read_text())["studies"]
    assert [len(study["forms"][0]["arms"]) for study in (first, second)] == [3, 1]
    assert second["protocol"]["dtype"] == "bf16"


def test_runs_that_no_text_was_measured_on_are_left_out(dump: Dump, tmp_path: Path) -> None:
    tasks_only = Plan(tasks=("t",), text=None, protocol=PROTOCOL, sha256="3" * 64)
    base = dump.baselines / measure_key(tasks_only.sha256)
    for home, variant in (
        (base, "teacher"),
        (base, "ptq"),
        (dump.run("s", "a1").evaluation("8" * 16), "adapter"),
    ):
        publish(Cell(variant, home), [], None, tasks_only)  # type: ignore[arg-type]
    page = report(config_of(dump, tmp_path / "out"))
    assert list(arms_of(tmp_path / "out")) == ["λ 0", "λ 0.5", "λ 1"]
    assert "Left out: a1: evaluated without a text, or without teacher and ptq." in page


@pytest.mark.parametrize("missing", ["scipy", "matplotlib.figure"])
def test_an_extra_that_is_not_installed_is_named(
    missing: str,
    dump: Dump,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.startswith("trainer.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["report", "--sweeps", str(dump.root / "s"), "--output-dir", str(tmp_path / "out")]) == 64
    assert re.fullmatch(
        r"report: needs \S+, which is not installed; install orch's extra `report`\n", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("sweeps", "said"),
    [
        (["nowhere"], "--sweeps: no such folder, got nowhere; give dump/SWEEP"),
        ([], "--sweeps: must name a folder, got none; give --sweeps dump/SWEEP"),
    ],
)
def test_faults_are_the_users_in_one_line(
    sweeps: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = [word for one in sweeps for word in ("--sweeps", one)]
    assert main(["report", *flags, "--output-dir", str(tmp_path)]) == 64
    assert capsys.readouterr().err.strip() == said
