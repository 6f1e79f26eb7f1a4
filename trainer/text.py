"""Texts to train on and to measure on, and rows in JSON lines. Torch-free.

`pydoc_topics` is English that every Python carries, cut into a training part and a held-out part.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from trainer.flags import UsageError

HELDOUT_SHARE = 0.1
"""The last tenth of the topics is never trained on."""


class Text(NamedTuple):
    """A held-out text: its name, what it says and the SHA-256 of that."""

    name: str
    text: str
    sha256: str


def topics_text() -> str:
    """The help topics of `pydoc_data.topics` (about 450 kB of English and code), in sorted key order.

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


def load_text(name: str) -> Text:
    """The text meant by `wikitext`, `pydoc_topics` or a local .txt[.gz] file. Raises UsageError."""
    if name == "wikitext":
        text = _wikitext()
    elif name == "pydoc_topics":
        text = split_topics()[1]
    elif name.endswith((".txt", ".txt.gz")):
        text = read_text(Path(name).expanduser())
    else:
        raise UsageError(
            "perplexity_dataset: must be wikitext, pydoc_topics, a .txt or .txt.gz file, or none, "
            f"got {name!r}; check the spelling"
        )
    return Text(name, text, text_sha256(text))


def _wikitext() -> str:
    """The test split of WikiText-2 raw, its rows joined by blank lines, as is usual."""
    from trainer.rows import WIKITEXT, open_rows

    return "\n\n".join(open_rows(WIKITEXT, "perplexity_dataset")["test"]["text"])


def read_text(file: Path) -> str:
    """A UTF-8 file, unpacked when its name ends in .gz. Raises UsageError naming it."""
    try:
        data = file.read_bytes()
        return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read, got {error}; give a UTF-8 file") from error


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The JSON objects of a .jsonl or .jsonl.gz file, one a line. Raises UsageError naming the line."""
    rows: list[dict[str, Any]] = []
    # JSON strings may hold U+2028 and other characters that splitlines would cut at.
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{file}:{number}: not JSON, got {error}; mend or remove the line") from error
        if not isinstance(row, dict):
            raise UsageError(f"{file}:{number}: must be an object, got {line[:40]!r}; mend or remove it")
        rows.append(row)
    if not rows:
        raise UsageError(f"{file}: must hold rows, got an empty file; copy it again")
    return rows
