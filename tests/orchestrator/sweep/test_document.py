"""The strict YAML reader."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.document import DEPTH_LIMIT, REFUSED, SIZE_LIMIT, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-6", 5e-6),
        ("1e-5", 1e-5),
        ("1e5", 1e5),
        ("1.0e-05", 1e-5),
        (".5", 0.5),
        ("3", 3),
        ("-3", -3),
        ("0", 0),
        ("0.0", 0.0),
        ("true", True),
        ("false", False),
        ("int4", "int4"),
        ("'017'", "017"),
        ('"no"', "no"),
        ("12ab", "12ab"),
        ("0_a", "0_a"),
        ("nano", "nano"),
        ("2024", 2024),
    ],
)
def test_parse_types_plain_scalars(text, value):
    tree, faults = parse(f"a: {text}", "f")
    assert faults == []
    assert tree == {"a": value}
    assert type(tree["a"]) is type(value)


@pytest.mark.parametrize("word", ["y", "n", "yes", "no", "on", "off"])
@pytest.mark.parametrize("spell", [str, str.upper, str.title])
def test_parse_refuses_words_that_some_readers_take_for_truth(word, spell):
    tree, faults = parse(f"- {spell(word)}", "f.yaml")
    assert tree == [REFUSED]
    assert faults == [
        f"f.yaml: line 1: [0]: is a truth value to some readers, got {spell(word)}; "
        "write true or false, or quote it if it is text"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "017", "0o17", "0x10", "0b11", "08", "-017", "1_000", "1_0.5", "12:30", "12:30:45", "190:20:30.15",
        "2024-05-01", "2024-05-01T10:00:00Z", "2024-5-1 10:00:00", ".inf", "-.inf", ".NaN", "1e400", "null",
        "~", "NULL", "", "<<", "=", "123456789012345678901",
    ],
)  # fmt: skip
def test_parse_refuses_plain_scalars_that_yaml_versions_read_differently(text):
    tree, faults = parse(f"first: 1\nkey: {text}\n", "f.yaml")
    assert tree == {"first": 1, "key": REFUSED}
    assert len(faults) == 1
    assert faults[0].startswith("f.yaml: line 2: key: ")
    assert ", got " in faults[0]
    assert "; " in faults[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: a: key is given twice, got it on line 1 too"),
        ("s: {a: 1, a: 1}", "line 1: s.a: key is given twice, got it on line 1 too"),
        ("a: &x 1\nb: *x", "line 2: an alias is not allowed, got *x"),
        ("a: &x 1", "line 1: an anchor is not allowed, got &x"),
        ("a: !!python/object:os.system x", "line 1: a tag is not allowed, got tag:yaml.org,2002:python"),
        ("a: !x {b: 1}", "line 1: a tag is not allowed, got !x"),
        ("<<: {a: 1}", "line 1: key: has a meaning of its own to some readers, got <<"),
        ("1: a", "line 1: key: must be a string, got '1'; quote it"),
        ("no: a", "line 1: key: is a truth value to some readers, got no"),
        ("? [a]\n: 1", "line 1: a key must be a string, got a list or mapping"),
        ("a: [", "is not YAML"),
        ("a: 1\n b: 2", "line 2: is not YAML"),
        ("a: 1\n---\nb: 2", "must hold one document, got 2"),
        ("", "must hold one document, got an empty file"),
        ("# nothing", "must hold one document, got an empty file"),
        ("a: \x00", "is not YAML"),
        ("a: \ud800", "is not YAML"),
    ],
)
def test_parse_tells_faults_with_their_line(text, says):
    _, faults = parse(text, "f.yaml")
    assert any(fault.startswith(f"f.yaml: {says}") or says in fault for fault in faults), faults


def test_parse_tells_every_fault_at_once():
    _, faults = parse("a: 017\nb: yes\nb: &x ~\nc: *x\n", "f")
    assert [fault.split(": ")[1] for fault in faults] == [
        "line 1",
        "line 2",
        "line 3",
        "line 3",
        "line 3",
        "line 4",
    ]


def test_parse_bounds_depth_without_recursion():
    _, faults = parse("[" * 5000, "f")
    assert faults == [f"f: line 1: nests too deeply, got more than {DEPTH_LIMIT} levels; flatten it"]
    assert parse("[" * DEPTH_LIMIT + "]" * DEPTH_LIMIT, "f")[1] == []


def test_parse_bounds_size_before_reading():
    assert parse("a" * (SIZE_LIMIT + 1), "f")[0] is REFUSED
    assert "too large" in parse("ä" * (SIZE_LIMIT // 2 + 1), "f")[1][0]


def test_parse_tells_at_most_a_hundred_faults_and_how_many_more():
    _, faults = parse("[" + "no," * 250 + "]", "f")
    assert len(faults) == 101
    assert faults[-1] == "f: and 150 more faults; correct these first"


TREES = st.recursive(
    st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abcxyz -_:#'\"01e.", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_-", min_size=1), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(TREES)
def test_parse_reads_what_is_accepted_as_json_would(tree):
    # JSON is YAML in which every string is quoted: nothing in it is ambiguous.
    assert parse(json.dumps(tree), "f") == (tree, [])


@given(st.text("ab: -[]{}&*!#\n'\"?|>%01~<", max_size=60))
def test_parse_answers_anything(text):
    tree, faults = parse(text, "f")
    assert faults or tree is not REFUSED
