"""Durations and sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("80ms", 0.08),
        ("0s", 0),
        ("30s", 30),
        ("1.5s", 1.5),
        ("5m", 300),
        ("24h", 86_400),
        ("7d", 604_800),
        ("10 s", 10),
        ("36500d", 3_153_600_000),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "5",
        "5 ",
        "-1s",
        "+1s",
        "1e3s",
        "1,5s",
        "1.s",
        ".5s",
        "5S",
        "5min",
        "1h30m",
        "5s ",
        "٣s",
        "1_0s",
        "0x1s",
        "nans",
        "infs",
        "36501d",
        "9" * 400 + "d",
        "1.5.5s",
        "m",
        "ms",
    ],
)
def test_what_is_no_duration_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match='"30s"'):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.9, "0s"),
        (42, "42s"),
        (42.9, "42s"),
        (60, "1m 0s"),
        (190, "3m 10s"),
        (3600, "1h 0m"),
        (7980, "2h 13m"),
        (86_399, "23h 59m"),
        (367_200, "4d 6h"),
        (-5, "0s"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0B", 0),
        ("512B", 512),
        ("256KiB", 262_144),
        ("64MiB", 67_108_864),
        ("1GiB", 1 << 30),
        ("1.5KiB", 1536),
        ("2TiB", 1 << 41),
    ],
)
def test_a_size_is_a_number_and_a_unit(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "B", "5", "5KB", "5kib", "-1B", "0.3B", "1e3B", "9" * 20 + "B"]
)
def test_what_is_no_size_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match='"256KiB"'):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_a_size_in_print_is_within_a_tenth_of_its_unit(size_bytes):
    text = format_size(size_bytes)
    number = float(text.rstrip("BKMGTi"))
    assert number < 1024 or text.endswith("TiB") or text.startswith("1024")
    unit_bytes = parse_size("1" + text.lstrip("0123456789."))
    assert abs(number * unit_bytes - size_bytes) <= 0.051 * unit_bytes


@given(st.text(max_size=12))
def test_no_text_makes_another_exception_than_value_error(text):
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert "number and a unit" in str(error)  # noqa: PT017
