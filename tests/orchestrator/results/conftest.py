"""A small measured sweep, written by hand."""

import pytest

from orchestrator.sweep.expand import Run
from orchestrator.sweep.naming import run_id
from trainer.config import TrainConfig
from trainer.results import Protocol, Record, TaskScore, TextScore, VariantResult
from trainer.settings import digest


def _run(name: str, **settings: object) -> Run:
    config = TrainConfig.model_validate(settings)
    key = digest(config)
    return Run(name, run_id(name, key), key, "lmbda", ("lmbda",), config)


@pytest.fixture
def runs() -> tuple[Run, ...]:
    return (_run("lmbda0", lmbda=0), _run("lmbda1", lmbda=1))


@pytest.fixture
def protocol() -> Protocol:
    return Protocol(
        model="tiny",
        quant="int4/64",
        dtype="fp32",
        batch_size=8,
        text="pydoc_topics",
        text_sha256="c0ffee00" * 8,
        block_tokens=64,
    )


@pytest.fixture
def records(runs: tuple[Run, ...], protocol: Protocol) -> list[Record]:
    """Baselines, then lmbda0 in both forms with its baselines again; lmbda1 is not measured."""
    teacher = VariantResult(
        variant="teacher",
        tasks={"arc_easy": TaskScore(0.80, 0.04, 100, 12, 2), "everyday": TaskScore(0.60, 0.05, 100, 5, 5)},
        text=TextScore(2048, 2.0, 0.02, 0.0, 0.0, -0.2, 0.01, -0.1, 0.004),
    )
    ptq = VariantResult(
        variant="ptq",
        tasks={"arc_easy": TaskScore(0.70, 0.05, 100), "everyday": TaskScore(0.60, 0.05, 100)},
        text=TextScore(2048, 2.2, 0.02, 0.1, 0.004),
    )
    adapter = VariantResult(
        variant="adapter",
        run_id=runs[0].id,
        tasks={"arc_easy": TaskScore(0.78, 0.04, 100, 9, 1), "everyday": TaskScore(0.61, 0.05, 100, 2, 1)},
        text=TextScore(2048, 2.05, 0.02, 0.02, 0.002, -0.15, 0.01, -0.08, 0.004),
    )
    merged = VariantResult(
        variant="merged",
        run_id=runs[0].id,
        tasks={"arc_easy": TaskScore(0.71, 0.05, 100, 2, 1), "everyday": TaskScore(0.60, 0.05, 100, 0, 0)},
        text=TextScore(2048, 2.199, 0.02, 0.099, 0.004, -0.001, 0.01, -0.001, 0.004),
    )
    done = Record(stage="baseline", status="done", exit_code=0, protocol=protocol, variants=[teacher, ptq])
    both = done.model_copy(update={"stage": "eval", "variants": [teacher, ptq, adapter, merged]})
    return [done, both]
