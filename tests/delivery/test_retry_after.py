"""Retry-After, in both of its forms and in none."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd.delivery.retry_after import wait_s

NOW_MS = 1_750_000_000_000
NOW_S = NOW_MS // 1000


def http_date(offset_s: int) -> str:
    return formatdate(NOW_S + offset_s, usegmt=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", 1.0),
        (" 120 ", 120.0),
        ("3600", 3600.0),
        ("3601", 3600.0),
        ("9" * 17, 3600.0),
        ("9" * 5000, 3600.0),
        ("0", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("٣", None),
        ("", None),
        (None, None),
        ("soon", None),
        ("a" * 5000, None),
        ("Wed, 99 Foo 2026 99:99:99 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 -2359", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        (http_date(90), 90.0),
        (http_date(0), None),
        (http_date(-90), None),
        ("Sunday, 15-Jun-25 15:07:50 GMT", 70.0),
        ("Sun Jun 15 15:07:50 2025", 70.0),
    ],
)
def test_forms(value, expected):
    assert wait_s(value, None, NOW_MS, 3600.0) == expected


@pytest.mark.parametrize("skew_s", [-86_400, -30, 0, 30, 86_400])
def test_a_date_is_compared_with_the_servers_own_clock(skew_s):
    value, date = http_date(skew_s + 45), http_date(skew_s)
    assert wait_s(value, date, NOW_MS, 3600.0) == 45.0


def test_seconds_ignore_the_servers_clock():
    assert wait_s("45", http_date(86_400), NOW_MS, 3600.0) == 45.0


def test_without_a_date_that_can_be_read_our_clock_serves():
    assert wait_s(http_date(45), "nonsense", NOW_MS, 3600.0) == 45.0


@given(st.text(max_size=80), st.text(max_size=80))
def test_whatever_it_says_the_wait_is_none_or_within_the_cap(value, date):
    found = wait_s(value, date, NOW_MS, 60.0)
    assert found is None or 0 < found <= 60.0
