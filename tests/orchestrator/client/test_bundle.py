"""The objects of an installation: the manifests themselves, and what options change in them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.client.bundle import CLUSTER_PART, Options, bundle, with_settings
from orchestrator.errors import UserError
from orchestrator.profile import Profile, parse_profile

ROOT = Path(__file__).parents[3]
MANIFESTS = ROOT / "manifests"
DIGEST = f"registry.lab/trainer@sha256:{'a' * 64}"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())

kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")


def _kustomize(folder: Path) -> dict[tuple[str, str], Any]:
    made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, check=True)
    return _by_name(yaml.safe_load_all(made.stdout))


def _by_name(objects: Any) -> dict[tuple[str, str], Any]:
    listed = list(objects)
    named = {(one["kind"], one["metadata"]["name"]): one for one in listed}
    assert len(named) == len(listed)
    return named


def _one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return _by_name(objects)[kind, name]


@kubectl
def test_dry_run_prints_what_kustomize_makes(tmp_path: Path):
    printed = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "install", "--dry-run", "-o", "yaml"],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={"KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert _by_name(yaml.safe_load_all(printed.stdout)) == _kustomize(MANIFESTS)


@kubectl
def test_namespace_is_set_as_kustomize_sets_it(tmp_path: Path):
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    shutil.copytree(MANIFESTS / "base", tmp_path / "base")
    (overlay / "kustomization.yaml").write_text("resources: [../base]\nnamespace: ml\n")
    assert _by_name(bundle(Options(namespace="ml"))) == _kustomize(overlay)


@kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_have_a_valid_profile(overlay: str):
    made = _kustomize(MANIFESTS / "overlays" / overlay)
    text = made["ConfigMap", "orch-profile"]["data"]["orch.toml"]
    assert isinstance(parse_profile(text, overlay), Profile)


@kubectl
def test_the_monitoring_follows_the_namespace_and_looks_at_the_controller(tmp_path: Path):
    for part in ("base", "components"):
        shutil.copytree(MANIFESTS / part, tmp_path / part)
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        "resources: [../base]\ncomponents: [../components/monitoring]\nnamespace: ml\n"
    )
    made = _kustomize(overlay)
    added = {
        key: made[key]
        for key in (
            ("PodMonitor", "orch-controller"),
            ("PrometheusRule", "orch"),
            ("NetworkPolicy", "orch-metrics"),
            ("ConfigMap", "orch-dashboard"),
        )
    }
    assert {one["metadata"]["namespace"] for one in added.values()} == {"ml"}
    pod = made["Deployment", "orch-controller"]["spec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    monitor = added["PodMonitor", "orch-controller"]["spec"]
    policy = added["NetworkPolicy", "orch-metrics"]["spec"]
    for chosen in (monitor["selector"], policy["podSelector"]):
        assert chosen["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert {ports[one["port"]] for one in monitor["podMetricsEndpoints"]} == {8080}
    assert policy["ingress"][0]["ports"] == [{"port": 8080, "protocol": "TCP"}]


@kubectl
def test_kueue_samples_lead_from_the_queue_to_the_flavors():
    made = _kustomize(MANIFESTS / "overlays" / "kueue" / "queues")
    queue, cluster = made["LocalQueue", "gpu"], made["ClusterQueue", "gpu"]
    assert queue["spec"]["clusterQueue"] == "gpu"
    (group,) = cluster["spec"]["resourceGroups"]
    flavors = [flavor["name"] for flavor in group["flavors"]]
    assert [name for name in flavors if ("ResourceFlavor", name) not in made] == []
    for flavor in group["flavors"]:
        assert [one["name"] for one in flavor["resources"]] == group["coveredResources"]
    labels = cluster["spec"]["namespaceSelector"]["matchLabels"]
    assert labels == {"kubernetes.io/metadata.name": queue["metadata"]["namespace"]}


def test_profile_of_the_base_is_the_default():
    text = _one(bundle(Options()), "ConfigMap", "orch-profile")["data"]["orch.toml"]
    assert parse_profile(text, "base") == Profile()


def test_names_that_the_code_relies_on():
    from orchestrator.sweep import naming

    objects = _by_name(bundle(Options()))
    profile = Profile()
    assert ("ConfigMap", naming.PROFILE_CONFIG_MAP) in objects
    assert ("Namespace", naming.DEFAULT_NAMESPACE) in objects
    assert ("PersistentVolumeClaim", profile.volumeClaim) in objects
    assert ("ServiceAccount", profile.serviceAccount) in objects
    assert {name for kind, name in objects if kind == "PriorityClass"} == set(
        profile.priorityClasses.values()
    )
    rules = objects["Role", "orch-controller"]["rules"]
    leases = [rule["resourceNames"] for rule in rules if rule["resources"] == ["leases"] and len(rule) > 3]
    assert leases == [[naming.CONTROLLER_LEASE]]


def test_the_address_of_the_webhook_is_mounted_where_the_profile_says_and_no_right_is_needed():
    objects = _by_name(bundle(Options()))
    pod = objects["Deployment", "orch-controller"]["spec"]["template"]["spec"]
    [volume] = [one for one in pod["volumes"] if "secret" in one]
    assert volume["secret"] == {"secretName": "orch-notify", "optional": True}
    [mount] = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == volume["name"]]
    assert (
        f'urlFile = "{mount["mountPath"]}/url"' in objects["ConfigMap", "orch-profile"]["data"]["orch.toml"]
    )
    rules = objects["Role", "orch-controller"]["rules"]
    assert [rule for rule in rules if {"secrets", "*"} & set(rule["resources"])] == []


def test_the_controller_may_reach_a_webhook_by_https():
    [egress] = [
        one["spec"]["egress"]
        for (kind, name), one in _by_name(bundle(Options())).items()
        if (kind, name) == ("NetworkPolicy", "orch-controller")
    ]
    open_ports = [port["port"] for rule in egress if "to" not in rule for port in rule["ports"]]
    assert 443 in open_ports


def test_nothing_installed_is_taken_for_a_job():
    from orchestrator.sweep.naming import LABEL_MANAGED_BY

    for one in bundle(Options()):
        assert LABEL_MANAGED_BY not in one["metadata"]["labels"]


def test_crd_only_is_what_namespaces_share():
    kinds = {one["kind"] for one in bundle(Options(crd_only=True))}
    assert kinds == set(CLUSTER_PART)
    assert "Namespace" not in kinds


def test_options_reach_the_objects():
    options = Options(
        namespace="ml",
        image=DIGEST,
        controller_image=DIGEST.replace("trainer", "controller"),
        storage_class="nfs",
        size="2Ti",
        fetch_ports=(443, 3128),
    )
    objects = bundle(options)
    deployment = _one(objects, "Deployment", "orch-controller")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == options.controller_image
    claim = _one(objects, "PersistentVolumeClaim", "orch")["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("nfs", "2Ti")
    text = _one(objects, "ConfigMap", "orch-profile")["data"]["orch.toml"]
    assert parse_profile(text, "") == Profile(image=DIGEST)
    policy = _one(objects, "NetworkPolicy", "orch-fetch")["spec"]
    assert [one["port"] for one in policy["egress"][0]["ports"]] == [443, 3128]
    (subject,) = _one(objects, "RoleBinding", "orch-controller")["subjects"]
    assert subject["namespace"] == "ml"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(image="trainer:latest"), "--image: must be pinned by digest"),
        (Options(controller_image=f"x@sha256:{'A' * 64}"), "--controller-image: must be pinned"),
        (Options(size="500G"), "--size: must be a number with Mi, Gi or Ti, got '500G'"),
        (Options(namespace="My_Lab"), "--namespace: must be small letters"),
        (Options(fetch_ports=(0,)), "--fetch-port: must be 1 to 65535, got 0"),
    ],
)
def test_options_that_cannot_be(options: Options, words: str):
    with pytest.raises(UserError, match="got") as error:
        bundle(options)
    assert words in str(error.value)


def test_tags_are_taken_where_the_lab_wants_them():
    options = Options(image="box:5000/trainer:dev", allow_image_tags=True)
    text = _one(bundle(options), "ConfigMap", "orch-profile")["data"]["orch.toml"]
    assert parse_profile(text, "") == Profile(image="box:5000/trainer:dev", allowImageTags=True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('# ours\nimage = "a"\nmaxMemory = "8Gi"\n', '# ours\nimage = "b"\nmaxMemory = "8Gi"\n'),
        ('[env]\nimage = "a"\n', 'image = "b"\n[env]\nimage = "a"\n'),
        ("", 'image = "b"\n'),
        ('image="b" # same', 'image="b" # same'),
        ('maxMemory = "8Gi"', 'image = "b"\nmaxMemory = "8Gi"'),
    ],
    ids=["a line", "a table's line is another's", "empty", "same already", "new line first"],
)
def test_a_setting_changes_its_line_alone(before: str, after: str):
    assert with_settings(before, {"image": "b"}) == after


@pytest.mark.parametrize(
    "text",
    ['note = """\nimage = "a"\n"""\n', "image =\n", '"image" = "a"\n'],
    ids=["inside", "broken", "quoted"],
)
def test_a_text_too_intricate_is_left_to_people(text: str):
    with pytest.raises(UserError, match="orch-profile"):
        with_settings(text, {"image": "b"})


def test_the_guide_explains_every_field_of_the_profile():
    guide = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    rows = [f"| `{name}` | {field.description} |" for name, field in Profile.model_fields.items()]
    assert [row for row in rows if row not in guide] == []
