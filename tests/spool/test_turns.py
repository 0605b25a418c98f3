"""Whose file is next, decided alone."""

from __future__ import annotations

from outboxd.spool import turns
from outboxd.spool.turns import OwnerTurns, find, share


def names(taken):
    return [name for _, name in taken]


def test_owners_take_turns_whatever_each_of_them_has():
    queue = OwnerTurns()
    queue.add({1: [f"a{number}" for number in range(5)], 2: ["b0", "b1"], 3: ["c0"]})
    assert names(queue.take(6)) == ["a0", "b0", "c0", "a1", "b1", "a2"]
    queue.add({4: ["d0"]})
    assert names(queue.take(2)) == ["a3", "d0"]
    assert names(queue.take(9)) == ["a4"]
    assert len(queue) == 0


def test_a_name_is_there_once_and_may_come_again_later():
    queue = OwnerTurns()
    queue.add({1: ["a", "b"]})
    queue.add({1: ["a"], 2: ["b"]})
    assert names(queue.take(9)) == ["a", "b"]
    queue.add({1: ["a"]})
    assert names(queue.take(9)) == ["a"]


def test_what_was_not_looked_at_goes_before_its_owners_others():
    queue = OwnerTurns()
    queue.add({1: ["a0", "a1", "a2"], 2: ["b0"]})
    taken = queue.take(3)
    queue.put_back(taken[1:])
    assert sorted(names(queue.take(9))) == ["a1", "a2", "b0"]


def test_more_than_it_holds_is_left_to_a_later_scan(monkeypatch):
    monkeypatch.setattr(turns, "OWNER_NAMES_MAX", 3)
    queue = OwnerTurns()
    queue.add({1: ["a0", "a1", "a2", "a3"], 2: ["b0"]})
    assert queue.overflowed
    assert names(queue.take(9)) == ["a0", "b0", "a1", "a2"]
    queue.clear()
    assert not queue.overflowed


def test_a_scan_leaves_room_for_everybody(monkeypatch):
    monkeypatch.setattr(turns, "OWNER_NAMES_MAX", 100)
    monkeypatch.setattr(turns, "NAMES_MAX", 60)
    found = {owner: [f"{number:03}" for number in range(200)] for owner in (1, 2)}
    shared = share({**found, 3: ["b", "a"]})
    assert shared[3] == ["a", "b"]
    assert sum(map(len, shared.values())) <= 60
    assert min(map(len, shared.values())) == 2
    assert shared[1][:3] == ["000", "001", "002"]


def most_held(count, monkeypatch):
    """The most names of one owner that are held of so many, and what is left of them."""
    monkeypatch.setattr(turns, "OWNER_NAMES_MAX", 10)
    found, most = {}, 0
    for number in range(count):
        find(found, 7, f"{(number * 7919) % count:04}")
        most = max(most, len(found[7]))
    return most, share(found)[7]


def test_of_a_million_names_the_first_are_held_and_no_more(monkeypatch):
    most, left = most_held(1_000, monkeypatch)
    assert left == [f"{number:04}" for number in range(10)]
    assert most < 20


def test_control_names_held_without_a_bound_are_seen(monkeypatch):
    monkeypatch.setitem(
        globals(), "find", lambda found, owner, name: found.setdefault(owner, []).append(name)
    )
    assert most_held(1_000, monkeypatch)[0] == 1_000
