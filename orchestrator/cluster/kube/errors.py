"""What the API server refuses, as one readable line each.

ClusterError > ApiError > NotFound, AlreadyExists, Conflict, Gone, Forbidden, Unauthorized, Invalid, TooMany,
Unavailable. Only TooMany and Unavailable say "the same request may work later".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from orchestrator.cluster.kube.paths import address
from orchestrator.errors import ClusterError

LONGEST_MESSAGE = 1000
"""Characters of the server's words in one line; `message` has them whole."""

VERBS = {"GET": "read", "POST": "create", "PUT": "replace", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Cause:
    """One of the faults that a refusal lists; `field` is a path such as `spec.groups[1]`, may be empty."""

    field: str
    message: str
    reason: str = ""


class ApiError(ClusterError):
    """An answer other than 2xx, or none at all (status 0).

    `kind` and `name` are what the refusal is about: a 404 may name the namespace instead of the object.
    """

    def __init__(
        self,
        line: str,
        *,
        status: int,
        reason: str = "",
        message: str = "",
        causes: tuple[Cause, ...] = (),
        retry_after_s: float | None = None,
        kind: str = "",
        name: str = "",
    ) -> None:
        super().__init__(line)
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes
        self.retry_after_s = retry_after_s
        self.kind = kind
        self.name = name


class NotFound(ApiError):
    """404: the object, its namespace, or the whole kind (then `kind` is empty) does not exist."""


class AlreadyExists(ApiError):
    """409 on a create."""


class Conflict(ApiError):
    """409: another resourceVersion or uid than the one named, or another manager owns a field."""


class Gone(ApiError):
    """410: the resourceVersion or continue token is too old; list anew."""


class Forbidden(ApiError):
    """403: no right, or an object-count quota is full (then also for an object that exists already)."""


class Unauthorized(ApiError):
    """401: the credentials are not accepted, also after they were read anew."""


class Invalid(ApiError):
    """400, 413, 415, 422: what was sent is wrong and will be wrong again."""


class TooMany(ApiError):
    """429: the server sheds load; `retry_after_s` says when to come back."""


class Unavailable(ApiError):
    """5xx, no connection, a timeout, a body cut short."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    410: Gone,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: TooMany,
}


UNDECLARED = "field not declared in schema"
_FINAL_5XX = (UNDECLARED, "request is too large", "message larger than max")


class _Cause(msgspec.Struct):
    field: str = ""
    message: str = ""
    reason: str = ""


class _Details(msgspec.Struct, rename="camel"):
    kind: str = ""
    name: str = ""
    causes: list[_Cause] | None = None
    retry_after_seconds: float | None = None


class _Status(msgspec.Struct):
    """metav1.Status, as an error's body and as the object of an ERROR event."""

    message: str | None = None
    reason: str | None = None
    code: int | None = None
    details: _Details | None = None


_STATUS = msgspec.json.Decoder(_Status)


class Request(NamedTuple):
    """What was asked, for messages: `GET`, `watch`, …, the path, the server's address."""

    method: str
    path: str
    host: str = ""

    @property
    def failed(self) -> str:
        """`ml/jobs/x: cannot create`."""
        return f"{address(self.path).place}: cannot {VERBS.get(self.method, self.method)}"


def refused(request: Request, status: int, headers: Mapping[str, Any], body: bytes) -> ApiError:
    """The error for an answer: its body is a Status, or plain text where no kind of that path is served."""
    try:
        answer = _STATUS.decode(body)
    except msgspec.DecodeError:
        answer = _Status(message=body.decode("utf-8", "replace"))
    return _error(request, status, answer, _seconds(headers.get("Retry-After")))


def refused_event(request: Request, raw: bytes | msgspec.Raw) -> ApiError:
    """The error for the object of an ERROR event in a watch."""
    try:
        answer = _STATUS.decode(raw)
    except msgspec.DecodeError:
        answer = _Status(message=bytes(raw).decode("utf-8", "replace"))
    return _error(request, answer.code or 500, answer, None)


def why_refused(error: ApiError) -> str:
    """A CamelCase word for why an object is not taken."""
    if "exceeded quota" in str(error):
        return "QuotaExceeded"
    return "Invalid" if isinstance(error, Invalid) else "Forbidden"


def unreachable(request: Request, what: str) -> Unavailable:
    """The error for no answer, or half of one; `what` in words, e.g. `connection refused`."""
    line = f"{request.failed}, got no answer from {request.host}: {_one_line(what)}"
    return Unavailable(line, status=0, reason="NoAnswer", message=what)


def broken(request: Request, what: str) -> Unavailable:
    """The error for an answer that is no whole JSON."""
    line = f"{request.failed}, got an answer cut short or not JSON: {_one_line(what)}"
    return Unavailable(line, status=0, reason="Truncated", message=what)


def _error(request: Request, status: int, answer: _Status, retry_after_s: float | None) -> ApiError:
    details = answer.details or _Details()
    message = answer.message or ""
    reason = answer.reason or ""
    kind = _class_of(status, reason, message)
    said = _one_line(message)
    line = f"{request.failed}, got {status}{f' {reason}' if reason else ''}{f': {said}' if said else ''}"
    advice = _advice(request, kind, answer)
    return kind(
        f"{line}; {advice}" if advice else line,
        status=status,
        reason=reason,
        message=message,
        causes=tuple(Cause(cause.field, cause.message, cause.reason) for cause in details.causes or ()),
        retry_after_s=retry_after_s if retry_after_s is not None else details.retry_after_seconds,
        kind=details.kind,
        name=details.name,
    )


def _class_of(status: int, reason: str, message: str) -> type[ApiError]:
    if status == 409:
        return AlreadyExists if reason == "AlreadyExists" else Conflict
    if status >= 500:
        # Server-side apply answers 500 for a field that an older CRD lacks, and etcd's refusal of what is too
        # large comes as one: no later try will do better.
        return Invalid if any(words in message for words in _FINAL_5XX) else Unavailable
    return _BY_STATUS.get(status, ApiError)


def _advice(request: Request, kind: type[ApiError], answer: _Status) -> str:
    if kind is NotFound and answer.details is None:
        api = address(request.path).api
        ours = ": run `orch install`" if api.startswith("orch.dev/") else ""
        return f"the cluster serves no such {api}{ours}" if api else ""
    if kind is Unauthorized:
        return "log in to the cluster again, or name another --context"
    if kind is Invalid and UNDECLARED in (answer.message or ""):
        return "the cluster's CRD is older than this orch: run `orch install --crd-only`"
    return ""


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After as the API server sends it; its other form, a date, comes from no API server."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else None
