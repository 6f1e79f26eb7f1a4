"""The API server's addresses: which group serves what, and how a path to it is made and read."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote


class Resource(NamedTuple):
    """A kind as the API server serves it, e.g. `Resource("apis/batch/v1", "jobs")`."""

    api: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """`/apis/batch/v1/namespaces/ml/jobs/x/status`; namespace None: of the whole cluster."""
        parts = [self.api]
        if namespace is not None:
            parts += ["namespaces", _part(namespace)]
        parts.append(self.plural)
        if name is not None:
            parts.append(_part(name))
        if subresource is not None:
            parts.append(subresource)
        return "/" + "/".join(parts)


SWEEPS = Resource("apis/orch.dev/v1alpha1", "sweeps")
JOBS = Resource("apis/batch/v1", "jobs")
PODS = Resource("api/v1", "pods")
CONFIG_MAPS = Resource("api/v1", "configmaps")
EVENTS = Resource("apis/events.k8s.io/v1", "events")
CORE_EVENTS = Resource("api/v1", "events")
"""The same events by their older name, the one whose fields can be selected."""
LEASES = Resource("apis/coordination.k8s.io/v1", "leases")
NAMESPACES = Resource("api/v1", "namespaces")


class Address(NamedTuple):
    """What a path names, for messages; `resource` without names, as RBAC spells it: `jobs`, `pods/log`."""

    api: str
    place: str
    resource: str = ""


def address(path: str) -> Address:
    """`/apis/batch/v1/namespaces/ml/jobs/x` is `batch/v1`, `ml/jobs/x`, `jobs`; another stands for itself."""
    parts = path.split("?")[0].strip("/").split("/")
    if parts[0] == "apis" and len(parts) > 3:
        api, rest = "/".join(parts[1:3]), parts[3:]
    elif parts[0] == "api" and len(parts) > 2:
        api, rest = parts[1], parts[2:]
    else:
        return Address("", path)
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[1:]
        return Address(api, "/".join(rest), "/".join([rest[1], *rest[3:]]))
    return Address(api, "/".join(rest), "/".join([rest[0], *rest[2:]]))


def _part(text: str) -> str:
    """One step of a path. ValueError for what would leave it: a name that is empty, `.` or `..`."""
    if text in {"", ".", ".."}:
        raise ValueError(f"no name for an API path, got {text!r}")
    return quote(text, safe="")
