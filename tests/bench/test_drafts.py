"""Drafts from a row's own n-grams, and the passes they would need."""

from __future__ import annotations

import pytest

from bench.drafts import draft, passes


@pytest.mark.parametrize(
    ("seen", "width", "drafted"),
    [
        pytest.param([1, 2, 3, 9, 1, 2, 3], 2, [9, 1], id="what followed the ending before"),
        pytest.param([5, 2, 7, 4, 2, 8, 5, 2], 1, [7], id="a longer match goes before a later one"),
        pytest.param([2, 7, 2, 8, 2], 1, [8], id="else the last place"),
        pytest.param([1, 2, 1], 8, [2, 1], id="no more than was seen"),
        pytest.param([1, 2, 3], 4, [], id="nothing like it"),
        pytest.param([1], 4, [], id="nothing before"),
    ],
)
def test_a_draft_is_what_followed_the_last_longest_match(seen, width, drafted) -> None:
    assert draft(seen, width) == drafted


@pytest.mark.parametrize(
    ("written", "width", "needed"),
    [
        pytest.param([7, 8, 9], 2, 3, id="nothing guessed: a pass a token"),
        pytest.param([1, 2, 3], 2, 1, id="all guessed: the last token of the pass is a gift"),
        pytest.param([1, 2, 3, 4], 2, 2, id="a pass writes what was drafted and one more"),
        pytest.param([1, 9, 1], 2, 2, id="the token that refutes a draft is right"),
    ],
)
def test_a_pass_writes_the_drafts_that_were_right_and_one_token_more(written, width, needed) -> None:
    assert passes([0, 1, 2, 3, 4, 0], written, width) == needed
