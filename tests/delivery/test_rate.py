"""The token bucket, and what it learns from throttling."""

from __future__ import annotations

import pytest

from outboxd.delivery.pace import Rate

BAD = 1_000_000  # an entry that is throttled


def sent_within(rate: Rate, start_s: float, seconds: float, step_s: float = 0.001) -> int:
    """How many start if the sender looks every `step_s`."""
    count, now_s = 0, start_s
    while now_s < start_s + seconds:
        while rate.ready_s(now_s) <= now_s:
            rate.take(now_s)
            count += 1
        now_s += step_s
    return count


def test_without_a_bound_everything_is_ready():
    rate = Rate(0)
    assert rate.per_second() is None
    for _ in range(1000):
        assert rate.ready_s(5.0) == 5.0
        rate.take(5.0)


@pytest.mark.parametrize("rate_max", [1, 7, 50, 400])
def test_the_operators_bound_holds_from_the_first_second(rate_max):
    sent = sent_within(Rate(rate_max), 100.0, 10.0)
    assert rate_max * 10 * 0.97 <= sent <= rate_max * 10 + 1 + rate_max * 0.05


def test_the_next_moment_is_told_exactly():
    rate = Rate(10)
    rate.take(100.0)
    assert rate.ready_s(100.0) == pytest.approx(100.1)
    assert rate.ready_s(100.06) == pytest.approx(100.1)
    assert rate.ready_s(100.2) == 100.2


def test_a_late_wake_up_costs_no_pace():
    rate, now_s, sent = Rate(1000), 0.0, 0
    while now_s < 10.0:
        now_s = rate.ready_s(now_s, 64) + 0.02
        for _ in range(min(64, rate.available(now_s))):
            rate.take(now_s)
            sent += 1
    assert sent >= 0.99 * 1000 * 10.0


def test_a_long_idle_time_saves_up_no_burst():
    rate = Rate(100)
    rate.take(100.0)
    burst = 0
    while rate.ready_s(10_000.0) <= 10_000.0:
        rate.take(10_000.0)
        burst += 1
    assert burst <= 5


def test_what_may_start_together_is_told_and_when():
    rate = Rate(200)
    assert rate.available(0.0) == 1
    rate.take(0.0)
    assert rate.available(0.0) == 0
    assert rate.ready_s(0.0, 3) == pytest.approx(3 / 200)
    # The bucket never holds more than a burst, so nobody waits for more than that.
    assert rate.ready_s(0.0, 100) == pytest.approx(5 / 200)
    assert (rate.available(3 / 200), rate.available(60.0)) == (3, 10)
    assert Rate(0).available(0.0) > 1_000_000


def test_requests_taken_together_beyond_the_bucket_are_paid_for():
    rate = Rate(10)
    for _ in range(8):
        rate.take(100.0)
    assert rate.ready_s(100.0) == pytest.approx(100.8)


def throttled_at(accepted: int, seconds: float, rate_max: int = 0) -> Rate:
    """A rate that saw so many accepted evenly, and then a throttle."""
    rate = Rate(rate_max)
    for n in range(accepted):
        now_s = 100.0 + n * seconds / accepted
        rate.take(now_s)
        rate.accepted(n, now_s)
    rate.throttled(rate.take(100.0 + seconds), BAD, 100.0 + seconds)
    return rate


def test_a_throttle_brings_the_rate_a_little_below_what_was_accepted():
    assert 85 <= throttled_at(accepted=300, seconds=3.0).per_second() < 100


def test_the_lower_of_the_two_bounds_counts():
    assert throttled_at(300, 3.0, rate_max=0).per_second() > 50
    rate = throttled_at(30, 3.0, rate_max=50)
    assert rate.per_second() < 10


def test_a_throttle_before_anything_was_accepted_teaches_nothing():
    rate = Rate(0)
    rate.throttled(rate.take(1.0), BAD, 1.0)
    assert rate.per_second() is None


def test_answers_to_requests_of_before_the_throttle_are_the_same_throttle():
    rate = Rate(0)
    for n in range(300):
        rate.take(100.0 + n / 100)
        rate.accepted(n, 100.0 + n / 100)
    together = [rate.take(103.0) for _ in range(16)]
    rate.throttled(together[0], BAD, 103.0)
    learned = rate.per_second()
    for serial in together[1:]:
        rate.throttled(serial, BAD + serial, 105.0)
    assert rate.per_second() == learned


