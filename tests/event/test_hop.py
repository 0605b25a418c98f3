"""What one agent tells the next of an event's way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd.errors import EventError
from outboxd.event.hop import AGE_MS_MAX, COUNT_MAX, NO_HOP, Hop, further, hop_text, read_hop
from outboxd.event.strictjson import read_object

HOPS = st.builds(
    Hop,
    st.integers(0, AGE_MS_MAX),
    st.integers(0, COUNT_MAX),
    st.integers(0, COUNT_MAX),
    st.none() | st.integers(0, 4_000_000_000_000),
    st.booleans(),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=253),
)


def read(text: str) -> Hop:
    return read_hop(read_object(f'{{"hop":{text}}}')["hop"][0])


@given(HOPS)
def test_what_is_written_is_read_again(hop):
    if "\0" in hop.host:
        hop = hop._replace(host="host")
    assert read(hop_text(hop)) == hop


def test_two_hops_are_summed():
    first = further(
        NO_HOP,
        age_ms=4_000,
        attempts=3,
        repeats=2,
        last_occurred_at=50,
        possible_duplicate=False,
        host="web-1",
    )
    second = further(
        first,
        age_ms=7_000,
        attempts=2,
        repeats=1,
        last_occurred_at=40,
        possible_duplicate=True,
        host="gateway",
    )
    assert second == Hop(11_000, 5, 3, 50, True, "web-1")


def test_a_clock_that_was_set_back_makes_no_age_negative():
    hop = further(
        Hop(age_ms=5_000),
        age_ms=-60_000,
        attempts=1,
        repeats=0,
        last_occurred_at=None,
        possible_duplicate=False,
        host="h",
    )
    assert hop.age_ms == 5_000


def test_missing_fields_are_zero_and_those_of_a_newer_agent_are_passed_over():
    assert read("{}") == NO_HOP
    assert read('{"ageMs": 5, "fromTheFuture": [1]}') == Hop(age_ms=5)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[]", "$.hop"),
        ('"x"', "$.hop"),
        ('{"ageMs": -1}', "$.hop.ageMs"),
        ('{"ageMs": 1.5}', "$.hop.ageMs"),
        ('{"ageMs": 1e3}', "$.hop.ageMs"),
        ('{"ageMs": "1"}', "$.hop.ageMs"),
        ('{"attempts": true}', "$.hop.attempts"),
        ('{"repeats": [] }', "$.hop.repeats"),
        ('{"lastOccurredAt": 5}', "$.hop.lastOccurredAt"),
        ('{"lastOccurredAt": "now"}', "$.hop.lastOccurredAt"),
        ('{"possibleDuplicate": 1}', "$.hop.possibleDuplicate"),
        ('{"host": 1}', "$.hop.host"),
    ],
)
def test_what_is_no_hop_is_refused_with_its_place(text, field):
    with pytest.raises(EventError) as raised:
        read(text)
    assert raised.value.field == field


def test_no_number_is_too_large_to_be_taken():
    assert read(f'{{"ageMs": {10**19}}}').age_ms == AGE_MS_MAX
