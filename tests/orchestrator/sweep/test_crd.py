"""The CustomResourceDefinition: up to date, structural, bounded, and in step with the models."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from orchestrator import __version__
from orchestrator.controller.observed import Control
from orchestrator.controller.status import SweepStatus
from orchestrator.sweep.crd import crd, page
from orchestrator.sweep.spec import Sweep, SweepSpec

ROOT = Path(__file__).parents[3]
SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

# KEP-1979 and apiextensions' validation of structural schemas.
KEYWORDS = {
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "required",
    "properties",
    "additionalProperties",
    "items",
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type"),
    *("x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations"),
}


def _nodes(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from _nodes(inner, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(key), dict):
            yield from _nodes(schema[key], path + mark)


NODES = dict(_nodes(SCHEMA))
BELOW_SPEC = {path: node for path, node in NODES.items() if path.startswith(".spec.")}


def _at(path: str) -> dict[str, Any]:
    return NODES[path]


def test_manifest_is_up_to_date():
    manifest = (ROOT / "manifests" / "base" / "crd.yaml").read_text(encoding="utf-8")
    assert manifest == page(), "run: python -m orchestrator.sweep.crd > manifests/base/crd.yaml"


def test_manifest_reads_back_as_the_definition():
    assert yaml.safe_load(page()) == crd()


def test_the_official_client_knows_every_field():
    from kubernetes.client import V1CustomResourceDefinition

    read = V1CustomResourceDefinition.model_validate(crd(), strict=True)
    assert read.model_dump(by_alias=True, exclude_none=True, mode="json") == crd()


def test_version_is_the_package_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__
    assert crd()["metadata"]["annotations"]["orch.dev/version"].startswith(f"{__version__}+")


@pytest.mark.parametrize("path", NODES)
def test_schema_is_structural(path: str):
    node = _at(path)
    assert set(node) <= KEYWORDS
    assert isinstance(node["type"], str)
    assert ("items" in node) == (node["type"] == "array")
    assert not ("properties" in node and "additionalProperties" in node)
    assert set(node.get("required", [])) <= set(node.get("properties", {}))
    assert "default" not in node
    assert isinstance(node.get("exclusiveMinimum", True), bool)


@pytest.mark.parametrize("path", [path for path in NODES if path.startswith((".spec", ".status"))])
def test_everything_is_bounded(path: str):
    node = _at(path)
    if node["type"] == "array":
        assert node["maxItems"] >= 1
    if node["type"] == "string":
        assert "maxLength" in node or "enum" in node or node.get("format") == "date-time"
    if node["type"] == "object":
        assert "properties" in node or "maxProperties" in node


@pytest.mark.parametrize("path", BELOW_SPEC)
def test_whoever_applies_last_replaces_lists_and_maps_whole(path: str):
    node = _at(path)
    if node["type"] == "array":
        assert node["x-kubernetes-list-type"] == "atomic"
    if node["type"] == "object":
        assert node["x-kubernetes-map-type"] == "atomic"


def test_spec_itself_has_two_owners():
    assert "x-kubernetes-map-type" not in _at(".spec")
    assert "control" in _at(".spec")["properties"]


@pytest.mark.parametrize("path", [path for path in NODES if path.startswith(".spec")])
def test_every_field_is_explained(path: str):
    # Items of lists of text or numbers are explained by their list.
    if path.endswith("[]"):
        return
    assert _at(path)["description"].endswith((".", "]"))


def _model_fields(model: type[BaseModel], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, JSON schema) of all fields of a model, as pydantic sees them."""
    schema = model.model_json_schema(mode="serialization")

    def walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        options = [one for one in node.get("anyOf", []) if one.get("type") != "null"]
        if len(options) == 1:
            yield from walk(options[0], path)
            return
        yield path, node
        for name, inner in node.get("properties", {}).items():
            yield from walk(inner, f"{path}.{name}")
        if "items" in node:
            yield from walk(node["items"], f"{path}[]")

    yield from walk(schema, path)


@pytest.mark.parametrize(
    ("model", "root"), [(SweepSpec, ".spec"), (Control, ".spec.control"), (SweepStatus, ".status")]
)
def test_definition_and_models_have_the_same_fields(model: type[BaseModel], root: str):
    fields = dict(_model_fields(model, root))
    for path, field in fields.items():
        assert _at(path)["type"] == field["type"], path
    known = {path for path in NODES if path.startswith(f"{root}.")}
    if model is SweepSpec:
        known = {path for path in known if not path.startswith(".spec.control")}
    more = {".status.conditions[].observedGeneration", ".status.counts{}"}
    assert known - set(fields) <= more


def test_what_the_controller_may_write_fits_the_looser_bounds():
    from orchestrator.controller import status as told

    assert _at(".status.failures")["maxItems"] > told.FAILURES_SHOWN
    assert _at(".status.failures[].evidence")["maxLength"] > told.TEXT_LIMIT
    assert _at(".status.conditions[].message")["maxLength"] > told.MESSAGE_LIMIT
    assert set(_at(".status.counts")["additionalProperties"]) == {"type"}


def test_bounds_are_the_file_s():
    assert _at(".spec.resources.gpus") | {"description": ""} == {
        "description": "",
        "type": "integer",
        "minimum": 0,
        "maximum": 64,
    }
    cpu = _at(".spec.resources.cpu")
    assert (cpu["minimum"], cpu["exclusiveMinimum"], cpu["maximum"]) == (0, True, 1024)
    seed = _at(".spec.seeds[]")
    assert (seed["minimum"], seed["maximum"]) == (0, 2**32 - 1)
    assert _at(".spec.eval.variants[]")["enum"] == ["adapter", "merged"]
    assert _at(".spec.resources.memory")["description"].endswith("Default: 8Gi.")


def test_numbers_are_spelled_in_one_way():
    """kubectl sends 1 where Python sends 1.0; the API server takes them for two values."""
    for path, node in NODES.items():
        floats = [value for value in node.values() if isinstance(value, float)]
        assert [value for value in floats if value.is_integer()] == [], path


def test_columns_name_what_the_status_has():
    columns = crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    paths = {column["jsonPath"] for column in columns}
    counts = SweepStatus(counts={"total": 1}).to_json()["counts"]
    assert ".status.counts.total" in paths
    assert counts
    for path in paths - {".metadata.creationTimestamp"}:
        parts = path.replace("[-1:]", "[]")
        assert parts in NODES or parts.rsplit(".", 1)[0] == ".status.counts"


def test_defaults_are_told_but_not_made():
    assert "Default: 50." in _at(".spec.scheduling.parallelism")["description"]
    required = {"apiVersion", "kind", "metadata", "spec"}
    assert {name for name, field in Sweep.model_fields.items() if field.is_required()} == required
