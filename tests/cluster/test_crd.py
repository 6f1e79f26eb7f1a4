"""The CustomResourceDefinition on a real API server: what it takes, refuses, explains and shows."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import Invalid
from orchestrator.cluster.kube.paths import SWEEPS
from orchestrator.controller.status import SweepStatus
from orchestrator.sweep.expand import expand
from orchestrator.sweep.load import from_object, load
from tests.cluster.cluster import Cluster

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "sweeps").glob("*.yaml"))

NASTY = r"""
apiVersion: orch.dev/v1alpha1
kind: Sweep
metadata: {name: nasty}
spec:
  params:
    learning-rate: 1.0e-05
    weight_decay: -0.0
    lmbda: 1.0
    beta: 0.3333333333333333
    temperature: 5e-1
    dataset_name: "no: {{ x }} $(HOME) $$ \\ 'q' \"d\" # λ 🜂"
  tags: ["y", "017", a.b_c-d]
  groups:
    - name: "1e5"
      run: "{group}_{max_steps}_{lora_r}_{seq_kd}_{loss_temperature}"
      zip: {max_steps: [1e3, 2000], lora_r: [8, 16]}
      grid: {seq_kd: [true, false], loss_temperature: [1, 2.5]}
      exclude: [{loss_temperature: 2.5, seq_kd: true}]
    - name: "yes"
      seeds: [0, 4294967295]
      runs:
        - {name: "0x10", params: {beta: 1e-300, max_grad_norm: 1e308}}
        - {name: "null"}
  resources: {gpus: 0, cpu: 0.5, memory: 1Mi, maxDuration: 1s}
