"""The page is made of the rows, and no class is without one."""

from __future__ import annotations

from orchestrator.controller.evidence import FailureClass
from tests.cluster.failures.page import PAGE, page, rows, steady


def test_the_page_is_what_the_tests_on_the_cluster_kept() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(rows().values())


def test_every_class_was_provoked() -> None:
    assert {row.failure for row in rows().values()} >= set(FailureClass)


def test_names_and_times_of_one_run_of_the_tests_are_left_out() -> None:
    said = (
        "train 2: oomHost, after 1 min 03 s on orch-node-2: pod fail-77-0/a--b-0123abcd-train-2-x7k2p: killed"
    )
    assert steady(said) == "train 2: oomHost: pod a--b-0123abcd-train-2-POD: killed"
    assert steady("again: away from orch-node-1") == "again: away from NODE"
