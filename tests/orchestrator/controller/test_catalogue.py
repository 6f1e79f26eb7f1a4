"""What is looked up of runs."""

from __future__ import annotations

from orchestrator.controller.catalogue import Catalogue
from orchestrator.sweep.expand import expand
from tests.orchestrator.controller.scene import a_sweep


def test_runs_are_found_by_id_and_by_every_name() -> None:
    runs = [{"name": "a", "params": {"beta": 0.5}}, {"name": "b", "params": {"beta": 0.5}}, {"name": "c"}]
    catalogue = Catalogue(expand(a_sweep(groups=[{"name": "g", "runs": runs}])))
    one, other = catalogue
    assert catalogue.by_id == {one.id: one, other.id: other}
    assert catalogue.places == {one.id: 0, other.id: 1}
    assert catalogue.called(["b"]) == catalogue.called([one.id]) == {one.id}
    assert catalogue.called(["nobody"]) == frozenset()
    assert catalogue.called(["*"]) == {one.id, other.id}


def test_runs_that_need_the_same_share_it() -> None:
    catalogue = Catalogue(expand(a_sweep(3)))
    assert len({id(base) for base in catalogue.bases.values()}) == 1
    assert len({id(fetch) for fetch in catalogue.fetches.values()}) == 1
    assert Catalogue.of(catalogue) is catalogue
