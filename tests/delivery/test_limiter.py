"""Permits grow on evidence alone, and shrink on pushback."""

from __future__ import annotations

import pytest

from outboxd.delivery.pace import CEILING, Limiter


def full_round(limiter: Limiter, latency_s: float = 0.01) -> None:
    """As many requests as there are permits, all answered well."""
    for serial in [limiter.started() for _ in range(limiter.permits)]:
        limiter.succeeded(serial, latency_s)


def grown(permits: int, concurrency_max: int = 16) -> Limiter:
    limiter = Limiter(concurrency_max)
    while limiter.permits < permits:
        full_round(limiter)
    return limiter


def test_it_begins_with_one():
    limiter = Limiter(16)
    assert (limiter.permits, limiter.free()) == (1, 1)
    limiter.started()
    assert limiter.free() == 0


def test_a_full_and_healthy_round_adds_one_up_to_the_limit():
    limiter = Limiter(4)
    seen = []
    for _ in range(6):
        full_round(limiter)
        seen.append(limiter.permits)
    assert seen == [2, 3, 4, 4, 4, 4]


def test_after_a_start_and_an_outage_rounds_grow_by_half_until_the_first_pressure():
    limiter = Limiter(64)
    seen = []
    for _ in range(9):
        full_round(limiter)
        seen.append(limiter.permits)
    assert seen == [2, 3, 4, 6, 9, 13, 19, 28, 42]
    limiter.pushed_back(limiter.started())
    assert limiter.permits == 31
    full_round(limiter)
    assert limiter.permits == 32
    limiter.restart()
    for _ in range(4):
        full_round(limiter)
    assert limiter.permits == 6
    limiter.failed(limiter.started())
    full_round(limiter)
    full_round(limiter)
    assert limiter.permits == 7


def test_what_was_under_way_at_a_pushback_has_not_reached_the_new_limit():
    limiter = grown(3)
    serials = [limiter.started() for _ in range(3)]
    limiter.pushed_back(serials[0])
    assert (limiter.permits, limiter.in_flight) == (2, 2)
    for serial in serials[1:]:
        limiter.succeeded(serial, 0.01)
    for _ in range(2):
        limiter.succeeded(limiter.started(), 0.01)  # one after the other
    assert limiter.permits == 2
    full_round(limiter)
    assert limiter.permits == 3


def test_what_an_event_is_itself_to_blame_for_is_no_sign_of_pressure():
    limiter = grown(8)
    serials = [limiter.started() for _ in range(8)]
    limiter.ignored(serials[0])
    for serial in [*serials[1:], limiter.started()]:
        limiter.succeeded(serial, 0.01)
    assert limiter.permits > 8


def test_without_a_limit_there_is_still_a_ceiling():
    assert grown(CEILING, concurrency_max=0).permits == CEILING
    limiter = grown(CEILING, concurrency_max=0)
    full_round(limiter)
    assert limiter.permits == CEILING


def test_no_growth_while_the_limit_is_not_reached():
    limiter = grown(8)
    before = limiter.permits
    for _ in range(100):
        limiter.succeeded(limiter.started(), 0.01)
    assert limiter.permits == before


@pytest.mark.parametrize("bad", ["failed", "pushed_back"])
def test_no_growth_in_a_round_with_a_bad_answer(bad):
    limiter = grown(8)
    before = limiter.permits
    serials = [limiter.started() for _ in range(before)]
    getattr(limiter, bad)(serials[0])
    after = limiter.permits
    for serial in serials[1:]:
        limiter.succeeded(serial, 0.01)
    assert limiter.permits == after <= before


def test_pushback_shrinks_by_a_ratio_and_once_for_a_round_trip():
    limiter = grown(16)
    serials = [limiter.started() for _ in range(16)]
    for serial in serials:
        limiter.pushed_back(serial)
    assert limiter.permits == 12
    limiter.pushed_back(limiter.started())
    assert limiter.permits == 9


def test_it_never_shrinks_below_one():
    limiter = Limiter(16)
    for _ in range(10):
        limiter.pushed_back(limiter.started())
    assert limiter.permits == 1


def test_latency_well_above_its_floor_shrinks():
    limiter = grown(16)
    for _ in range(3):
        full_round(limiter, latency_s=0.5)
    assert limiter.permits < 16


def test_latency_that_only_wobbles_does_not():
    limiter = grown(16)
    for latency_s in (0.012, 0.03, 0.008, 0.05) * 5:
        full_round(limiter, latency_s)
    assert limiter.permits == 16


def test_a_lasting_change_of_latency_becomes_the_new_floor():
    limiter = grown(16)
    for _ in range(400):
        full_round(limiter, latency_s=0.5)
    assert limiter.permits == 16


def test_after_an_outage_it_begins_again_with_one_and_grows():
    limiter = grown(16)
    old = limiter.started()
    limiter.restart()
    assert (limiter.permits, limiter.free()) == (1, 1)
    limiter.pushed_back(old)  # of before the outage: says nothing new
    assert limiter.permits == 1
    full_round(limiter)
    full_round(limiter)
    assert limiter.permits > 1


def test_what_hangs_from_before_an_outage_stalls_nobody_within_the_limit():
    limiter = grown(4, concurrency_max=4)
    old = [limiter.started() for _ in range(4)]
    limiter.restart()
    assert (limiter.free(), limiter.room()) == (0, 0)
    limiter.failed(old[0])
    assert limiter.free() == 1
    limiter.started()
    limiter.failed(old[1])
    assert (limiter.free(), limiter.room()) == (0, 1)


def test_an_end_without_a_start_is_our_own_mistake():
    with pytest.raises(AssertionError):
        Limiter(16).failed(0)
