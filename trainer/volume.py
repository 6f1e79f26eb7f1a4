"""What an error says about the volume, in one line with what to do about it. Torch-free."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping

ADVICE: Mapping[int, str] = {
    errno.ENOSPC: "make room on the volume, or enlarge it",
    errno.EDQUOT: "make room on the volume, or raise the quota",
    errno.EROFS: "mount it for writing; a file system that turned read-only by itself needs a check",
    errno.EIO: "its disk or its server fails: see the node's kernel log",
    errno.EREMOTEIO: "its disk or its server fails: see the node's kernel log",
    errno.ESTALE: "its server lost the file, or was restarted: mount it again",
    errno.ENOTCONN: "the program that serves it has ended: mount it again",
    errno.ESHUTDOWN: "the file system was shut down after an error: check it and mount it again",
}
"""What to do about an error number that speaks of the volume, not of the program."""
_OF_RUST = re.compile(r"\(os error (\d+)\)|\bcode: (\d+),")
"""How errors of libraries written in Rust (safetensors, tokenizers) name the number."""


class VolumeFault(OSError):
    """The volume failed; the text is the whole message, the system's own words for it among it."""


def of_volume(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is the volume's fault."""
    return any(_number(cause) in ADVICE or isinstance(cause, VolumeFault) for cause in causes(error))


def explain(error: BaseException) -> str | None:
    """One line about the fault of the volume that led to `error`; None when none did."""
    for cause in causes(error):
        if isinstance(cause, VolumeFault):
            return str(cause)
        number = _number(cause)
        if number in ADVICE:
            place = getattr(cause, "filename", None) or "the volume"
            return f"{place}: cannot be used, got {os.strerror(number)}; {ADVICE[number]}"
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, the last first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int:
    """The error number an exception speaks of, 0 for none."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = _OF_RUST.search(str(error)) if type(error).__module__.startswith("safetensors") else None
    return int(found[1] or found[2]) if found else 0
