"""What `orch doctor` thinks of an installation: each check is a pure function of what was fetched.

A check yields findings: ok, missing (with what to do), or unknown (what could not be looked at, and why).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from orchestrator import __version__
from orchestrator.client.bundle import CONTROLLER, container
from orchestrator.profile import UNPUBLISHED_IMAGE, Profile
from orchestrator.sweep.naming import (
    ANNOTATION_VERSION,
    CONTROLLER_LEASE,
    LABEL_MANAGED_BY,
    MANAGED_BY,
    PROFILE_CONFIG_MAP,
)

State = Literal["ok", "missing", "unknown"]
OLDEST = (1, 31)
"""podFailurePolicy is stable since then, and status of Jobs tells all that the controller reads."""
CLOCKS_APART_S = 60.0
"""This machine's clock may differ from the cluster's."""
ENFORCE = "pod-security.kubernetes.io/enforce"
_PINNED = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Finding:
    """What one check found; `remedy` says what to do about what is missing."""

    check: str
    state: State
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Seen:
    """What may be seen of an object or a list: `value` None is absent, `denied` the refusal to look."""

    value: Any = None
    denied: str = ""

    @property
    def absent(self) -> bool:
        return self.value is None and not self.denied


@dataclass(frozen=True)
class Right:
    """An answer to "may I": `patch sweeps.orch.dev`."""

    verb: str
    resource: str
    allowed: bool

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


def ok(check: str, message: str) -> Finding:
    return Finding(check, "ok", message)


def missing(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, "missing", message, remedy)


def unseen(check: str, what: str, seen: Seen) -> Finding:
    return Finding(check, "unknown", f"{what}: cannot be looked at, got {seen.denied}")


def api(host: str, version: Mapping[str, Any]) -> Iterator[Finding]:
    """`version` is the answer of /version."""
    said = str(version.get("gitVersion", "?"))
    number = tuple(int(re.sub(r"\D.*", "", str(version.get(part, ""))) or 0) for part in ("major", "minor"))
    if number < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        yield missing("api", f"{host} is Kubernetes {said}, too old", f"use {wanted} or newer")
    else:
        yield ok("api", f"{host} is Kubernetes {said}")


def definition(seen: Seen, served: bool, ours: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether Sweeps are known to the cluster, and as this orch knows them."""
    if not served:
        yield missing("crd", "the cluster knows no Sweeps", "run `orch install --crd-only` as its admin")
        return
    if seen.value is None:
        yield unseen("crd", "the cluster knows Sweeps; the version of their definition", seen)
        return
    theirs, mine = _version(seen.value), _version(ours)
    if theirs == mine:
        yield ok("crd", f"Sweeps are defined as in this orch ({__version__})")
    elif _number(theirs) > _number(mine):
        yield missing(
            "crd", f"Sweeps are defined by a newer orch, {theirs}", f"update this one ({__version__})"
        )
    else:
        said = theirs or "one that does not say"
        yield missing(
            "crd", f"Sweeps are defined by an older orch, {said}", "run `orch install --crd-only` as admin"
        )


def _version(one: Mapping[str, Any]) -> str:
    return str((one["metadata"].get("annotations") or {}).get(ANNOTATION_VERSION, ""))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdecimal())


def namespace(name: str, seen: Seen) -> Iterator[Finding]:
    """Whether it exists, and refuses pods that are not restricted."""
    if seen.absent:
        yield missing("namespace", f"there is no namespace {name}", f"run `orch install -n {name}`")
    elif seen.denied:
        yield unseen("namespace", f"namespace {name}", seen)
    else:
        level = (seen.value["metadata"].get("labels") or {}).get(ENFORCE)
        if level == "restricted":
            yield ok("namespace", f"{name} enforces the restricted Pod Security standard")
        else:
            yield missing(
                "namespace",
                f"{name} enforces {f'Pod Security {level!r}' if level else 'no Pod Security standard'}",
                f"run `orch install -n {name}`, or label it {ENFORCE}=restricted",
            )


def controller(seen: Seen, pods: Seen) -> Iterator[Finding]:
    """Whether it runs, and from an image that cannot change; `pods` are the controller's."""
    if seen.absent:
        yield missing("controller", "there is no controller", "run `orch install --controller-image …`")
        return
    if seen.denied:
        yield unseen("controller", f"Deployment {CONTROLLER}", seen)
        return
    wanted, ready = (
        seen.value["spec"].get("replicas", 1),
        seen.value.get("status", {}).get("readyReplicas", 0),
    )
    image = container(seen.value)["image"]
    if not wanted:
        yield missing("controller", "is scaled to 0", f"kubectl scale deployment {CONTROLLER} --replicas=1")
    elif not ready:
        yield missing(
            "controller",
            f"0 of {wanted} ready{_trouble(seen.value, pods.value or [])}",
            f"see kubectl describe pods -l app.kubernetes.io/component=controller; its image is {image}",
        )
    else:
        yield ok("controller", f"{ready} of {wanted} ready")
    yield _pinned("controller-image", image, "run `orch install --controller-image NAME@sha256:…`")


