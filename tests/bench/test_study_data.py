"""Rows of the study: whole paragraphs, no article joined to another, nothing lost."""

from __future__ import annotations

import re

from bench.study_data import ROW_CHARACTERS, rows

ARTICLE = " \n = Title {0} = \n \n" + "".join(f" word {n} of it . \n \n" for n in range(600))


def test_rows_are_whole_paragraphs_of_one_article() -> None:
    text = ARTICLE.format(1) + ARTICLE.format(2) + " = = Part = = \n end \n"
    found = list(rows(text))
    assert all(len(re.findall(r" = Title \d = ", row)) == 1 for row in found if " = Title" in row)
    assert [row.splitlines()[0] for row in found if " = Title" in row] == [" = Title 1 = ", " = Title 2 = "]
    assert all(sum(map(len, row.split("\n"))) < ROW_CHARACTERS + 300 for row in found)
    assert "".join(found).split() == text.split()
    assert all(not line.strip() or line.startswith(" ") for row in found for line in row.splitlines())
