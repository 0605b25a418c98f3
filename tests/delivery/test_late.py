"""Stamps on late and doubtful events, and the report of an outage."""

from __future__ import annotations

import json

import pytest

from outboxd.delivery.next_hop import stamped
from outboxd.delivery.report import outage_report
from outboxd.event.komodor import Defaults, parse, wire_body
from outboxd.outbox.model import Claimed
from outboxd.times import rfc3339

RECEIVED = 1_750_000_000_000
PLAIN = b'{"eventType":"deploy","summary":"s"}'


def claimed(body: bytes = PLAIN, **fields) -> Claimed:
    made = Claimed(1, "id", body, RECEIVED, None, None, 0, 0, False, 0, None, "socket")
    return made._replace(**fields)


def details(entry: Claimed, after_s: float, stamp: str = "late") -> dict:
    body = stamped(entry, RECEIVED + round(after_s * 1000), stamp, 60.0)
    return json.loads(body).get("details", {})


def test_in_time_the_body_is_sent_as_it_is_stored():
    entry = claimed()
    assert stamped(entry, RECEIVED + 60_000, "late", 60.0) is entry.body


def test_a_late_event_says_when_it_occurred_and_how_late_it_is():
    found = details(claimed(attempt_count=4), 2 * 3600 + 13 * 60 + 5)
    assert found == {
        "occurredAt": rfc3339(RECEIVED),
        "deliveryDelay": "2h 13m",
        "deliveryAttempts": 5,
    }


def test_the_producers_time_counts_where_there_is_one():
    entry = claimed(occurred_at=RECEIVED - 100_000)
    found = details(entry, 0)
    assert found["occurredAt"] == rfc3339(RECEIVED - 100_000)
    assert found["deliveryDelay"] == "1m 40s"
    future = claimed(occurred_at=RECEIVED + 100_000)
    assert details(future, 90) == {}


@pytest.mark.parametrize(
    ("stamp", "after_s", "stamps"),
    [
        ("late", 60, False),
        ("late", 60.001, True),
        ("always", 0, True),
        ("always", 90, True),
        ("never", 90, False),
    ],
)
def test_the_setting_says_when(stamp, after_s, stamps):
    assert ("deliveryDelay" in details(claimed(), after_s, stamp)) is stamps


def test_a_clock_set_back_makes_no_negative_delay():
    assert details(claimed(), -86_400, "always")["deliveryDelay"] == "0s"
    assert details(claimed(), -86_400) == {}


def test_what_the_producer_wrote_stays_with_its_text():
    body = (
        b'{"eventType":"d","summary":"s","details":'
        b'{"occurredAt":"mine","n":1.10,"big":123456789012345678901234567890}}'
    )
    sent = stamped(claimed(body), RECEIVED + 90_000, "late", 60.0)
    assert b'"n":1.10' in sent
    assert b"123456789012345678901234567890" in sent
    assert json.loads(sent)["details"]["occurredAt"] == "mine"
    assert json.loads(sent)["details"]["deliveryDelay"] == "1m 30s"


@pytest.mark.parametrize("stamp", ["late", "always", "never"])
@pytest.mark.parametrize("theirs", ["", ',"details":{"possibleDuplicate":false}'])
def test_a_possible_duplicate_always_says_so(stamp, theirs):
    body = PLAIN[:-1] + theirs.encode() + b"}"
    found = details(claimed(body, possible_duplicate=True), 0, stamp)
    assert found["possibleDuplicate"] is True


def test_repeats_are_told_with_the_last_ones_time():
    entry = claimed(repeats=9_999, last_occurred_at=RECEIVED + 5_000)
    expected = {"repeats": 9_999, "lastOccurredAt": rfc3339(RECEIVED + 5_000)}
    assert details(entry, 10) == expected
    assert details(entry, 10, "never") == expected


def test_the_report_of_an_outage_is_an_event_like_any_other():
    data = outage_report(
        delayed=214,
        longest_delay_s=2 * 3600 + 13 * 60,
        began_at=RECEIVED,
        ended_at=RECEIVED + 8_000_000,
        reason="no connection",
        host="web-1",
    )
    event = parse(data)
    assert event.summary == "outboxd: 214 events delayed up to 2h 13m"
    sent = json.loads(wire_body(event, Defaults()))
    assert sent["details"]["host"] == "web-1"
    assert sent["details"]["outageLasted"] == "2h 13m"


def test_the_report_of_one_event_is_in_the_singular():
    data = outage_report(delayed=1, longest_delay_s=61, began_at=0, ended_at=1, reason="", host="h")
    assert parse(data).summary == "outboxd: 1 event delayed up to 1m 1s"
