"""The reflector's store: whatever order lists, events and our own writes come in, the newest wins."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.kube.store import Item, Store, later

Told = list[tuple[str, str | None, str | None]]


def item(key: str, version: int | str) -> Item[str]:
    return Item(key, str(version), f"{key}@{version}")


def listed(*items: Item[str]) -> dict[str, Item[str]]:
    return {one.key: one for one in items}


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def store(told: Told) -> Store[str]:
    store: Store[str] = Store(lambda *change: told.append(change))
    store.swap(listed(item("a", 5), item("b", 7)), "10")
    told.clear()
    return store


def test_a_list_makes_synthetic_changes(store: Store[str], told: Told) -> None:
    store.swap(listed(item("b", 7), item("c", 11)), "12")
    assert told == [("a", "a@5", None), ("c", None, "c@11")]
    assert store.items() == {"b": "b@7", "c": "c@11"}


@pytest.mark.parametrize("version", [4, 5, 9, 10])
def test_events_as_old_as_what_is_known_change_nothing(store: Store[str], told: Told, version: int) -> None:
    assert not store.upsert(item("a", version))
    assert not store.upsert(item("gone before the list", version))
    assert told == []


def test_an_event_comes_twice_and_another_late(store: Store[str], told: Told) -> None:
    assert store.upsert(item("a", 14))
    assert not store.upsert(item("a", 14))
    assert not store.upsert(item("a", 13))
    assert store.upsert(item("b", 12))  # another object: late, but news
    assert told == [("a", "a@5", "a@14"), ("b", "b@7", "b@12")]


def test_a_deletion_tells_the_last_state_first(store: Store[str], told: Told) -> None:
    assert store.delete(item("a", 20))
    assert not store.delete(item("a", 20))
    assert not store.upsert(item("a", 19))  # no resurrection
    assert told == [("a", "a@5", "a@20"), ("a", "a@20", None)]
    assert store.upsert(item("a", 21))  # made anew


def test_what_was_never_seen_alive_is_told_too(store: Store[str], told: Told) -> None:
    assert store.delete(item("z", 20))
    assert told == [("z", None, "z@20"), ("z", "z@20", None)]


def test_a_late_deletion_spares_the_object_made_anew(store: Store[str], told: Told) -> None:
    assert store.put(item("a", 30))
    assert not store.delete(item("a", 25))
    assert store.get("a") == "a@30"


def test_our_own_write_survives_older_events_and_an_older_list(store: Store[str], told: Told) -> None:
    assert store.put(item("new", 15))
    assert not store.upsert(item("new", 12))
    store.swap(listed(item("a", 5)), "13")
    assert store.items() == {"a": "a@5", "new": "new@15"}
    store.swap(listed(item("a", 5)), "16")
    assert store.items() == {"a": "a@5"}


def test_our_own_write_that_the_watch_has_overtaken_is_left_out(store: Store[str], told: Told) -> None:
    store.reached("20")  # a bookmark: whatever happened before it was told
    assert not store.put(item("made and deleted before", 15))
    assert told == []


def test_what_we_deleted_does_not_come_back(store: Store[str], told: Told) -> None:
    assert store.forget("a", "15")
    assert not store.upsert(item("a", 14))
    store.swap(listed(item("a", 14), item("b", 7)), "14")
    assert store.items() == {"b": "b@7"}
    assert not store.forget("b", "6")  # it is newer than what was deleted
    store.swap(listed(item("a", 16), item("b", 7)), "16")
    assert store.items() == {"a": "a@16", "b": "b@7"}


def test_a_restored_backup_counts_as_it_is(store: Store[str], told: Told) -> None:
    store.upsert(item("a", 50))
    store.swap(listed(item("a", 3)), "4")
    assert store.items() == {"a": "a@3"}
    assert store.upsert(item("a", 5))


def test_versions_that_are_no_numbers_are_taken_as_they_come(told: Told) -> None:
    store: Store[str] = Store(lambda *change: told.append(change))
    store.swap(listed(item("a", "x9")), "x10")
    assert store.upsert(item("a", "x3"))
    assert store.put(item("a", "x4"))
    assert store.delete(item("a", "x2"))
    assert store.items() == {}


def test_differences_know_what_is_ahead_of_the_list(store: Store[str]) -> None:
    store.put(item("ours", 15))
    store.forget("b", "15")
    assert store.differences(listed(item("a", 5), item("b", 7)), "10") == 0
    assert store.differences(listed(item("a", 6), item("b", 7), item("missed", 9)), "10") == 2
    assert store.differences({}, "10") == 1


@pytest.mark.parametrize(
    ("one", "other", "is_later"),
    [(None, "5", "5"), ("5", "7", "7"), ("7", "5", "7"), ("10", "9", "10"), ("x", "5", "5"), ("5", "x", "x")],
)
def test_later(one: str | None, other: str, is_later: str) -> None:
    assert later(one, other) == is_later


# Convergence


@dataclass
class History:
    """A true history of a few objects: versions 1, 2, 3, …, each a change of one of them."""

    changes: list[tuple[str, bool]]
    states: list[dict[str, int]] = field(default_factory=lambda: [{}])

    def __post_init__(self) -> None:
        for version, (key, alive) in enumerate(self.changes, start=1):
            state = dict(self.states[-1])
            state.pop(key, None)
            self.states.append(state | ({key: version} if alive else {}))

    def at(self, version: int) -> dict[str, Item[str]]:
        return {key: item(key, at) for key, at in self.states[version].items()}


CHANGES = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=14)


@given(CHANGES, st.data())
def test_any_order_of_news_ends_at_the_truth(changes: list[tuple[str, bool]], data: st.DataObject) -> None:
    """Events late, twice and in the wrong order, lists in between, answers to writes at any time."""
    history = History(changes)
    last = len(changes)
    told: dict[str, str] = {}

    def on_change(key: str, before: str | None, now: str | None) -> None:
        assert told.get(key) == before  # a listener that follows the changes has the same picture
        told.pop(key, None)
        if now is not None:
            told[key] = now

    store: Store[str] = Store(on_change)
    begin = data.draw(st.integers(0, last), label="first list")
    store.swap(history.at(begin), str(begin))
    news = [("event", version) for version in range(begin + 1, last + 1)]
    news += data.draw(st.lists(st.sampled_from(news), max_size=5), label="twice") if news else []
    news += [("put", version) for version in range(1, last + 1) if changes[version - 1][1]]
    news = data.draw(st.permutations(news), label="order")
    lists = data.draw(st.lists(st.integers(begin, last), max_size=3).map(sorted), label="lists")
    at = data.draw(
        st.lists(st.integers(0, len(news)), min_size=len(lists), max_size=len(lists)), label="when"
    )
    delivered: set[int] = set(range(begin + 1))
    for index, (kind, version) in enumerate(news):
        for list_version, when in zip(lists, sorted(at), strict=True):
            # A list is never older than what the watch has told.
            if when == index and delivered <= set(range(list_version + 1)):
                store.swap(history.at(list_version), str(list_version))
                delivered |= set(range(list_version + 1))
        key, alive = changes[version - 1]
        if kind == "put":
            store.put(item(key, version))
        else:
            delivered.add(version)
            (store.upsert if alive else store.delete)(item(key, version))
    assert store.items() == told
    assert store.differences(history.at(last), str(last)) == 0
    assert {key: one.resource_version for key, one in store._items.items()} == {
        key: str(version) for key, version in history.states[last].items()
    }
