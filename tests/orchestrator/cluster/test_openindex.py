"""What the index keeps of the open ones is what would be found by a look at all."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.openindex import OpenIndex

NAMES = "abcde"
numbers, names = st.integers(0, 3), st.sampled_from(NAMES)


@dataclass(frozen=True)
class One:
    name: str
    key: str
    version: object = field(default_factory=object)


@given(st.lists(st.tuples(st.sampled_from(["set", "drop", "close", "anew", "look"]), names, numbers)))
def test_after_any_events_the_open_are_all_but_the_closed(events: list[tuple[str, str, int]]) -> None:
    index: OpenIndex[One] = OpenIndex()
    plain: dict[str, One] = {}
    closed: set[str] = set()
    for what, name, number in events:
        key = f"{name}{number}"
        if what == "set":
            plain[key] = One(name, key)
            index.set(key, plain[key])
        elif what == "drop":
            plain.pop(key, None)
            index.drop(key)
        elif what == "close":
            closed.add(name)
        elif what == "anew":
            closed = {name}
        else:
            assert index.open(closed) == [one for one in plain.values() if one.name not in closed]
        assert index.all() == list(plain.values())
        assert len(index) == len(plain)
        assert index.get(key) is plain.get(key)
    assert index.open(closed) == [one for one in plain.values() if one.name not in closed]


class Counting(set[str]):
    asked = 0

    def __contains__(self, name: object) -> bool:
        self.asked += 1
        return super().__contains__(name)


def test_what_was_closed_is_asked_for_once() -> None:
    index: OpenIndex[One] = OpenIndex()
    for number in range(100):
        index.set(str(number), One(str(number), str(number)))
    closed: Set[str] = Counting(str(number) for number in range(98))
    assert isinstance(closed, Counting)
    asked = []
    for _ in range(3):
        before = closed.asked
        assert len(index.open(closed)) == 2
        asked.append(closed.asked - before)
    assert asked == [100, 2, 2]
