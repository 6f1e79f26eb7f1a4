"""What an installation consists of: the objects of manifests/base, with a lab's namespace, images and sizes.

Pure but for reading the files. `kubectl kustomize manifests/` makes the same objects.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cluster.kube.paths import Resource
from orchestrator.errors import UserError
from orchestrator.profile import PROFILE_FILE
from orchestrator.render.template import manifests_folder
from orchestrator.sweep.naming import DEFAULT_NAMESPACE, PROFILE_CONFIG_MAP

Object = dict[str, Any]

CONTROLLER = "orch-controller"

_PLURALS = {
    "Namespace": "namespaces",
    "CustomResourceDefinition": "customresourcedefinitions",
    "PriorityClass": "priorityclasses",
    "ClusterRole": "clusterroles",
    "ServiceAccount": "serviceaccounts",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "ConfigMap": "configmaps",
    "NetworkPolicy": "networkpolicies",
    "Deployment": "deployments",
}
_CLUSTER_SCOPED = {"Namespace", "CustomResourceDefinition", "PriorityClass", "ClusterRole"}
CLUSTER_PART = _CLUSTER_SCOPED - {"Namespace"}
"""What `--crd-only` installs: shared by all namespaces, for a cluster's admin to make."""

_PINNED = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[1-9][0-9]{0,5}(Mi|Gi|Ti)")


@dataclass(frozen=True)
class Options:
    """What a lab chooses; None leaves what the manifests say, or what is installed."""

    namespace: str = DEFAULT_NAMESPACE
    image: str | None = None
    controller_image: str | None = None
    storage_class: str | None = None
    size: str | None = None
    fetch_ports: tuple[int, ...] = ()
    allow_image_tags: bool = False
    crd_only: bool = False

    def check(self) -> None:
        """UserError with every option that cannot be."""
        faults = list(_option_faults(self))
        if faults:
            raise UserError("\n".join(faults))


def _option_faults(options: Options) -> Iterator[str]:
    if not _NAMESPACE.fullmatch(options.namespace):
        yield (
            f"--namespace: must be small letters, digits and dashes, got {options.namespace!r}; "
            "name it otherwise"
        )
    for flag, image in (("--image", options.image), ("--controller-image", options.controller_image)):
        if image is not None and not (_PINNED.fullmatch(image) or options.allow_image_tags):
            yield (
                f"{flag}: must be pinned by digest (NAME@sha256:…), got {image!r}; pin it, "
                "or give --allow-image-tags"
            )
    if options.size is not None and not _QUANTITY.fullmatch(options.size):
        yield f"--size: must be a number with Mi, Gi or Ti, got {options.size!r}; write 500Gi"
    for port in options.fetch_ports:
        if not 0 < port < 65536:
            yield f"--fetch-port: must be 1 to 65535, got {port}; name the port of your proxy"


def bundle(options: Options, folder: Path | None = None) -> list[Object]:
    """The objects in the order in which they are made. UserError for options that cannot be."""
    options.check()
    objects = [_placed(one, options.namespace) for one in _read(folder or manifests_folder() / "base")]
    if options.crd_only:
        return [one for one in objects if one["kind"] in CLUSTER_PART]
    for one in objects:
        _chosen(one, options)
    return objects


def _read(folder: Path) -> Iterator[Object]:
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    for name in listed["resources"]:
        yield from yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))


def _placed(one: Object, namespace: str) -> Object:
    if one["kind"] == "Namespace":
        one["metadata"]["name"] = namespace
    elif not cluster_scoped(one):
        one["metadata"]["namespace"] = namespace
    for subject in one.get("subjects", []):
        subject["namespace"] = namespace
    return one


def _chosen(one: Object, options: Options) -> None:
    kind, name = one["kind"], one["metadata"]["name"]
    if kind == "Deployment" and options.controller_image:
        container(one)["image"] = options.controller_image
    elif kind == "PersistentVolumeClaim":
        if options.storage_class is not None:
            one["spec"]["storageClassName"] = options.storage_class
        if options.size is not None:
            one["spec"]["resources"]["requests"]["storage"] = options.size
    elif kind == "ConfigMap" and name == PROFILE_CONFIG_MAP:
        one["data"][PROFILE_FILE] = with_settings(one["data"][PROFILE_FILE], settings(options))
    elif kind == "NetworkPolicy" and name == "orch-fetch":
        ports = one["spec"]["egress"][0]["ports"]
        ports += [{"port": port, "protocol": "TCP"} for port in options.fetch_ports if port != 443]


def settings(options: Options) -> dict[str, str | bool]:
    """Lines of the profile that the options ask for."""
    asked: dict[str, str | bool] = {"image": options.image} if options.image else {}
    return asked | ({"allowImageTags": True} if options.allow_image_tags else {})


def with_settings(profile: str, changes: Mapping[str, str | bool]) -> str:
    """A TOML text with some of its top-level lines set anew; everything else, comments too, stays as it is.

    UserError when the text is not so simple that this can be done.
    """
    before = _parsed(profile)
    changes = {key: value for key, value in changes.items() if before.get(key) != value}
    lines = profile.splitlines(keepends=True)
    for key, value in changes.items():
        # Settings after a table's heading belong to the table.
        end = next((i for i, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
        place = next((i for i in range(end) if re.match(rf"{re.escape(key)}\s*=", lines[i])), None)
        new = f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
        lines[0 if place is None else place : 0 if place is None else place + 1] = [new]
    text = "".join(lines)
    if _parsed(text) != {**before, **changes}:
        names = ", ".join(changes)
        raise UserError(
            f"{PROFILE_CONFIG_MAP}: cannot set {names} in it, got a text too intricate; edit it by hand"
        )
    return text


def _parsed(profile: str) -> dict[str, Any]:
    try:
        return tomllib.loads(profile)
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"{PROFILE_CONFIG_MAP}: is no TOML, got {error}; correct it with kubectl edit"
        ) from error


# Objects ---------------------------------------------------------------------


def cluster_scoped(one: Mapping[str, Any]) -> bool:
    """Whether it lies in no namespace."""
    return one["kind"] in _CLUSTER_SCOPED


def resource(one: Mapping[str, Any]) -> Resource:
    """How the API server serves its kind."""
    version = one["apiVersion"]
    return Resource(f"apis/{version}" if "/" in version else f"api/{version}", _PLURALS[one["kind"]])


def path(one: Mapping[str, Any]) -> str:
    """Its address."""
    return resource(one).path(one["metadata"].get("namespace"), one["metadata"]["name"])


def label(one: Mapping[str, Any]) -> str:
    """`Deployment orch-controller`, for people."""
    return f"{one['kind']} {one['metadata']['name']}"


def container(deployment: Mapping[str, Any]) -> dict[str, Any]:
    """The controller's container."""
    containers: list[dict[str, Any]] = deployment["spec"]["template"]["spec"]["containers"]
    return containers[0]


def to_yaml(objects: list[Object]) -> str:
    """A stream of documents."""
    return yaml.safe_dump_all(objects, sort_keys=False, width=110, allow_unicode=True)
