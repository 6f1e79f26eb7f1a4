"""What no Job may be, whatever made it: the restricted Pod Security standard and our own rules.

Pure. Each check gets the whole Job and yields `<path>: <what is wrong>, got <value>; <what to do>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from orchestrator.profile import UNPUBLISHED_IMAGE, Profile
from orchestrator.sweep.naming import LABEL_MANAGED_BY, LABEL_STAGE, MANAGED_BY
from orchestrator.sweep.quantity import memory_bytes, read_quantity

MAX_BYTES = 200_000
MAX_ARGS_BYTES = 128_000
"""Longer argument lists fail at exec, after hours in the queue, with exit code 1."""

_PINNED = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh", "csh", "tcsh", "fish", "busybox", "env", "xargs"}
# kubernetes/pod-security-admission, check_restrictedVolumes.go
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def policy_faults(manifest: Mapping[str, Any], profile: Profile) -> list[str]:
    """Every way in which a Job breaks the policy; empty for a good one."""
    pod = _map(manifest, "spec", "template", "spec")
    stage = str(_map(manifest, "metadata", "labels").get(LABEL_STAGE))
    faults = [*_identity(manifest), *_job(_map(manifest, "spec"), stage), *_pod(pod), *_volumes(pod, stage)]
    containers = [*_items(pod, "initContainers"), *_items(pod, "containers")]
    if not containers:
        faults.append("spec.template.spec.containers: must hold one, got none")
    for container in containers:
        place = f"container {container.get('name', '?')}"
        checks = (_image(container, profile), _security(container), _command(container))
        found = [fault for check in checks for fault in check]
        faults += [f"{place}: {fault}" for fault in [*found, *_resources(container, profile)]]
    size = len(json.dumps(manifest))
    if size > MAX_BYTES:
        faults.append(f"manifest: must be at most {MAX_BYTES} bytes, got {size}")
    return faults


def _identity(manifest: Mapping[str, Any]) -> Iterator[str]:
    if (manifest.get("apiVersion"), manifest.get("kind")) != ("batch/v1", "Job"):
        yield f"kind: must be a batch/v1 Job, got {manifest.get('apiVersion')} {manifest.get('kind')}"
    by = _map(manifest, "metadata", "labels").get(LABEL_MANAGED_BY)
    if by != MANAGED_BY:
        yield f"metadata.labels: {LABEL_MANAGED_BY} must be {MANAGED_BY!r}, got {by!r}"


def _job(spec: Mapping[str, Any], stage: str) -> Iterator[str]:
    for field, wanted in {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
    }.items():
        if spec.get(field) != wanted:
            yield f"spec.{field}: must be {wanted!r}, got {spec.get(field)!r}"
    if "activeDeadlineSeconds" in spec:
        yield "spec.activeDeadlineSeconds: counts time in the queue, got one; set it on the pod"
    if "ttlSecondsAfterFinished" in spec and stage != "gc":
        yield "spec.ttlSecondsAfterFinished: would drop an unrecorded outcome, got one; it is set later"
    for rule in _items(_map(spec, "podFailurePolicy"), "rules"):
        if rule.get("action") != "FailJob":
            yield f"spec.podFailurePolicy: rules must be FailJob, got {rule.get('action')!r}"


def _pod(pod: Mapping[str, Any]) -> Iterator[str]:
    if pod.get("restartPolicy") != "Never":
        yield f"pod.restartPolicy: must be 'Never', got {pod.get('restartPolicy')!r}"
    if pod.get("automountServiceAccountToken") is not False:
        got = pod.get("automountServiceAccountToken")
        yield f"pod.automountServiceAccountToken: must be false, got {got!r}"
    for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.get(field):
            yield f"pod.{field}: must not be set, got {pod[field]!r}"
    if not pod.get("activeDeadlineSeconds"):
        yield "pod.activeDeadlineSeconds: must be set, got none"
    security = _map(pod, "securityContext")
    if security.get("runAsNonRoot") is not True:
        yield f"pod.securityContext.runAsNonRoot: must be true, got {security.get('runAsNonRoot')!r}"
    user = security.get("runAsUser")
    if not user:
        yield f"pod.securityContext.runAsUser: must be a user other than root, got {user!r}"
    profile = _map(security, "seccompProfile").get("type")
    if profile not in ("RuntimeDefault", "Localhost"):
        yield f"pod.securityContext.seccompProfile: must be RuntimeDefault, got {profile!r}"
    if security.get("sysctls"):
        yield f"pod.securityContext.sysctls: must not be set, got {security['sysctls']!r}"


def _volumes(pod: Mapping[str, Any], stage: str) -> Iterator[str]:
    for volume in _items(pod, "volumes"):
        place = f"volume {volume.get('name', '?')}"
        kinds = [key for key in volume if key != "name"]
        for kind in kinds:
            if kind not in _VOLUMES:
                yield f"{place}: must be one of {', '.join(sorted(_VOLUMES))}, got {kind}"
        sources = _items(_map(volume, "projected"), "sources")
        if any("serviceAccountToken" in source for source in sources):
            yield f"{place}: must not carry a service account token, got one"
        if stage != "fetch" and ("secret" in kinds or any("secret" in source for source in sources)):
            yield f"{place}: only fetch Jobs get a Secret, got one in stage {stage}"


def _image(container: Mapping[str, Any], profile: Profile) -> Iterator[str]:
    image = str(container.get("image", ""))
    if not (_PINNED.fullmatch(image) or profile.allowImageTags or image == UNPUBLISHED_IMAGE):
        yield (
            f"image: must be pinned by digest (NAME@sha256:…), got {image!r}; pin it, "
            "or set allowImageTags in orch.toml"
        )


def _security(container: Mapping[str, Any]) -> Iterator[str]:
    security = _map(container, "securityContext")
    for field, wanted in {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}.items():
        if security.get(field) is not wanted:
            yield f"securityContext.{field}: must be {str(wanted).lower()}, got {security.get(field)!r}"
    if security.get("privileged"):
        yield "securityContext.privileged: must not be set, got true"
    if security.get("runAsNonRoot", True) is not True or security.get("runAsUser", 1) == 0:
        yield "securityContext: must not run as root, got a user of its own"
    if security.get("procMount", "Default") != "Default":
        yield f"securityContext.procMount: must not be set, got {security['procMount']!r}"
    if _map(security, "seccompProfile").get("type", "RuntimeDefault") == "Unconfined":
        yield "securityContext.seccompProfile: must be RuntimeDefault, got Unconfined"
    capabilities = _map(security, "capabilities")
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield f"securityContext.capabilities: must drop ALL and add none, got {dict(capabilities)}"
    if any(port.get("hostPort") for port in _items(container, "ports")):
        yield "ports: must not take a port of the host, got one"


def _command(container: Mapping[str, Any]) -> Iterator[str]:
    command = [str(word) for word in container.get("command") or []]
    args = [str(word) for word in container.get("args") or []]
    if not command:
        yield "command: must be given as a list, got none"
    elif any(PurePosixPath(word).name in _SHELLS for word in command):
        yield f"command: must not start a shell, got {command}; give the program and its args as a list"
    if any("\x00" in word for word in [*command, *args]):
        yield "args: must hold no NUL character, got one"
    size = sum(len(word.encode("utf-8", "surrogatepass")) + 1 for word in [*command, *args])
    if size > MAX_ARGS_BYTES:
        yield f"args: must be at most {MAX_ARGS_BYTES} bytes, got {size}"
    for variable in _items(container, "env"):
        if "secretKeyRef" in _map(variable, "valueFrom"):
            yield f"env {variable.get('name')}: must not hold a Secret, got one; mount it as a file"
    if any("secretRef" in source for source in _items(container, "envFrom")):
        yield "envFrom: must not hold a Secret, got one; mount it as a file"


def _resources(container: Mapping[str, Any], profile: Profile) -> Iterator[str]:
    requests = _map(container, "resources", "requests")
    limits = _map(container, "resources", "limits")
    for field in ("cpu", "memory"):
        if not requests.get(field):
            yield f"resources.requests.{field}: must be set, got none"
    memory = str(limits.get("memory", ""))
    asked = {f"requests.{field}": requests.get(field) for field in ("cpu", "memory")}
    unread = list(_unreadable(asked | {"limits.memory": memory}))
    yield from unread
    if not memory:
        yield "resources.limits.memory: must be set, got none"
    elif profile.maxMemory and not unread and memory_bytes(memory) > memory_bytes(profile.maxMemory):
        yield f"resources.limits.memory: must be at most maxMemory {profile.maxMemory}, got {memory}"


def _unreadable(quantities: Mapping[str, Any]) -> Iterator[str]:
    for field, text in quantities.items():
        try:
            read_quantity(str(text or 0))
        except ValueError as error:
            yield f"resources.{field}: {error}"


def _map(value: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    for key in path:
        inner = value.get(key)
        value = inner if isinstance(inner, Mapping) else {}
    return value


def _items(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = value.get(key)
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []
