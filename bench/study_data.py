"""Text for the study of docs/results.md: tokenised WikiText-2, validation to train on, test to measure.

`python -m bench.study_data --validation wikitext2_valid.txt.gz --test wikitext2_test.txt.gz` writes
dump/study/wikitext2-valid.jsonl (rows of whole paragraphs, about 1,000 tokens each) and wikitext2-test.txt.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from trainer.durable import write_bytes
from trainer.text import read_text, text_sha256

TARGET = Path("dump/study")
ROW_CHARACTERS = 4000
TITLE = re.compile(r" = [^=].* = ")


def rows(text: str) -> Iterator[str]:
    """The text in rows: a new one at each article, and at a blank line once a row has ROW_CHARACTERS."""
    row: list[str] = []
    for line in text.split("\n"):
        full = sum(map(len, row)) > ROW_CHARACTERS and not line.strip()
        if row and (TITLE.fullmatch(line) or full):
            yield "\n".join(row).rstrip()
            row = []
        if row or line.strip():
            row.append(line)
    if row:
        yield "\n".join(row).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--validation", type=Path, required=True, help="plain text, .txt or .txt.gz")
    parser.add_argument("--test", type=Path, required=True, help="plain text, .txt or .txt.gz")
    given = parser.parse_args()
    TARGET.mkdir(parents=True, exist_ok=True)
    found = list(rows(read_text(given.validation)))
    lines = "".join(json.dumps({"text": row}) + "\n" for row in found)
    write_bytes(TARGET / "wikitext2-valid.jsonl", lines.encode())
    test = read_text(given.test)
    write_bytes(TARGET / "wikitext2-test.txt", test.encode())
    print(f"{TARGET}: {len(found)} rows to train on (sha256 {text_sha256(lines)[:8]}),")  # noqa: T201
    print(f"{len(test):,} characters to measure on (sha256 {text_sha256(test)[:8]})")  # noqa: T201


if __name__ == "__main__":
    main()
