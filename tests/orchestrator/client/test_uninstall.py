"""What removing orch decides, and in which order it removes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from orchestrator.client.bundle import Options, bundle
from orchestrator.client.uninstall import Removal, remove, why_shared
from orchestrator.cluster.kube.client import Api


@pytest.mark.parametrize(
    ("keep_crd", "elsewhere", "words"),
    [
        (False, set(), ""),
        (False, {"orch"}, ""),
        (False, {"orch", "ml", "vision"}, "Sweeps in ml, vision need it"),
        (False, None, "you may not see whether other namespaces have Sweeps"),
        (True, None, "--keep-crd"),
    ],
)
def test_what_namespaces_share_goes_with_the_last_of_them(
    keep_crd: bool, elsewhere: set[str] | None, words: str
):
    assert why_shared(keep_crd, elsewhere, "orch") == words


class FakeApi:
    """What was deleted, in order."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def delete(self, path: str, **_: Any) -> None:
        self.deleted.append(path)


def _deleted(kinds: set[str], *, keep_crd: bool = False) -> list[str]:
    api = FakeApi()
    objects = [one for one in bundle(Options()) if one["kind"] in kinds]
    objects.sort(key=lambda one: one["kind"] != "Deployment")
    list(remove(cast(Api, api), Removal("orch", tuple(objects), ()), keep_crd=keep_crd))
    return [path.rpartition("/")[2] for path in api.deleted]


CHILDREN = [
    "sweeps",
    "jobs?labelSelector=app.kubernetes.io%2Fmanaged-by%3Dorch",
    "configmaps?labelSelector=app.kubernetes.io%2Fmanaged-by%3Dorch%2Corch.dev%2Frecord",
]


def test_sweeps_go_between_the_controller_and_their_definition():
    gone = _deleted({"Deployment", "CustomResourceDefinition", "RoleBinding"})
    assert gone == ["orch-controller", *CHILDREN, "sweeps.orch.dev", "orch-controller"]


def test_without_a_controller_the_order_is_the_same():
    assert _deleted({"CustomResourceDefinition"}) == [*CHILDREN, "sweeps.orch.dev"]


def test_sweeps_stay_when_asked():
    assert _deleted({"Deployment"}, keep_crd=True) == ["orch-controller"]