"""


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    path = tmp_path / "nasty.yaml"
    path.write_text(NASTY, encoding="utf-8")
    return path


def _stored(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(
        cluster.kubectl("get", "sweep", name, "-n", namespace, "-o", "json").stdout
    )
    return value


def _minimal(name: str = "one", **spec: Any) -> dict[str, Any]:
    groups = [{"name": "a", "runs": [{"name": "a"}]}]
    return {
        "apiVersion": "orch.dev/v1alpha1",
        "kind": "Sweep",
        "metadata": {"name": name},
        "spec": {"groups": groups} | spec,
    }


def _apply(cluster: Cluster, namespace: str, value: dict[str, Any], *flags: str) -> CompletedProcess[str]:
    return cluster.kubectl("apply", "-n", namespace, *flags, "-f", "-", input=json.dumps(value), check=False)


def test_the_server_takes_the_definition(sweeps_defined: None, cluster: Cluster):
    conditions = json.loads(cluster.kubectl("get", "crd", "sweeps.orch.dev", "-o", "json").stdout)["status"][
        "conditions"
    ]
    states = {one["type"]: one["status"] for one in conditions}
    assert states["Established"] == states["NamesAccepted"] == "True"
    # Set by the server for a schema that is not structural.
    assert "NonStructuralSchema" not in states


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_means_the_same_through_kubectl(
    file: Path, sweeps_defined: None, cluster: Cluster, namespace: str
):
    cluster.kubectl("apply", "-n", namespace, "-f", str(file))
    _means_the_same(file, cluster, namespace)


def test_so_does_a_nasty_one(nasty: Path, sweeps_defined: None, cluster: Cluster, namespace: str):
    assert len(expand(load(nasty))) == 10
    cluster.kubectl("apply", "-n", namespace, "-f", str(nasty))
    _means_the_same(nasty, cluster, namespace)
    # kubectl drops nothing and changes nothing on the second time.
    again = cluster.kubectl("apply", "-n", namespace, "-f", str(nasty))
    assert again.stdout.strip() == "sweep.orch.dev/nasty unchanged"


def _means_the_same(file: Path, cluster: Cluster, namespace: str) -> None:
    wanted = load(file)
    stored = from_object(_stored(cluster, namespace, wanted.metadata.name))
    assert stored == wanted
    assert [run.id for run in expand(stored)] == [run.id for run in expand(wanted)]


def test_nothing_is_filled_in(sweeps_defined: None, cluster: Cluster, namespace: str):
    value = _minimal()
    assert _apply(cluster, namespace, value).returncode == 0
    assert _stored(cluster, namespace, "one")["spec"] == value["spec"]


RUNS = [{"name": "a"}]
GROUP = {"name": "a", "runs": RUNS}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no runs": (
        _minimal(groups=[{"name": "a"}]),
        "spec.groups[0]: Invalid value: has no runs, got neither grid, zip nor runs; give one of them",
    ),
    "runs and grid": (
        _minimal(groups=[{**GROUP, "grid": {"lmbda": [0]}}]),
        "spec.groups[0]: Invalid value: runs go with neither grid nor zip",
    ),
    "runs and zip": (
        _minimal(groups=[{**GROUP, "zip": {"lmbda": [0]}}]),
        "runs go with neither grid nor zip",
    ),
    "runs and a template": (_minimal(groups=[{**GROUP, "run": "x"}]), "run and exclude are for grid and zip"),
    "runs and exclude": (
        _minimal(groups=[{**GROUP, "exclude": [{"lmbda": 0}]}]),
        "run and exclude are for grid and zip",
    ),
    "one name twice": (
        _minimal(groups=[GROUP, GROUP]),
        "spec.groups: Invalid value: names must differ, got one name twice; rename one",
    ),
    "a long name": (
        _minimal("a" * 29),
        "metadata.name: must have small letters, digits and single dashes, at most 28 characters",
    ),
    "a double dash": (_minimal("a--b"), "single dashes"),
    "a dot": (_minimal("a.b"), "single dashes"),
    "a tag twice": (_minimal(tags=["x", "x"]), "spec.tags: Invalid value: must not hold one value twice"),
    "a group's tag twice": (
        _minimal(groups=[{**GROUP, "tags": ["x", "x"]}]),
        "must not hold one value twice",
    ),
    "a seed twice": (_minimal(seeds=[1, 1]), "spec.seeds: Invalid value: must not hold one value twice"),
    "a group's seed twice": (_minimal(groups=[{**GROUP, "seeds": [7, 7]}]), "spec.groups[0].seeds"),
    "a task twice": (_minimal(eval={"tasks": ["mmlu", "mmlu"]}), "spec.eval.tasks: Invalid value"),
    "no groups": (_minimal(groups=[]), "spec.groups in body should have at least 1 items"),
    "text for a number": (
        _minimal(resources={"gpus": "8"}),
        "spec.resources.gpus in body must be of type integer",
    ),
    "too many GPUs": (_minimal(resources={"gpus": 65}), "should be less than or equal to 64"),
    "no CPU": (_minimal(resources={"cpu": 0}), "should be greater than 0"),
    "a memory in words": (
        _minimal(resources={"memory": "lots"}),
        "spec.resources.memory in body should match",
    ),
    "a seed too large": (_minimal(seeds=[2**32]), "should be less than or equal to 4294967295"),
    "an unknown variant": (_minimal(eval={"variants": ["raw"]}), 'supported values: "adapter", "merged"'),
    "an empty grid": (_minimal(groups=[{"name": "a", "grid": {}}]), "should have at least 1 properties"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_definition_sees_it_refuses(
    case: str, sweeps_defined: None, cluster: Cluster, namespace: str
):
    value, words = REFUSED[case]
    done = _apply(cluster, namespace, value)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())


def test_unknown_fields_are_refused_all_at_once(
    sweeps_defined: None, cluster: Cluster, api: Api, namespace: str
):
    value = _minimal(groups=[{**GROUP, "gird": {}}], parms={})
    done = _apply(cluster, namespace, value)
    assert 'unknown field "spec.groups[0].gird", unknown field "spec.parms"' in done.stderr
    with pytest.raises(Invalid, match="unknown field"):
        api.post(SWEEPS.path(namespace), value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("sweep.spec", ["Which runs, and how they are run.", "params", "control"]),
        (
            "sweep.spec.groups",
            ["Runs that answer one part of the question", "-required-", "Combinations to leave out"],
        ),
        ("sweep.spec.resources.memory", ["Main memory. Default: 8Gi."]),
        ("sweep.spec.control.retry", ["Jobs whose failure"]),
        ("sweep.status.best", ["lowest KL", "klStderr"]),
    ],
)
def test_explain_helps(path: str, words: list[str], sweeps_defined: None, cluster: Cluster):
    text = " ".join(cluster.kubectl("explain", path).stdout.split())
    assert [word for word in words if word not in text] == []


def test_a_smaller_file_removes_what_kubectl_set(
    sweeps_defined: None, cluster: Cluster, api: Api, namespace: str
):
    large = _minimal(
        params={"lmbda": 0, "beta": 0.5},
        groups=[
            {"name": "a", "runs": [{"name": "a"}, {"name": "b"}]},
            {"name": "g", "grid": {"learning_rate": [1e-5, 2e-5], "lora_r": [8]}},
        ],
        scheduling={"queue": "gpu", "parallelism": 4},
    )
    assert _apply(cluster, namespace, large).returncode == 0
    small = _minimal(
        params={"lmbda": 0},
        groups=[{"name": "a", "runs": RUNS}, {"name": "g", "grid": {"learning_rate": [1e-5]}}],
        scheduling={"parallelism": 4},
    )
    api.apply(SWEEPS.path(namespace, "one"), small, manager="orch", force=True)
    assert _stored(cluster, namespace, "one")["spec"] == small["spec"]


def test_kubectl_leaves_what_orch_set_and_a_file_no_longer_has(
    sweeps_defined: None, cluster: Cluster, api: Api, namespace: str
):
    """As docs/cluster.md says: stay with one of the two for a sweep."""
    large = _minimal(scheduling={"queue": "gpu"}, resources={"gpus": 1, "cpu": 2})
    api.apply(SWEEPS.path(namespace, "one"), large, manager="orch", force=True)
    assert _apply(cluster, namespace, _minimal(resources={"gpus": 0})).returncode == 0
    spec = _stored(cluster, namespace, "one")["spec"]
    assert (spec["scheduling"], spec["resources"]) == ({"queue": "gpu"}, {"gpus": 0, "cpu": 2})


def test_control_has_an_owner_of_its_own(sweeps_defined: None, cluster: Cluster, api: Api, namespace: str):
    path = SWEEPS.path(namespace, "one")
    api.apply(path, _minimal(), manager="orch", force=True)
    head = {key: value for key, value in _minimal().items() if key != "spec"}
    for control in ({"cancel": ["a", "b"], "suspend": True}, {"cancel": ["a"]}):
        api.apply(path, {**head, "spec": {"control": control}}, manager="orch-control", force=True)
        assert _stored(cluster, namespace, "one")["spec"]["control"] == control
    api.apply(path, _minimal(seeds=[1]), manager="orch", force=True)
    spec = _stored(cluster, namespace, "one")["spec"]
    assert (spec["control"], spec["seeds"]) == ({"cancel": ["a"]}, [1])


def test_an_older_definition_takes_a_newer_controller_s_status(
    sweeps_defined: None, cluster: Cluster, api: Api, namespace: str
):
    """Without the schema's word for it server-side apply of an unknown field is HTTP 500."""
    api.post(SWEEPS.path(namespace), _minimal())
    status = SweepStatus.model_validate(
        {
            "counts": {"total": 3, "running": 1, "dreaming": 2},
            "conditions": [
                {"type": "Complete", "status": "False", "reason": "Progressing", "message": "2 to go"}
            ],
            "best": {"run": "a-12345678", "kl": 0.25},
            "failures": [
                {"run": "b", "stage": "train", "attempt": 1, "class": "userError", "evidence": "exit 64"}
            ],
        }
    ).to_json()
    status |= {"novel": {"field": [1, {"x": None}]}}
    status["best"]["novel"] = 1
    status["conditions"][0]["novel"] = "x"
    status["failures"][0]["novel"] = "x"
    body = {**_minimal(), "status": status}
    del body["spec"]
    path = SWEEPS.path(namespace, "one", "status")
    first = json.loads(api.apply(path, body, manager="orch", force=True))
    assert first["status"] == status
    again = json.loads(api.apply(path, body, manager="orch", force=True))
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_get_shows_how_far_sweeps_are(sweeps_defined: None, cluster: Cluster, api: Api, namespace: str):
    api.post(SWEEPS.path(namespace), _minimal(scheduling={"queue": "gpu"}))
    status = SweepStatus.model_validate(
        {
            "counts": {"total": 9, "pending": 2, "running": 3, "done": 1, "failed": 3},
            "conditions": [
                {"type": "Accepted", "status": "True", "reason": "Valid"},
                {"type": "Complete", "status": "False", "reason": "Progressing", "message": "5 runs to go"},
            ],
            "best": {"run": "a-12345678", "kl": 0.25},
            "gpuHours": 12.5,
        }
    ).to_json()
    body = {"apiVersion": "orch.dev/v1alpha1", "kind": "Sweep", "metadata": {"name": "one"}, "status": status}
    api.apply(SWEEPS.path(namespace, "one", "status"), body, manager="orch", force=True)
    head, row = cluster.kubectl("get", "sw", "-n", namespace).stdout.splitlines()
    assert head.split() == ["NAME", "TOTAL", "RUNNING", "DONE", "FAILED", "BEST", "GPU-HOURS", "AGE"]
    assert row.split()[:7] == ["one", "9", "3", "1", "3", "a-12345678", "12.5"]
    head, row = cluster.kubectl("get", "orch", "-n", namespace, "-o", "wide").stdout.splitlines()
    assert head.split()[8:] == ["PENDING", "QUEUE", "MESSAGE"]
    assert row.split()[8:] == ["2", "gpu", "5", "runs", "to", "go"]


def test_sweeps_are_chosen_by_queue(sweeps_defined: None, cluster: Cluster, api: Api, namespace: str):
    api.post(SWEEPS.path(namespace), _minimal("one", scheduling={"queue": "gpu"}))
    api.post(SWEEPS.path(namespace), _minimal("two", scheduling={"queue": "cpu"}))
    chosen = cluster.kubectl(
        "get", "sw", "-n", namespace, "-o", "name", "--field-selector", "spec.scheduling.queue=gpu"
    )
    assert chosen.stdout.split() == ["sweep.orch.dev/one"]


def test_kubectl_s_yaml_is_older(sweeps_defined: None, cluster: Cluster, namespace: str):
    """What docs say of YAML: kubectl's `no` is false, which no list of tags takes."""
    text = yaml.safe_dump(_minimal()) + "  tags: [no]\n"
    done = cluster.kubectl("apply", "-n", namespace, "-f", "-", input=text, check=False)
    assert "spec.tags[0]" in done.stderr
    assert "boolean" in done.stderr
