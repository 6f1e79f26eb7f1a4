"""Rendered Jobs: golden files compared as data, the client's strict models, values that stay values."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import V1Job

from orchestrator.cluster.container import expand
from orchestrator.errors import RenderError
from orchestrator.profile import Profile, Volume
from orchestrator.render import render_job, schema_faults
from orchestrator.render.template import fill, to_json
from orchestrator.sweep.spec import Resources, Scheduling

GOLDEN = Path(__file__).parent / "golden"
STAGES = ["fetch", "baseline", "train", "eval"]


def main(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("stage", STAGES)
def test_render_equals_its_golden_file(request_of, profile, stage):
    resources = Resources(gpus=0, memory="16Gi") if stage == "fetch" else request_of().resources
    job = render_job(request_of(stage=stage, resources=resources), profile)
    assert job == yaml.safe_load((GOLDEN / f"{stage}.yaml").read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_render_of_a_bare_request_and_the_default_profile_is_valid(request_of, stage):
    bare = {"scheduling": Scheduling(), "resources": Resources(), "memory": None, "avoid_nodes": ()}
    job = render_job(request_of(stage=stage, sweep_uid=None, **bare), Profile())
    V1Job.model_validate(job, strict=True)
    assert "ownerReferences" not in job["metadata"]
    assert job["spec"]["suspend"] is False
    assert main(job)["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "1"}
    assert job["spec"]["template"]["spec"]["affinity"] == {"nodeAffinity": {}}


NASTY = {
    "a dollar": "$HOME $(ORCH_ATTEMPT) $$",
    "quotes": 'it\'s "so" \\ and `so`',
    "a new line and yaml": "x\n- --evil\nsecurityContext: {privileged: true}",
    "a template": "{{ image }} {% if x %} {# c #}",
    "line breaks of yaml": "a\x85b\u2028c\u2029d\ufeff",
    "control characters": "\x01\x1f\x7f\t\r",
    "beyond the basic plane": "λ β \U0001f600",
    "yaml words": "no",
    "a number": "1e-05",
    "nothing": "",
    "a comment": "# x",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_render_keeps_any_text(request_of, text):
    given = request_of(args=("train", text), sweep_uid=None)
    job = render_job(given, Profile(env={"NASTY": text}))
    said = main(job)
    env = {entry["name"]: entry.get("value") for entry in said["env"]}
    assert [expand(arg, {"ORCH_ATTEMPT": "leak"}) for arg in said["args"]] == ["train", text]
    assert expand(env["NASTY"], {"ORCH_ATTEMPT": "leak"}) == text
    plain = render_job(request_of(args=("train", "x"), sweep_uid=None), Profile(env={"NASTY": "x"}))
    said["args"], said["env"] = main(plain)["args"], main(plain)["env"]
    assert job == plain, "nothing else of the Job changes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"resources": Resources(gpuType=["H10"])},
            "resources.gpuType: the profile does not know it, got 'H10'; did you mean H100?",
            id="unknown GPU type",
        ),
        pytest.param(
            {"scheduling": Scheduling(priority="urgent")},
            "scheduling.priority: the profile does not know it, got 'urgent'; add it",
            id="unknown priority",
        ),
        pytest.param({"stage": "report"}, "stage: must be one of fetch", id="stage without a template"),
        pytest.param({"memory": "500Gi"}, "must be at most maxMemory 400Gi, got 500Gi", id="too much memory"),
        pytest.param({"args": ("train", "a\x00b")}, "args: must hold no NUL", id="NUL in an argument"),
        pytest.param({"args": ("train", "x" * 140_000)}, "args: must be at most 128000 bytes", id="too long"),
    ],
)
def test_render_refuses(request_of, profile, changes, message):
    with pytest.raises(RenderError) as caught:
        render_job(request_of(**changes), profile, check_schema=False)
    assert message in str(caught.value)


def test_render_tells_all_faults_at_once(request_of, profile):
    with pytest.raises(RenderError) as caught:
        render_job(request_of(args=("a\x00",), memory="500Gi"), profile.model_copy(update={"image": "a:b"}))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("job night--lmbda0-lr5e6-0123abcd-train-2: ") for line in lines)


def test_template_refuses_what_is_no_scalar():
    with pytest.raises(TypeError, match="must emit text, numbers or booleans, got dict"):
        to_json({})


@pytest.mark.parametrize("value", [1e-5, 5e-324, 1e22, 0.1, -0.0, 3, True, "1e-05"])
def test_template_scalars_survive_yaml(value):
    read = yaml.safe_load(to_json(value))
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param("a: {{ nothing }}", "'nothing' is undefined", id="undefined name"),
        pytest.param("a: {{ data }}", "must emit text, numbers or booleans, got list", id="a list"),
        pytest.param("a: {{ text.__class__ }}", "cannot be rendered", id="an attribute of Python"),
        pytest.param('a: "{{ text }}"', "cannot be rendered", id="quotes around a scalar"),
        pytest.param("a: 1\n---\nb: 2", "cannot be rendered", id="two documents"),
        pytest.param("- 1", "must make a map, got list", id="a list as document"),
    ],
)
def test_template_fails_closed(tmp_path, template, message):
    (tmp_path / "x.yaml.j2").write_text(template)
    with pytest.raises(RenderError, match=message):
        fill("x.yaml.j2", {"text": "x", "data": ["x"]}, tmp_path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        pytest.param({"backofLimit": 1}, "spec.backofLimit", id="misspelt field"),
        pytest.param({"backoff_limit": 1}, "spec.backoff_limit", id="Python's name of a field"),
        pytest.param({"backoffLimit": "1"}, "spec.backoffLimit", id="number as text"),
    ],
)
def test_schema_names_the_field(request_of, profile, change, place):
    job = render_job(request_of(), profile)
    del job["spec"]["backoffLimit"]
    job["spec"] |= change
    (fault,) = schema_faults(job)
    assert fault.startswith(f"{place}: ")


def test_render_is_plain_data(request_of, profile):
    job = render_job(request_of(), profile)
    assert json.loads(json.dumps(job)) == job


def test_render_imports_kubernetes_only_to_check():
    script = (
        "import sys; import orchestrator.render, orchestrator.cluster.local; "
        "sys.exit(any(name in sys.modules for name in ('kubernetes', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_labs_own_volumes_and_group_reach_every_job(request_of):
    profile = Profile(
        allowImageTags=True,
        fsGroup=3000,
        volumes=[
            Volume(name="datasets", mountPath="/mnt/datasets", claim="datasets", subPath="text"),
            Volume(name="ca", mountPath="/etc/lab-ca", configMap="lab-ca"),
        ],
    )
    for stage in STAGES:
        pod = render_job(request_of(stage=stage), profile)["spec"]["template"]["spec"]
        volumes = {one["name"]: one for one in pod["volumes"]}
        assert volumes["datasets"]["persistentVolumeClaim"] == {"claimName": "datasets"}
        assert volumes["ca"]["configMap"] == {"name": "lab-ca"}
        mounts = {one["name"]: one for one in pod["containers"][0]["volumeMounts"]}
        assert mounts["datasets"] == {
            "name": "datasets",
            "mountPath": "/mnt/datasets",
            "subPath": "text",
            "readOnly": True,
        }
        assert pod["securityContext"]["fsGroup"] == 3000
        assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
