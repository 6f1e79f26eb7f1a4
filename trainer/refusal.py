"""What a failed fetch means: the user's fault, the hub's or the disk's, each in one line. Torch-free."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from trainer.attempt import Preempted
from trainer.flags import UsageError, nearest
from trainer.mark import Store
from trainer.volume import ADVICE, VolumeFault
from trainer.volume import causes as led_to

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

NEIGHBOURS = 500
"""Repositories of an organisation among which a misspelt name is looked for."""
_RETRIED = (408, 425, 429)
_DISK = {
    **{code: ADVICE[code] for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)},
    errno.EACCES: "let this user write there",
}


class HubFault(Exception):
    """The hub cannot be reached, or serves damage, now: the same fetch may succeed later. Exit 75."""


@dataclass(frozen=True)
class Asked:
    """What was asked for: `place` heads messages, e.g. model_name."""

    place: str
    repo_type: Literal["model", "dataset"]
    name: str
    revision: str


class Hub(Protocol):
    """What a message tells of the hub that was asked, and asks it for names near to a wrong one."""

    endpoint: str
    token: str | None
    token_file: Path
    store: Store

    @property
    def api(self) -> HfApi: ...


def meaning(error: BaseException, asked: Asked, hub: Hub) -> Exception | None:
    """The user's fault (UsageError), the hub's (HubFault), the disk's (VolumeFault); None: none of these.

    A signal that a library took for a fault of its own stays one (Preempted).
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    causes = list(led_to(error))
    for cause in causes:
        if isinstance(cause, Preempted):
            return cause
        if isinstance(cause, OSError) and cause.errno in _DISK:
            what = (
                f"{os.strerror(cause.errno)} while fetching {asked.name} ({cause.filename or cause.strerror})"
            )
            return VolumeFault(f"{hub.store.home}: {what}; {_DISK[cause.errno]}")
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return UsageError(
            f"{asked.place}: not fetched yet, got {asked.name!r} at {asked.revision}, and the hub may not be "
            "asked here (HF_HUB_OFFLINE); run `python -m trainer fetch` first"
        )
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause, asked, hub)
    told = _line(causes[-1], hub.token)
    if any("CERTIFICATE_VERIFY_FAILED" in str(cause) for cause in causes):
        return UsageError(
            f"{hub.endpoint}: its certificate is not trusted, got {told}; name your proxy's authority in "
            "SSL_CERT_FILE, or build the image with it"
        )
    faults = (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError)
    if any(isinstance(cause, faults) or "Consistency check" in str(cause) for cause in causes):
        return HubFault(f"{asked.place}: {hub.endpoint} cannot be reached, got {told} for {asked.name}")
    of_data = [cause for cause in causes if _is_of_data(cause)]
    if of_data and not isinstance(causes[-1], MemoryError):
        return UsageError(
            f"{asked.place}: cannot be read, got {asked.name!r} at {asked.revision}: "
            f"{_line(of_data[0], hub.token)}; give data that `datasets` loads"
        )
    return None


def _refusal(error: HfHubHTTPError, asked: Asked, hub: Hub) -> Exception:
    """What a status says, with what to do about it."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status, said = error.response.status_code, error.response.headers.get("X-Error-Message") or ""
    if status >= 500 or status in _RETRIED:
        return HubFault(f"{asked.place}: {hub.endpoint} is out of order, got {status} for {asked.name}")
    got = f"got {status} for {asked.name!r}"
    who = "the token given" if hub.token else "one without a token"
    put_token = (
        f"put a token that may read it into {hub.token_file} (`hf auth login`), in a cluster into key "
        "`token` of the Secret that hubTokenSecret in the profile names"
    )
    if isinstance(error, GatedRepoError):
        said = f"{asked.name} is gated, {got} with {'a' if hub.token else 'no'} token"
        return UsageError(f"{asked.place}: {said}; ask for access on its page, then {put_token}")
    if isinstance(error, RevisionNotFoundError):
        near = _advice(asked.revision, lambda: _branches(asked, hub))
        place = asked.place.replace("_name", "_revision")
        return UsageError(
            f"{place}: {asked.name} has no such revision, got {asked.revision!r}{near or '; check it'}"
        )
    if status == 401 and "credentials" in said:
        return UsageError(f"{asked.place}: the hub refuses the token, {got}; {put_token}")
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        near = _advice(asked.name, lambda: _neighbours(asked, hub)) or "; check the spelling"
        what = f"the hub shows no {asked.repo_type} of this name to {who}"
        return UsageError(f"{asked.place}: {what}, {got}{near}; if it is private, {put_token}")
    if status == 403:
        return UsageError(f"{asked.place}: the hub refuses it to {who}, {got}; {put_token}")
    return UsageError(f"{asked.place}: the hub refuses it, {got}: {said or 'no reason'}; check the name")


def _advice(given: str, known: Callable[[], list[str]]) -> str:
    """'; did you mean …?', or what there is when that is little."""
    try:
        names = known()
    except Exception:  # noqa: BLE001 - no advice is better than a fault about the advice
        return ""
    return nearest(given, names) or (f"; there is {', '.join(names)}" if 0 < len(names) < 6 else "")


def _branches(asked: Asked, hub: Hub) -> list[str]:
    refs = hub.api.list_repo_refs(asked.name, repo_type=asked.repo_type)
    return [ref.name for ref in (*refs.branches, *refs.tags)]


def _neighbours(asked: Asked, hub: Hub) -> list[str]:
    author, slash, _ = asked.name.partition("/")
    ask = hub.api.list_models if asked.repo_type == "model" else hub.api.list_datasets
    found = ask(author=author, limit=NEIGHBOURS) if slash else ask(search=author, limit=NEIGHBOURS)
    return [repo.id for repo in found]


def _is_of_data(error: BaseException) -> bool:
    """Whether `datasets` can make nothing of the data or of what was asked of it; not its frame around it."""
    if type(error).__name__ == "DatasetGenerationError":
        return False
    known = isinstance(error, (ValueError, FileNotFoundError))
    return known or type(error).__module__.startswith("datasets.")


def _line(error: BaseException, token: str | None) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return text.replace(token, "***") if token else text
