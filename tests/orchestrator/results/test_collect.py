import math

import pytest

from orchestrator.results import collect
from orchestrator.sweep.expand import Run
from orchestrator.sweep.naming import run_id
from trainer.results import Protocol, Record, TaskScore, TextScore, VariantResult
from trainer.settings import digest


def test_collect_orders_teacher_ptq_and_forms_by_run(records: list[Record], runs: tuple[Run, ...]) -> None:
    (table,) = collect(records, runs).tables
    assert [row.label for row in table.rows] == ["teacher", "ptq", "lmbda0 · adapter", "lmbda0 · merged"]
    assert [row.run_id for row in table.rows] == [None, None, runs[0].id, runs[0].id]


def test_collect_tells_what_is_not_measured(records: list[Record], runs: tuple[Run, ...]) -> None:
    assert collect(records, runs).missing == ("lmbda1",)
    assert collect([], runs).missing == ("lmbda0", "lmbda1")


def test_collect_compares_every_number_with_ptq_in_pairs(
    records: list[Record], runs: tuple[Run, ...]
) -> None:
    (table,) = collect(records, runs).tables
    scores = table.rows[2].scores
    assert scores.tasks["arc_easy"].p == pytest.approx(22 / 1024)  # 9 better, 1 worse
    assert scores.tasks["everyday"].p == 1.0
    assert scores.avg is not None
    assert scores.avg.value == pytest.approx(0.695)
    assert scores.avg.error == pytest.approx(math.sqrt(0.04**2 + 0.05**2) / 2)
    # differences 0.08 and 0.01; variances (10 - 0.64) / 1e4 and (3 - 0.01) / 1e4
    z = 0.045 / (math.sqrt((9.36 + 2.99) / 1e4) / 2)
    assert scores.avg.p == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert scores.ppl is not None
    assert scores.ppl.value == pytest.approx(math.exp(2.05))
    assert scores.ppl.error == pytest.approx(math.exp(2.05) * 0.02)
    assert scores.ppl.differs is True
    assert scores.kl is not None
    assert scores.kl.p == pytest.approx(math.erfc(20 / math.sqrt(2)))


def test_collect_tells_the_recovered_shares(records: list[Record], runs: tuple[Run, ...]) -> None:
    (table,) = collect(records, runs).tables
    scores = table.rows[2].scores
    assert scores.kl_recovered is not None
    assert scores.kl_recovered.value == pytest.approx(0.8)
    assert scores.ppl_recovered is not None
    assert scores.ppl_recovered.value == pytest.approx((1 - math.exp(-0.15)) / (1 - math.exp(-0.2)))


def test_collect_compares_baselines_but_gives_them_no_share(
    records: list[Record], runs: tuple[Run, ...]
) -> None:
    (table,) = collect(records, runs).tables
    teacher, ptq = table.rows[:2]
    assert teacher.scores.tasks["arc_easy"].differs is True
    assert ptq.scores.tasks["arc_easy"].p is None
    assert [row.scores.kl_recovered for row in (teacher, ptq)] == [None, None]


@pytest.mark.parametrize(
    "change",
    [{"dtype": "bf16"}, {"batch_size": 32}, {"text_sha256": "0" * 64}, {"limit": 50}, {"quant": "bnb_nf4"}],
    ids=["dtype", "batch size", "text", "limit", "quantisation"],
)
def test_collect_never_mixes_protocols(
    records: list[Record], runs: tuple[Run, ...], protocol: Protocol, change: dict[str, object]
) -> None:
    other = records[1].model_copy(update={"protocol": protocol.model_copy(update=change)})
    first, second = collect([records[0], other], runs).tables
    assert [row.label for row in first.rows] == ["teacher", "ptq"]
    assert len(second.rows) == 4


def test_collect_adds_tasks_of_a_later_evaluation(records: list[Record], runs: tuple[Run, ...]) -> None:
    extra = [
        VariantResult(variant="ptq", tasks={"mmlu": TaskScore(0.3, 0.01, 1000)}),
        VariantResult(
            variant="adapter", run_id=runs[0].id, tasks={"mmlu": TaskScore(0.4, 0.01, 1000, 200, 100)}
        ),
    ]
    (table,) = collect([*records, records[1].model_copy(update={"variants": extra})], runs).tables
    assert table.tasks == ("arc_easy", "mmlu", "everyday")
    assert table.averaged == ("arc_easy", "everyday"), "the teacher has no mmlu"
    adapter = table.rows[2]
    assert adapter.scores.tasks["mmlu"].differs is True
    assert adapter.scores.kl is not None, "the text of the first evaluation stays"


def test_collect_leaves_failed_records_out(records: list[Record], runs: tuple[Run, ...]) -> None:
    failed = [one.model_copy(update={"status": "failed"}) for one in records]
    assert collect(failed, runs).tables == ()


def test_collect_shows_adapters_of_no_run_last(records: list[Record], runs: tuple[Run, ...]) -> None:
    (table,) = collect(records, runs[1:]).tables
    assert [row.label for row in table.rows[2:]] == [f"{runs[0].id} · adapter", f"{runs[0].id} · merged"]


def test_collect_means_over_seeds(records: list[Record], runs: tuple[Run, ...]) -> None:
    seeded = []
    for seed in (1, 2, 3):
        config = runs[0].config.model_copy(update={"seed": seed})
        key = digest(config)
        seeded.append(Run(f"l0_s{seed}", run_id(f"l0_s{seed}", key), key, "g", (), config))
    variants = [
        VariantResult(variant="adapter", run_id=run.id, tasks={"everyday": TaskScore(acc, 0.05, 100, 3, 1)})
        for run, acc in zip(seeded, (0.6, 0.7, 0.8), strict=True)
    ]
    results = collect([records[0].model_copy(update={"variants": variants})], seeded)
    (table,) = results.tables
    mean = table.rows[-1]
    assert mean.label == "l0 · adapter · mean of 3 seeds"
    assert mean.seeds == (1, 2, 3)
    assert mean.scores.tasks["everyday"].value == pytest.approx(0.7)
    assert mean.scores.tasks["everyday"].error == pytest.approx(0.1), "the deviation over seeds"
    assert mean.scores.kl is None
    assert results.seeds_per_config == 3


@pytest.mark.parametrize(
    "score",
    [
        TaskScore(0.5, 0.1, 0, 1, 1),
        TaskScore(0.5, 0.1, 10, -1, 1),
        TaskScore(0.5, 0.1, 10, 9, 9),
        TaskScore(0.5, 0.1, 10),
    ],
    ids=["no items", "negative", "more than there are items", "not reported"],
)
def test_collect_compares_nothing_without_sound_counts(protocol: Protocol, score: TaskScore) -> None:
    variants = [
        VariantResult(variant="ptq", tasks={"everyday": TaskScore(0.5, 0.1, 10)}),
        VariantResult(variant="teacher", tasks={"everyday": score}),
    ]
    record = Record(stage="eval", status="done", exit_code=0, protocol=protocol, variants=variants)
    (table,) = collect([record], []).tables
    assert table.rows[0].scores.tasks["everyday"].differs is None


def test_collect_of_a_loss_beyond_floats_has_no_perplexity(protocol: Protocol) -> None:
    variants = [VariantResult(variant="ptq", text=TextScore(100, 900.0, 1.0))]
    record = Record(stage="eval", status="done", exit_code=0, protocol=protocol, variants=variants)
    (table,) = collect([record], []).tables
    assert table.rows[0].scores.ppl is None
