"""A clock that is set: times from before are read as they should have been."""

from __future__ import annotations

from outboxd.clock import FakeClock
from outboxd.delivery.claims import ClockSteps
from outboxd.outbox.model import Claimed

NOW_MS = 1_750_000_000_000


def claimed(received_at: int, occurred_at: int | None = None, expires_at: int | None = None):
    return Claimed(1, "id", b"{}", received_at, occurred_at, expires_at, 0, 0, False, 0, None, "x")


def test_what_came_in_1970_is_as_old_as_it_is_once_the_clock_is_right():
    clock = FakeClock(wall_ms=20_000)
    steps = ClockSteps(clock)
    entry = claimed(clock.wall_ms(), clock.wall_ms(), clock.wall_ms() + 3_600_000)
    clock.advance(30)
    clock.jump((NOW_MS - clock.wall_ms()) / 1000)
    steps.look()
    right = steps.correct(entry)
    assert right.received_at == right.occurred_at == NOW_MS - 30_000
    assert right.expires_at == NOW_MS + 3_570_000


def test_what_an_agent_before_took_in_1970_counts_from_its_start():
    steps = ClockSteps(FakeClock(wall_ms=NOW_MS))
    assert 0 <= steps.corrected(25_000) - NOW_MS <= 25_000


def test_several_steps_add_up_and_what_comes_after_is_not_moved():
    clock = FakeClock(wall_ms=NOW_MS)
    steps = ClockSteps(clock)
    first = clock.wall_ms()
    clock.jump(3600)
    steps.look()
    clock.advance(10)
    second = clock.wall_ms()
    clock.jump(60)
    steps.look()
    clock.advance(10)
    third = clock.wall_ms()
    steps.look()
    assert steps.times_set == 2
    assert [third - steps.corrected(at) for at in (first, second, third)] == [20_000, 10_000, 0]


def test_a_clock_that_is_slewed_or_set_back_moves_nothing():
    clock = FakeClock(wall_ms=NOW_MS)
    steps = ClockSteps(clock)
    for _ in range(100):
        clock.advance(1)
        clock.jump(0.5)
        steps.look()
    clock.jump(-86400)
    steps.look()
    assert steps.corrected(NOW_MS) == NOW_MS
    assert steps.times_set == 1
