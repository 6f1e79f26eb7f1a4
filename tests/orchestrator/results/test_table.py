import csv
import io
import json

import pytest
from rich.console import Console

from orchestrator.results import collect, markdown, show, to_csv, to_json
from orchestrator.results.table import headings
from orchestrator.sweep.expand import Run
from trainer.results import Protocol, Record, TaskScore, VariantResult

MARKDOWN = """\
**tiny · int4/64 · fp32 · batch size 8**

| model | arc_easy | everyday | avg | ppl | KL | KL rec. % | ppl rec. % |
|---|---:|---:|---:|---:|---:|---:|---:|
| teacher | 80.0 ±4.0 | 60.0 ±5.0° | 70.0 ±3.2 | 7.39 ±0.15 | 0.0000 ±0.0000 | – | – |
| ptq | 70.0 ±5.0 | 60.0 ±5.0 | 65.0 ±3.5 | 9.03 ±0.18 | 0.1000 ±0.0040 | – | – |
| lmbda0 · adapter | 78.0 ±4.0 | 61.0 ±5.0° | 69.5 ±3.2 | 7.77 ±0.16 | 0.0200 ±0.0020 | 80.0 ±2.0 | 76.8 ±5.9 |
| lmbda0 · merged | 71.0 ±5.0° | 60.0 ±5.0° | 65.5 ±3.5° | 9.02 ±0.18° | 0.0990 ±0.0040° | 1.0 ±4.0 | 0.6 ±5.5 |

- n: arc_easy 100, everyday 100 items
- text: pydoc_topics, 2048 tokens, blocks of 64, sha256 c0ffee00
- ± standard error; ° not told from ptq (paired, two-sided 5 %, each by itself); – not measured, or a gap within noise
- KL to the teacher, nats a token; rec.: share of the gap ptq→teacher recovered, KL: 1 - KL/KL_ptq
- seeds: 42. One seed a config supports no claim about λ or any other setting.

Not measured yet: lmbda1
"""  # noqa: E501

NARROW = """\
tiny · int4/64 · fp32 · batch size 8
model              arc_easy   everyday     avg
──────────────────────────────────────────────
teacher                80.0      60.0°    70.0
ptq                    70.0       60.0    65.0
lmbda0 · adapter       78.0      61.0°    69.5
lmbda0 · merged       71.0°      60.0°   65.5°
model                ppl        KL   KL rec. %   ppl rec. %
───────────────────────────────────────────────────────────
teacher             7.39    0.0000           –            –
ptq                 9.03    0.1000           –            –
lmbda0 · adapter    7.77    0.0200        80.0         76.8
lmbda0 · merged    9.02°   0.0990°         1.0          0.6
"""


def _shown(records: list[Record], runs: tuple[Run, ...], width: int) -> str:
    out = io.StringIO()
    show(collect(records, runs), Console(file=out, width=width))
    return out.getvalue()


def test_markdown_is_the_labs_table(records: list[Record], runs: tuple[Run, ...]) -> None:
    assert markdown(collect(records, runs)) == MARKDOWN


def test_show_parts_the_table_and_drops_errors_on_a_narrow_screen(
    records: list[Record], runs: tuple[Run, ...]
) -> None:
    assert _shown(records, runs, 60).startswith(NARROW)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_show_stays_within_the_screen_and_cuts_no_number(
    records: list[Record], runs: tuple[Run, ...], width: int
) -> None:
    text = _shown(records, runs, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_show_tells_that_tables_do_not_compare(
    records: list[Record], runs: tuple[Run, ...], protocol: Protocol
) -> None:
    other = records[1].model_copy(update={"protocol": protocol.model_copy(update={"limit": 50})})
    text = _shown([records[0], other], runs, 160)
    assert "first 50 items a task" in text
    assert "numbers of different tables do not compare" in text


def test_footer_tells_rows_that_answered_different_numbers_of_items(
    records: list[Record], runs: tuple[Run, ...]
) -> None:
    fewer = VariantResult(variant="ptq", tasks={"everyday": TaskScore(0.5, 0.1, 40)})
    late = records[1].model_copy(update={"variants": [fewer]})
    assert "everyday 40–100 (rows differ)" in markdown(collect([*records, late], runs))


def test_marks_say_when_ptq_was_not_measured(records: list[Record], runs: tuple[Run, ...]) -> None:
    alone = [one.model_copy(update={"variants": [one.variants[0]]}) for one in records]
    text = markdown(collect(alone, runs))
    assert "| teacher | 80.0 ±4.0? |" in text
    assert "? ptq was not measured, so nothing is compared" in text


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (["hellaswag", "arc_challenge", "mmlu"], ["hellaswa", "arc_chal", "mmlu"]),
        (["mmlu_high_school", "mmlu_high_other"], ["mmlu_high_school", "mmlu_high_other"]),
        (["tasks/everyday.yaml"], ["everyday"]),
    ],
    ids=["the lab's", "whole names where two meet", "a file's stem"],
)
def test_headings_are_eight_characters(tasks: list[str], expected: list[str]) -> None:
    assert list(headings(tasks).values()) == expected


def test_to_csv_has_a_row_a_variant_and_empty_cells_for_what_is_absent(
    records: list[Record], runs: tuple[Run, ...]
) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(collect(records, runs)))))
    assert [row["label"] for row in rows] == ["teacher", "ptq", "lmbda0 · adapter", "lmbda0 · merged"]
    assert float(rows[2]["arc_easy_p"]) == pytest.approx(22 / 1024)
    assert float(rows[2]["kl_recovered"]) == pytest.approx(0.8)
    assert (rows[1]["kl_recovered"], rows[1]["run_id"]) == ("", "")
    assert {row["text_sha256"] for row in rows} == {"c0ffee00" * 8}


def test_to_json_is_plain_json_with_null_for_what_is_absent(
    records: list[Record], runs: tuple[Run, ...]
) -> None:
    value = json.loads(json.dumps(to_json(collect(records, runs)), allow_nan=False))
    assert value["v"] == 1
    assert value["missing"] == ["lmbda1"]
    (table,) = value["tables"]
    assert table["protocol"]["batch_size"] == 8
    assert table["rows"][1]["kl_recovered"] is None
    assert table["rows"][2]["tasks"]["arc_easy"] == {
        "value": 0.78, "error": 0.04, "p": pytest.approx(22 / 1024), "differs": True
    }  # fmt: skip


def test_nothing_measured_gives_empty_outputs(runs: tuple[Run, ...]) -> None:
    results = collect([], runs)
    assert markdown(results) == "Not measured yet: lmbda0, lmbda1\n"
    assert to_json(results)["tables"] == []
    assert to_csv(results).count("\n") == 1
