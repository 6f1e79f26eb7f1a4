"""English text that every Python carries, cut into a training part and a held-out part. Torch-free."""

from __future__ import annotations

import hashlib
import re

HELDOUT_SHARE = 0.1
"""The last tenth of the topics is never trained on."""


def topics_text() -> str:
    """The help topics of `pydoc_data.topics` (about 700 kB of English and code), in sorted key order.

    Normalised: "\\n" line ends, no spaces at line ends, one blank line between paragraphs. The text depends
    on the Python version, so results carry its hash.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(normalise(topics[key]) for key in sorted(topics))


def normalise(text: str) -> str:
    """One spelling of white space: unix line ends, none at line ends, at most one blank line in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[ \t\f\v]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def split_topics() -> tuple[str, str]:
    """(training text, held-out text): the last tenth is held out, cut at a paragraph."""
    text = topics_text()
    cut = text.index("\n\n", int(len(text) * (1 - HELDOUT_SHARE)))
    return text[:cut], text[cut + 2 :]


def text_sha256(text: str) -> str:
    """SHA-256 (64 hex) of the UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
