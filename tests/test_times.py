"""Moments as RFC 3339 text, against the standard library's own calendar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd.times import parse_rfc3339, rfc3339

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = st.integers(-62_135_596_800_000, 253_402_300_799_999)


@given(MOMENTS)
def test_every_moment_of_four_digit_years_goes_to_text_and_back(at):
    text = rfc3339(at)
    assert parse_rfc3339(text) == at
    moment = EPOCH + timedelta(milliseconds=at)
    assert text == moment.strftime("%Y").zfill(4) + moment.strftime("-%m-%dT%H:%M:%S.") + (
        f"{at % 1000:03}Z"
    )


@given(
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)),
    st.integers(-1439, 1439),
)
def test_an_offset_is_taken_off(local, minutes):
    sign = "-" if minutes < 0 else "+"
    hours, rest = divmod(abs(minutes), 60)
    text = f"{local.isoformat(timespec='milliseconds')}{sign}{hours:02}:{rest:02}"
    moment = local.replace(tzinfo=UTC) - timedelta(minutes=minutes)
    assert parse_rfc3339(text) == (moment - EPOCH) // timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01T00:00:00.1Z", 100),
        ("1970-01-01T00:00:00.123999999Z", 123),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:00:00-01:00", 0),
        ("1970-01-01T00:00:00-00:00", 0),
        ("2024-02-29T12:00:00Z", 1_709_208_000_000),
        ("2000-02-29T00:00:00Z", 951_782_400_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
    ],
)
def test_the_forms_that_the_rfc_allows_are_read(text, at):
    assert parse_rfc3339(text) == at


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1700000000",
        "2026-11-21",
        "2026-11-21T23:31:36",  # no offset
        "2026-11-21 23:31:36Z",
        "2026-11-21T23:31Z",
        "2026-11-21T23:31:36.Z",
        "2026-11-21T23:31:36,5Z",
        "2026-11-21T23:31:36+0100",
        "2026-11-21T23:31:36+01",
        "2026-11-21T23:31:36+24:00",
        "2026-11-21T23:31:36+01:60",
        "2026-11-21T24:00:00Z",
        "2026-11-21T23:60:00Z",
        "2026-11-21T23:31:61Z",
        "2026-13-21T23:31:36Z",
        "2026-00-21T23:31:36Z",
        "2026-11-31T23:31:36Z",
        "2026-11-00T23:31:36Z",
        "2026-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "+2026-11-21T23:31:36Z",
        "20261-11-21T23:31:36Z",
        "２０２６-11-21T23:31:36Z",
        "2026-11-21T23:31:36Z ",
        " 2026-11-21T23:31:36Z",
        "2026-11-21T23:31:36." + "1" * 100 + "Z",
    ],
)
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="2026-11-21T23:31:36Z"):
        parse_rfc3339(text)


@given(st.text(max_size=40))
def test_no_text_makes_another_exception_than_value_error(text):
    try:
        at = parse_rfc3339(text)
    except ValueError:
        return
    assert isinstance(at, int)


def test_a_moment_outside_of_four_digit_years_is_told_as_the_nearest():
    assert rfc3339(10**17) == "9999-12-31T23:59:59.999Z"
    assert rfc3339(-(10**17)) == "0001-01-01T00:00:00.000Z"
