"""Tables → Markdown and JSON that people and programs read. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.report.arms import Arm, Gathered, Study
from trainer.report.compare import FormTable, Line, gap
from trainer.report.contrast import Interval

FORMS = {
    "adapter": "4-bit base plus adapter (the function that is trained outside the quantiser)",
    "merged": "one merged 4-bit model",
}


def markdown(gathered: Gathered, tables: Sequence[Sequence[FormTable]], margin: float) -> str:
    """Every study with a table for each form, what the numbers rest on, and what was left out."""
    parts = []
    for study, forms in zip(gathered.studies, tables, strict=True):
        parts += [f"## {_title(study)}", _ground(study), *(_form(table, margin) for table in forms)]
    if gathered.unmeasured:
        parts += ["## Not evaluated: held-out KL at the end of training", _unmeasured(gathered.unmeasured)]
    if gathered.left_out:
        parts.append("Left out: " + "; ".join(gathered.left_out) + ".")
    return "\n\n".join(parts) + "\n"


def _title(study: Study) -> str:
    one = study.protocol
    return f"{one.model.rsplit('/', 1)[-1]}, {one.quant}, {one.dtype}"


def _ground(study: Study) -> str:
    kl, teacher, ptq, tokens = gap(study)
    one = study.protocol
    text = (one.text or "text").rsplit("/", 1)[-1]
    return (
        f"Measured on {tokens:,.0f} tokens of {text} (sha256 {(one.text_sha256 or '')[:8]}) in blocks of "
        f"{one.block_tokens}: KL of ptq {kl:.4f} nats a token, perplexity {ptq:.2f}, of the teacher "
        f"{teacher:.2f}."
    )


def _form(table: FormTable, margin: float) -> str:
    tasks = any(line.accuracy for line in table.lines)
    head = ["arm", "seeds", "tokens", "seconds", "KL", "KL recovered %", "ppl", "ppl recovered %"]
    head += ["accuracy %"] if tasks else []
    head += ["less the reference, points", "p", "verdict"]
    rows = [_row(line, tasks) for line in table.lines]
    lines = [_cells(head), "|".join(["", "---", *("---:" for _ in head[1:]), ""]), *map(_cells, rows)]
    how = "the best here, so its lead is somewhat flattered" if table.chosen else "as asked"
    notes = (
        f"In brackets 95 % intervals over blocks and seeds. Reference: {table.reference} ({how}). p: no "
        f"difference, Holm over {_claimed(table)} arms; alike: within ± {100 * margin:g} points at 5 %, "
        "Holm as well."
    )
    return "\n\n".join([f"### {FORMS[table.form].capitalize()}", "\n".join(lines), notes])


def _unmeasured(arms: Sequence[Arm]) -> str:
    """For choosing settings on rows that are neither trained on nor evaluated on; no error, so no claim."""
    rows = [
        [
            arm.name,
            str(len(arm.runs)),
            f"{_mean(arm, 'tokens'):,.0f}",
            f"{_mean(arm, 'seconds'):,.0f}",
            f"{_last_kl(arm):.4f}",
        ]
        for arm in arms
    ]
    head = ["arm", "seeds", "tokens", "seconds", "KL"]
    return "\n".join(
        [_cells(head), "|".join(["", "---", *("---:" for _ in head[1:]), ""]), *map(_cells, rows)]
    )


def _last_kl(arm: Arm) -> float:
    return sum(run.curve[-1].kl for run in arm.runs) / len(arm.runs)


def _claimed(table: FormTable) -> int:
    return sum(1 for line in table.lines if line.difference and line.difference.p is not None)


def _row(line: Line, tasks: bool) -> list[str]:
    cells = [
        line.arm.name,
        str(len(line.arm.runs)),
        f"{_mean(line.arm, 'tokens'):,.0f}",
        f"{_mean(line.arm, 'seconds'):,.0f}",
        f"{line.kl:.4f}",
        _share(line.kl_recovered),
        f"{line.ppl:.2f}",
        _share(line.ppl_recovered),
    ]
    if tasks:
        cells.append(_share(line.accuracy) if line.accuracy else "–")
    if line.difference is None:
        return [*cells, "reference", "", ""]
    found = line.difference
    return [*cells, _share(found.found.difference), _p(found.p), found.verdict]


def _share(one: Interval) -> str:
    return f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _mean(arm: Arm, name: str) -> float:
    return float(sum(getattr(run, name) for run in arm.runs)) / len(arm.runs)


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def to_json(gathered: Gathered, tables: Sequence[Sequence[FormTable]], margin: float) -> dict[str, Any]:
    """All numbers, not rounded: shares are fractions, KL in nats a token, seconds of training."""
    return {
        "v": 1,
        "margin": margin,
        "left_out": gathered.left_out,
        "unmeasured": [
            {
                "arm": arm.name,
                "runs": [run.run_id for run in arm.runs],
                "seeds": list(arm.seeds),
                "tokens": _mean(arm, "tokens"),
                "seconds": _mean(arm, "seconds"),
                "heldout_kl": _last_kl(arm),
            }
            for arm in gathered.unmeasured
        ],
        "studies": [
            {
                "protocol": study.protocol.model_dump(),
                "ptq": dict(zip(("kl", "teacher_ppl", "ptq_ppl", "tokens"), gap(study), strict=True)),
                "forms": [_form_json(table) for table in forms],
            }
            for study, forms in zip(gathered.studies, tables, strict=True)
        ],
    }


def _form_json(table: FormTable) -> dict[str, Any]:
    return {
        "form": table.form,
        "reference": table.reference,
        "reference_chosen": table.chosen,
        "arms": [_line_json(line) for line in table.lines],
    }


def _line_json(line: Line) -> dict[str, Any]:
    found = line.difference
    return {
        "arm": line.arm.name,
        "runs": [run.run_id for run in line.arm.runs],
        "seeds": list(line.arm.seeds),
        "tokens": _mean(line.arm, "tokens"),
        "seconds": _mean(line.arm, "seconds"),
        "kl": line.kl,
        "kl_recovered": _interval(line.kl_recovered),
        "ppl": line.ppl,
        "ppl_recovered": _interval(line.ppl_recovered),
        "accuracy": _interval(line.accuracy) if line.accuracy else None,
        "difference": None
        if found is None
        else {**_interval(found.found.difference), "p": found.p, "p_beyond": found.p_beyond}
        | {"verdict": found.verdict},
    }


def _interval(one: Interval) -> dict[str, Any]:
    return {"value": one.value, "se": one.se, "low": one.low, "high": one.high}
