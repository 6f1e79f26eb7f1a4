"""What installing decides: what is applied, what differs, and what stands in the way."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from orchestrator.client.bundle import Options, bundle
from orchestrator.client.install import Change, Verdict, desired, differences, faults, version_of

OBJECTS = {(one["kind"], one["metadata"]["name"]): one for one in bundle(Options())}
CLAIM = OBJECTS["PersistentVolumeClaim", "orch"]
PROFILE = OBJECTS["ConfigMap", "orch-profile"]
DEPLOYMENT = OBJECTS["Deployment", "orch-controller"]
DEFINITION = OBJECTS["CustomResourceDefinition", "sweeps.orch.dev"]
PRIORITY = OBJECTS["PriorityClass", "orch-low"]
DIGEST = f"registry.lab/trainer@sha256:{'a' * 64}"


def _with(one: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(one), **changes}


def test_what_is_absent_is_made_as_written():
    for one in OBJECTS.values():
        assert desired(one, None, Options()) == (one, "")


def test_a_volume_stays_as_it_is():
    wanted, note = desired(CLAIM, CLAIM, Options(size="1Ti"))
    assert wanted is None
    assert note == "--size is 500Gi and stays"


def test_a_profile_is_never_reset():
    lab = _with(PROFILE, data={"orch.toml": '# ours\nmaxMemory = "8Gi"\n'})
    assert desired(PROFILE, lab, Options()) == (None, "it is the lab's")
    wanted, _ = desired(PROFILE, lab, Options(image=DIGEST))
    assert wanted is not None
    assert wanted["data"] == {"orch.toml": f'image = "{DIGEST}"\n# ours\nmaxMemory = "8Gi"\n'}


def test_the_controller_keeps_its_image_unless_another_is_named():
    installed = copy.deepcopy(DEPLOYMENT)
    installed["spec"]["template"]["spec"]["containers"][0]["image"] = DIGEST
    wanted, _ = desired(copy.deepcopy(DEPLOYMENT), installed, Options())
    assert wanted is not None
    assert wanted["spec"]["template"]["spec"]["containers"][0]["image"] == DIGEST


@pytest.mark.parametrize(
    ("version", "kept"),
    [("99.0.0+00000000", True), ("0.0.1+00000000", False), ("", False), ("0.1.0+ffffffff", False)],
)
def test_a_newer_definition_is_never_taken_back(version: str, kept: bool):
    found = copy.deepcopy(DEFINITION)
    found["metadata"]["annotations"]["orch.dev/version"] = version
    wanted, note = desired(DEFINITION, found, Options())
    assert (wanted is None) == kept
    assert ("newer" in note) == kept


def test_versions_are_compared_as_numbers():
    made = {
        version: version_of({"metadata": {"annotations": {"orch.dev/version": version}}})
        for version in ("0.9.0+abc", "0.10.0+abc")
    }
    assert made["0.10.0+abc"] > made["0.9.0+abc"] > version_of({"metadata": {}})


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"spec": {"replicas": 1}}, {"spec": {"replicas": 2}}, ["spec.replicas: 1 → 2"]),
        ({"a": ["x", {"b": 1}]}, {"a": ["x", {"b": 2}]}, ["a[1].b: 1 → 2"]),
        ({"a": ["x"]}, {"a": ["x", "y"]}, ['a: ["x"] → ["x", "y"]']),
        ({}, {"a": "x"}, ["a: nothing → x"]),
        ({"a": "x"}, {}, ["a: x → nothing"]),
        ({"t": "one\ntwo\n"}, {"t": "one\n2\n"}, ["t: - two", "t: + 2"]),
        (
            {"metadata": {"generation": 1, "resourceVersion": "7", "labels": {"a": "b"}}, "status": {"x": 1}},
            {"metadata": {"generation": 2, "resourceVersion": "8", "labels": {"a": "c"}}, "status": {}},
            ["metadata.labels.a: b → c"],
        ),
        ({"spec": {"status": 1}}, {"spec": {"status": 2}}, ["spec.status: 1 → 2"]),
        ({"a": "x" * 100}, {"a": "y"}, [f"a: {'x' * 69}… → y"]),
    ],
)
def test_differences(before: dict[str, Any], after: dict[str, Any], told: list[str]):
    assert list(differences(before, after)) == told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change(PRIORITY, Verdict.SAME), None),
        (Change(PRIORITY, Verdict.DENIED, note="no", exists=True), None),
        (Change(PRIORITY, Verdict.DENIED, note="no", exists=None), None),
        (Change(PRIORITY, Verdict.DENIED, note="no", exists=False), "orch install` for --crd-only once"),
        (Change(OBJECTS["Namespace", "orch"], Verdict.DENIED, note="no", exists=True), None),
        (Change(OBJECTS["Namespace", "orch"], Verdict.DENIED, note="no", exists=False), "for this"),
        (Change(CLAIM, Verdict.DENIED, note="no", exists=None), "PersistentVolumeClaim orch: is missing"),
        (Change(DEPLOYMENT, Verdict.CREATE, exists=False), "--controller-image: is needed the first time"),
        (Change(DEPLOYMENT, Verdict.CONFLICT, (".spec.replicas: conflict with x",)), "--force-conflicts"),
    ],
)
def test_what_stands_in_the_way(change: Change, words: str | None):
    found = faults([change], Options())
    assert (found == []) if words is None else (len(found) == 1 and words in found[0])


def test_with_an_image_the_first_installation_goes_on():
    change = Change(DEPLOYMENT, Verdict.CREATE, exists=False)
    assert faults([change], Options(controller_image=DIGEST)) == []
