"""Budgets and remedies, from the records alone."""

from __future__ import annotations

import pytest

from orchestrator.controller.outcome import AttemptRecord, FailureClass
from orchestrator.controller.rest import gpu_faults
from orchestrator.controller.retry import (
    Limits,
    Overrides,
    after_failure,
    bad_nodes,
    overrides_after,
)
from orchestrator.sweep.spec import Resources, Retry

GI = 2**30


def failed(*classes: str, node: str = "n") -> list[AttemptRecord]:
    return [
        AttemptRecord(
            job=f"j{n}",
            sweep="s",
            run_id="r-abababab",
            stage="train",
            attempt=n,
            state="failed",
            failure=FailureClass(name),
            node=node,
        )
        for n, name in enumerate(classes, 1)
    ]


def limits(**changes: object) -> Limits:
    values = {"resources": Resources(memory="8Gi"), "retry": Retry(), "micro_batch": 4}
    return Limits(**(values | changes))  # type: ignore[arg-type]


OVERRIDES = {
    "nothing failed": ((), {}, Overrides()),
    "a preemption changes nothing": (("preempted",), {}, Overrides()),
    "memory grows by the factor": (("oomHost",), {}, Overrides(memory="12Gi")),
    "memory grows each time": (("oomHost", "preempted", "oomHost"), {}, Overrides(memory="18Gi")),
    "memory ends at the limit": (("oomHost", "oomHost"), {"max_memory": 16 * GI}, Overrides(memory="16Gi")),
    "a limit below the request lowers nothing": (("oomHost",), {"max_memory": 4 * GI}, Overrides()),
    "a factor of one keeps memory": (("oomHost",), {"retry": Retry(oomHostMemory=1)}, Overrides()),
    "the micro-batch is halved": (("oomCuda",), {}, Overrides(micro_batch_split=2)),
    "the micro-batch ends at one sequence": (("oomCuda",) * 5, {}, Overrides(micro_batch_split=4)),
    "remedies add up": (("oomCuda", "oomHost"), {}, Overrides(memory="12Gi", micro_batch_split=2)),
    "bad nodes are avoided": ((), {"bad_nodes": ("n1",)}, Overrides(avoid_nodes=("n1",))),
}


@pytest.mark.parametrize(("classes", "changes", "expected"), OVERRIDES.values(), ids=OVERRIDES)
def test_overrides_after(classes: tuple[str, ...], changes: dict[str, object], expected: Overrides) -> None:
    assert overrides_after(failed(*classes), limits(**changes)) == expected


VERDICTS = {
    "within the budget": (("stalled",), {}, (), True, "tried again (1 of 1)"),
    "beyond the budget": (("stalled", "stalled"), {}, (), False, "stalled 2 times, retry.stalled is 1"),
    "each class has its own budget": (("stalled", "internal"), {}, (), True, "tried again (1 of 1)"),
    "a remedy is told": (("oomHost",), {}, (), True, "memory 8Gi → 12Gi"),
    "a cut micro-batch is told": (("oomCuda",), {}, (), True, "micro-batch cut in 2"),
    "memory at its limit": (("oomHost",), {"max_memory": 8 * GI}, (), False, "maxMemory, 8Gi"),
    "a micro-batch of one": (("oomCuda",), {"micro_batch": 1}, (), False, "micro-batch of 1"),
    "a forgiven failure": (("userError",), {}, ("j1",), True, "on request"),
    "a failure after a forgiven one": (("userError", "userError"), {}, ("j1",), False, "userError once"),
    "what came before a forgiven failure": (("stalled", "internal", "stalled"), {}, ("j2",), True, "1 of 1"),
}


@pytest.mark.parametrize(("classes", "changes", "forgiven", "again", "why"), VERDICTS.values(), ids=VERDICTS)
def test_after_failure(
    classes: tuple[str, ...], changes: dict[str, object], forgiven: tuple[str, ...], again: bool, why: str
) -> None:
    verdict = after_failure(failed(*classes), limits(**changes), forgiven)
    assert verdict.again == again
    assert why in verdict.why


def test_bad_nodes_have_two_faults_of_their_gpus() -> None:
    records = [*failed("gpuFault", "gpuFault", node="a"), *failed("gpuFault", "oomCuda", node="b")]
    assert bad_nodes(gpu_faults(records)) == ("a",)
