"""How lines that repeat are left out and counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outboxd.observe.throttle import Throttle


def test_the_first_lines_of_a_kind_pass_and_the_rest_are_counted():
    throttle = Throttle(burst=2, window_s=60)
    assert [throttle.admit("a", now_s) for now_s in (0, 1, 2, 3)] == [True, True, False, False]
    assert throttle.ended(59.9) == []
    assert throttle.ended(60.0) == [("a", 2)]


def test_kinds_do_not_use_up_each_others_share():
    throttle = Throttle(burst=1)
    assert throttle.admit("a", 0)
    assert throttle.admit("b", 0)
    assert not throttle.admit("a", 0)


def test_after_its_window_a_kind_may_be_said_again():
    throttle = Throttle(burst=1, window_s=60)
    throttle.admit("a", 0)
    assert not throttle.admit("a", 1)
    throttle.ended(60)
    assert throttle.admit("a", 61)


def test_a_window_in_which_nothing_was_left_out_ends_without_a_word():
    throttle = Throttle(burst=1, window_s=60)
    throttle.admit("a", 0)
    assert throttle.ended(100) == []


def test_closing_tells_what_was_left_out_so_far():
    throttle = Throttle(burst=1, window_s=60)
    throttle.admit("a", 0)
    throttle.admit("a", 0)
    assert throttle.close() == [("a", 1)]
    assert throttle.close() == []


def test_memory_is_bounded_and_a_kind_too_many_is_rather_said():
    throttle = Throttle(burst=1, kinds_max=2)
    for kind in range(100):
        assert throttle.admit(kind, 0)
    assert throttle.admit(99, 0)
    assert not throttle.admit(0, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 30)), max_size=200))
def test_what_was_said_and_what_was_left_out_are_all_there_was(lines):
    throttle = Throttle(burst=3, window_s=10)
    now_s, said, told = 0.0, 0, 0
    for kind, step_s in lines:
        now_s += step_s
        told += sum(count for _, count in throttle.ended(now_s))
        said += throttle.admit(kind, now_s)
    told += sum(count for _, count in throttle.close())
    assert said + told == len(lines)