def test_the_ceiling_grows_only_while_it_is_what_holds_back():
    idle = throttled_at(300, 3.0)
    before = idle.per_second()
    for second in range(60):
        idle.take(104.0 + second)
    assert idle.per_second() == before
    busy = throttled_at(300, 3.0)
    sent_within(busy, 104.0, 30.0, step_s=0.002)
    assert busy.per_second() > before


def test_a_ceiling_that_nothing_needed_for_long_is_forgotten():
    rate = throttled_at(300, 3.0)
    rate.take(104.0)
    rate.take(1000.0)
    assert rate.per_second() is None


def test_however_often_it_is_throttled_something_is_still_sent():
    rate, now_s = throttled_at(300, 3.0), 103.0
    for _ in range(500):
        now_s = rate.ready_s(now_s + 2.0)
        throttled_again(rate, BAD, now_s)
    assert rate.per_second() > 0.1
    assert rate.ready_s(now_s) - now_s < 10.0


def throttled_again(rate: Rate, by: int, now_s: float) -> None:
    """After another was accepted at the pace of before."""
    rate.accepted(0, now_s - 0.5)
    rate.throttled(rate.take(now_s), by, now_s)


def test_a_probe_that_is_throttled_again_says_nothing_about_the_pace():
    rate = throttled_at(300, 3.0)
    learned = rate.per_second()
    for second in range(20):
        rate.throttled(rate.take(105.0 + 2 * second), BAD, 105.0 + 2 * second)
    assert rate.per_second() == learned
    throttled_again(rate, BAD, 150.0)
    assert rate.per_second() < learned


def test_what_the_refusals_of_one_event_taught_is_taken_back_once_it_is_its_own_fault():
    rate = throttled_at(300, 3.0)
    for second in range(5):
        throttled_again(rate, BAD, 105.0 + 2 * second)
    assert rate.per_second() < 50
    rate.was_own_fault(BAD)
    assert rate.per_second() is None
    # And as often as this happens.
    rate = throttled_at(300, 3.0)
    sent_within(rate, 104.0, 2.0)
    for n in range(10):
        rate.accepted(n, 105.5)
    throttled_again(rate, BAD + 1, 106.0)
    learned = rate.per_second()
    rate.was_own_fault(BAD)
    assert rate.per_second() >= learned
    rate.was_own_fault(BAD + 1)
    assert rate.per_second() is None


def test_what_was_throttled_and_passes_later_was_throttled_for_the_pace():
    rate = throttled_at(300, 3.0)
    learned = rate.per_second()
    rate.accepted(BAD, 105.0)
    rate.was_own_fault(BAD)
    assert rate.per_second() == learned


def test_what_others_were_told_in_the_same_round_trip_stays_learned():
    rate = Rate(0)
    for n in range(300):
        rate.take(100.0 + n / 100)
        rate.accepted(n, 100.0 + n / 100)
    for position, serial in enumerate([rate.take(103.0) for _ in range(4)]):
        rate.throttled(serial, BAD + position, 103.0)
    learned = rate.per_second()
    for position in range(3):
        rate.was_own_fault(BAD + position)
        assert rate.per_second() == learned
    rate.was_own_fault(BAD + 3)
    assert rate.per_second() is None


def test_a_pace_that_has_grown_since_is_not_taken_back():
    rate = throttled_at(300, 3.0)
    rate.accepted(BAD, 103.5)
    throttled_again(rate, BAD + 1, 105.0)
    sent_within(rate, 106.0, 90.0, step_s=0.002)
    grown = rate.per_second()
    rate.was_own_fault(BAD + 1)
    assert rate.per_second() == grown


def test_many_that_are_throttled_one_after_the_other_are_throttled_for_the_pace():
    rate = throttled_at(300, 3.0)
    for more in range(1, 10):
        throttled_again(rate, BAD + more, 103.0 + 2 * more)
    for more in range(10):
        rate.was_own_fault(BAD + more)
    assert rate.per_second() is not None
