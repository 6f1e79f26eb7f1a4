"""`orch install`: what would change in the cluster, object by object, and then changing it.

Server-side apply under a field manager of our own: a dry run tells what would come out, the server keeps what
others own. What a lab sets up once (profile, volume) is never reset.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.client.bundle import (
    Object,
    Options,
    bundle,
    cluster_scoped,
    container,
    label,
    path,
    settings,
    with_settings,
)
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import Conflict, Forbidden, NotFound
from orchestrator.cluster.kube.paths import NAMESPACES
from orchestrator.errors import ClusterError
from orchestrator.profile import PROFILE_FILE
from orchestrator.sweep.naming import ANNOTATION_VERSION, PROFILE_CONFIG_MAP
from orchestrator.sweep.spec import API_VERSION

MANAGER = "orch-install"
SERVED_WITHIN_S = 30.0
SHOWN = 70
"""Characters of a value that are shown."""
_SERVERS_OWN = {"managedFields", "resourceVersion", "uid", "creationTimestamp", "generation"}


class Verdict(StrEnum):
    """What installing does to an object."""

    CREATE = "create"
    CHANGE = "change"
    SAME = "unchanged"
    KEPT = "kept"
    DENIED = "no right"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Change:
    """One object: what is applied, what that does, and which fields change (`path: old → new`).

    `exists` is None where it may not be looked at.
    """

    object: Object
    verdict: Verdict
    fields: tuple[str, ...] = ()
    note: str = ""
    exists: bool | None = True

    @property
    def writes(self) -> bool:
        return self.verdict in (Verdict.CREATE, Verdict.CHANGE)


def plan(api: Api, options: Options, *, force: bool = False) -> list[Change]:
    """What installing would change, in the order of its writes; writes nothing.

    `force` takes over fields that other managers own. UserError for options that cannot be.
    """
    objects = bundle(options)
    missing = _found(api, NAMESPACES.path(None, options.namespace))[0] is False
    return [_change(api, one, options, force, untried=missing and not cluster_scoped(one)) for one in objects]


def apply(api: Api, changes: Sequence[Change], *, force: bool = False) -> Iterator[Change]:
    """Write what is to be created or changed, each as it is done; at the end the cluster serves Sweeps."""
    for change in changes:
        if change.writes:
            api.apply(path(change.object), change.object, manager=MANAGER, force=force)
            yield change
    if any(one.object["kind"] == "CustomResourceDefinition" and one.writes for one in changes):
        _await_sweeps(api)


def _change(api: Api, one: Object, options: Options, force: bool, *, untried: bool) -> Change:
    """`untried`: its namespace does not exist yet, so there is nothing to try it on."""
    exists, found = (False, None) if untried else _found(api, path(one))
    if exists is None and one["kind"] == "CustomResourceDefinition":
        exists = sweeps_served(api)
    wanted, note = desired(one, found, options)
    if wanted is None:
        return Change(one, Verdict.KEPT, note=note)
    if untried:
        return Change(wanted, Verdict.CREATE, exists=False)
    try:
        answer = _tried(api, wanted, force)
    except Forbidden as error:
        return Change(wanted, Verdict.DENIED, note=error.message, exists=exists)
    except NotFound:
        # A RoleBinding, by one who may grant only what he holds: its Role is not there yet.
        return Change(wanted, Verdict.CREATE, exists=False)
    except Conflict:
        # Values that the server takes for equal conflict too, when one of two leaves a default out.
        fields = tuple(differences(found, _tried(api, wanted, force=True)))
        return Change(wanted, Verdict.CONFLICT if fields else Verdict.SAME, fields)
    if found is None:
        return Change(wanted, Verdict.CREATE, exists=False)
    fields = tuple(differences(found, answer))
    return Change(wanted, Verdict.CHANGE if fields else Verdict.SAME, fields, note)


def _tried(api: Api, one: Object, force: bool) -> Object:
    """What applying it would make."""
    answer = api.apply(path(one), one, manager=MANAGER, force=force, dryRun="All")
    made: Object = json.loads(answer)
    return made


def _found(api: Api, address: str) -> tuple[bool | None, Object | None]:
    """Whether it exists (None: may not be looked at), and the object."""
    try:
        found: Object = json.loads(api.get(address))
        return True, found
    except NotFound:
        return False, None
    except Forbidden:
        return None, None


def desired(one: Object, found: Object | None, options: Options) -> tuple[Object | None, str]:
    """(What is applied, a note): the manifest, but for what the lab has set up; None leaves it alone."""
    if found is None:
        return one, ""
    kind, name = one["kind"], one["metadata"]["name"]
    if kind == "PersistentVolumeClaim":
        return None, _volume_note(found, options)
    if kind == "ConfigMap" and name == PROFILE_CONFIG_MAP:
        before = found.get("data", {}).get(PROFILE_FILE, "")
        after = with_settings(before, settings(options))
        return (None, "it is the lab's") if after == before else ({**one, "data": {PROFILE_FILE: after}}, "")
    if kind == "CustomResourceDefinition" and version_of(found) > version_of(one):
        newer = found["metadata"]["annotations"][ANNOTATION_VERSION]
        return None, f"the cluster's is newer ({newer}); update this orch"
    if kind == "Deployment" and options.controller_image is None:
        container(one)["image"] = container(found)["image"]
    return one, ""


def _volume_note(found: Object, options: Options) -> str:
    spec = found["spec"]
    has = {
        "--size": spec["resources"]["requests"]["storage"],
        "--storage-class": spec.get("storageClassName", ""),
    }
    asked = {"--size": options.size, "--storage-class": options.storage_class}
    other = [f"{flag} is {has[flag]}" for flag, value in asked.items() if value not in (None, has[flag])]
    return f"{', '.join(other)} and stays" if other else "its data is the lab's"


def version_of(definition: Mapping[str, Any]) -> tuple[int, ...]:
    """The version of the orch that made a CustomResourceDefinition; () for one that does not say."""
    annotations = definition["metadata"].get("annotations") or {}
    number = str(annotations.get(ANNOTATION_VERSION, "")).partition("+")[0]
    return tuple(int(part) for part in number.split(".") if part.isdecimal())


def faults(changes: Sequence[Change], options: Options) -> list[str]:
    """What keeps the plan from being carried out."""
    found = []
    for one in changes:
        kind = one.object["kind"]
        if one.verdict is Verdict.CONFLICT:
            found.append(
                f"{label(one.object)}: others own what would change, got {'; '.join(one.fields)}; "
                "give --force-conflicts to take it over"
            )
        elif one.verdict is Verdict.DENIED and not (cluster_scoped(one.object) and one.exists is not False):
            whom = "--crd-only once" if cluster_scoped(one.object) and kind != "Namespace" else "this"
            found.append(
                f"{label(one.object)}: is missing and may not be made, got {one.note}; "
                f"ask who administrates the cluster to run `orch install` for {whom}"
            )
        elif kind == "Deployment" and one.verdict is Verdict.CREATE and options.controller_image is None:
            found.append(
                "--controller-image: is needed the first time, got none; name your build of images/, "
                "NAME@sha256:DIGEST"
            )
    return found


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """`spec.replicas: 1 → 2` for all that differs; what the server keeps to itself is passed over."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            inner = f"{place}.{key}" if place else str(key)
            if inner != "status" and not (place == "metadata" and key in _SERVERS_OWN):
                yield from differences(before.get(key), after.get(key), inner)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{place}[{index}]")
    elif before != after:
        yield from _difference(before, after, place)


def _difference(before: Any, after: Any, place: str) -> Iterator[str]:
    texts = isinstance(before, str) and isinstance(after, str)
    if texts and "\n" in before + after:
        lines = difflib.ndiff(before.splitlines(), after.splitlines())
        yield from (f"{place}: {line}" for line in lines if line.startswith(("+ ", "- ")))
    else:
        yield f"{place}: {_shown(before)} → {_shown(after)}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def sweeps_served(api: Api) -> bool:
    """Whether the API server knows Sweeps; everyone may ask that."""
    try:
        api.get(f"/apis/{API_VERSION}")
        return True
    except NotFound:
        return False


def _await_sweeps(api: Api) -> None:
    """Return once the new kind is served, so that the next command finds it."""
    end = time.monotonic() + SERVED_WITHIN_S
    while not sweeps_served(api):
        if time.monotonic() > end:
            raise ClusterError(
                f"sweeps.orch.dev: is still not served after {SERVED_WITHIN_S:.0f} s; "
                "see kubectl describe crd sweeps.orch.dev"
            )
        time.sleep(0.2)