def _trouble(deployment: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> str:
    """What its conditions and its pods complain of, each once."""
    status = deployment.get("status", {})
    bad = [
        str(one.get("message", ""))
        for one in status.get("conditions") or []
        if (one.get("type"), one.get("status")) in (("ReplicaFailure", "True"), ("Progressing", "False"))
    ]
    for pod in pods:
        told = pod.get("status", {})
        bad += [
            f"{one.get('reason')}: {one.get('message', '')}"
            for one in told.get("conditions") or []
            if (one.get("type"), one.get("status")) == ("PodScheduled", "False")
        ]
        states = [one.get("state", {}) for one in told.get("containerStatuses") or []]
        bad += [str(state["waiting"].get("reason")) for state in states if "waiting" in state]
        bad += [f"ended with {one['terminated'].get('exitCode')}" for one in states if "terminated" in one]
    return f": {'; '.join(dict.fromkeys(bad))}" if bad else ""


def lease(seen: Seen, now: datetime) -> Iterator[Finding]:
    """Whether a controller holds it and renews it."""
    if seen.absent:
        yield missing("lease", "no controller has ever taken the Lease", "see the controller's log")
        return
    if seen.denied:
        yield unseen("lease", f"Lease {CONTROLLER_LEASE}", seen)
        return
    spec = seen.value["spec"]
    holder, renewed = spec.get("holderIdentity"), spec.get("renewTime")
    if not holder or not renewed:
        yield missing("lease", "no controller holds the Lease", "see the controller's log")
        return
    age_s = (now - datetime.fromisoformat(renewed)).total_seconds()
    if age_s > spec.get("leaseDurationSeconds", 0) + CLOCKS_APART_S:
        yield missing(
            "lease", f"{holder} renewed the Lease {age_s:.0f} s ago", "it hangs or is gone: see its log"
        )
    else:
        yield ok("lease", f"{holder} leads")


def rights(answers: Sequence[Right]) -> Iterator[Finding]:
    """What this user may do in the namespace."""
    lacking = [str(one) for one in answers if not one.allowed]
    if lacking:
        yield missing(
            "rights",
            f"you may not {', '.join(lacking)}",
            "ask for the Role orch-user: kubectl create rolebinding … --role=orch-user --user=…",
        )
    else:
        yield ok("rights", "you may submit, watch and end sweeps, and read their logs")


def profile(seen: Seen, fault: str) -> Iterator[Finding]:
    """Whether the controller has its defaults; `fault` is what is wrong in them."""
    if seen.absent:
        yield missing("profile", f"there is no ConfigMap {PROFILE_CONFIG_MAP}", "run `orch install`")
    elif seen.denied:
        yield unseen("profile", f"ConfigMap {PROFILE_CONFIG_MAP}", seen)
    elif fault:
        yield missing("profile", fault, f"kubectl edit configmap {PROFILE_CONFIG_MAP}")
    else:
        yield ok("profile", f"ConfigMap {PROFILE_CONFIG_MAP} is valid")


def image(lab: Profile) -> Iterator[Finding]:
    """Whether Jobs have an image, and one that cannot change."""
    if lab.image == UNPUBLISHED_IMAGE and not lab.allowImageTags:
        yield missing(
            "image", "the profile names no trainer image", "run `orch install --image NAME@sha256:…`"
        )
    elif lab.allowImageTags and not _PINNED.fullmatch(lab.image):
        yield ok("image", f"{lab.image} is not pinned by digest, as the profile allows")
    else:
        yield _pinned("image", lab.image, "run `orch install --image NAME@sha256:…`")


def _pinned(check: str, name: str, remedy: str) -> Finding:
    if _PINNED.fullmatch(name):
        return ok(check, f"{name} is pinned by digest")
    return missing(check, f"{name} is not pinned by digest", remedy)


def token(lab: Profile, seen: Seen) -> Iterator[Finding]:
    """Whether the Secret that fetch Jobs mount is there; of its content only the keys' names matter."""
    name = lab.hubTokenSecret
    if name is None:
        yield ok("hub-token", "none is set up: public models and data only")
    elif seen.denied:
        yield unseen("hub-token", f"Secret {name}", seen)
    elif seen.absent:
        yield missing(
            "hub-token",
            f"there is no Secret {name}",
            f"kubectl create secret generic {name} --from-file=token=FILE",
        )
    elif "token" not in (seen.value.get("data") or {}):
        yield missing(
            "hub-token", f"Secret {name} has no key `token`", "make it anew with --from-file=token=FILE"
        )
    else:
        yield ok("hub-token", f"Secret {name} has its key")


def network(seen: Seen) -> Iterator[Finding]:
    """Whether pods of Jobs are cut off, save for what a policy lets through."""
    if seen.denied:
        yield unseen("network", "NetworkPolicies", seen)
        return
    pod = {LABEL_MANAGED_BY: MANAGED_BY}
    if any(_denies(one["spec"], pod) for one in seen.value or []):
        yield ok("network", "Jobs are cut off by default; whether the network plugin heeds it is not visible")
    else:
        yield missing("network", "no NetworkPolicy cuts Jobs off by default", "run `orch install`")


def _denies(spec: Mapping[str, Any], pod: Mapping[str, str]) -> bool:
    selector = spec.get("podSelector") or {}
    chosen = all(pod.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    both = {"Ingress", "Egress"} <= set(spec.get("policyTypes") or [])
    lets = spec.get("ingress") or spec.get("egress") or selector.get("matchExpressions")
    return chosen and both and not lets
