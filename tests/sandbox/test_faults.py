"""What faults mean for a call: the whole decision, without a server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outboxd.sandbox.faults import CallHandling, InjectedFaults, RateLimit, changed, judge, spent

NONE = InjectedFaults()


def test_without_faults_nothing_goes_wrong():
    assert NONE.quiet
    verdict = judge(NONE, 0.0, True)
    assert verdict == CallHandling()


def test_an_outage_comes_before_everything_else():
    assert judge(InjectedFaults(outage=True, status=500, html=True), 0.5, False).reset


@pytest.mark.parametrize(
    ("chance", "status", "lost"),
    [(0.0, 500, False), (0.19, 500, False), (0.2, None, True), (0.59, None, True),
     (0.61, None, False), (0.99, None, False)],
)  # fmt: skip
def test_shares_are_taken_one_after_the_other_from_one_random_number(chance, status, lost):
    verdict = judge(InjectedFaults(fail_rate=0.2, lost_answer_rate=0.5), chance, True)
    assert (verdict.status, verdict.lose_answer) == (status, lost)


def test_a_fail_rate_of_one_fails_always():
    assert judge(InjectedFaults(fail_rate=1.0), 0.999999, True).status == 500


def test_delays_add_up():
    assert judge(InjectedFaults(latency_ms=80, hang_seconds=2), 0.5, True).delay_s == pytest.approx(
        2.08
    )


def test_a_number_of_times_counts_down_to_none():
    faults = InjectedFaults(status=500, times=2)
    assert spent(faults).times == 1
    assert spent(spent(faults)) == NONE
    assert spent(replace(faults, times=None)).status == 500


def test_what_the_server_tells_it_takes_back():
    faults = changed(NONE, {"outage": True, "latencyMs": 80, "retryAfter": 3})
    assert changed(NONE, faults.to_json()) == faults


def test_the_rate_limit_lets_through_what_its_rate_allows():
    limit = RateLimit()
    admitted = sum(limit.admits(50, now / 1000) for now in range(1_000_000, 1_010_000, 5))
    assert 495 <= admitted <= 510


@pytest.mark.parametrize("starts_s", [0.0, 3.0, 1e6])
def test_the_rate_limit_is_full_at_first_whatever_the_clock_shows(starts_s):
    limit = RateLimit()
    admitted = [limit.admits(100.0, starts_s) for _ in range(11)]
    assert admitted == [True] * 10 + [False]
    assert limit.admits(100.0, starts_s + 0.011)
