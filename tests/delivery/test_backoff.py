"""The schedule of waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd.delivery.backoff import Backoff


def test_the_bound_doubles_up_to_its_limit():
    backoff = Backoff(1.0, 300.0)
    bounds = [backoff.bound_s(failures) for failures in range(1, 12)]
    assert bounds == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_the_jitter_is_full():
    backoff = Backoff(2.0, 300.0)
    assert backoff.delay_s(3, 0.0) == 0.0
    assert backoff.delay_s(3, 0.5) == 4.0
    assert backoff.delay_s(3, 0.999) == pytest.approx(8.0, rel=0.01)


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True))
def test_no_number_of_failures_leaves_the_bound(failures, random):
    assert 0 <= Backoff(0.5, 60.0).delay_s(failures, random) <= 60.0


def test_an_initial_wait_above_the_limit_is_the_limit():
    assert Backoff(10.0, 5.0).bound_s(1) == 5.0


@pytest.mark.parametrize("failures", [0, -1])
def test_without_a_failure_there_is_no_backoff(failures):
    with pytest.raises(ValueError, match="follows a failure"):
        Backoff(1.0, 300.0).delay_s(failures, 0.5)
