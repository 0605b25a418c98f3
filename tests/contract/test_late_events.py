"""'Late events', and the stamps that tell a late or doubtful event from a fresh one."""

from __future__ import annotations

import time

import pytest
from support.outside import CREATED, LOST, answer

from outboxd.times import rfc3339

STAMPS = {"occurredAt", "deliveryDelay", "deliveryAttempts"}


def ago(seconds: float) -> str:
    return rfc3339(time.time_ns() // 1_000_000 - round(seconds * 1000))


def test_an_event_in_time_is_sent_as_it_came(agent, komodor):
    agent.accept("fresh", details={"a": 1}, occurredAt=ago(1), dedupKey="k", ttlSeconds=600)
    (arrival,) = komodor.wait_for(1)

    assert arrival.event == {
        "eventType": "test",
        "summary": "fresh",
        "severity": "information",
        "scope": {"clusters": ["c"]},
        "details": {"a": 1},
    }


@pytest.mark.parametrize(
    ("delay_s", "told"),
    [
        (61, "1m 1s"),
        (190, "3m 10s"),
        (2 * 3600 + 13 * 60 + 5, "2h 13m"),
        (4 * 86400 + 6 * 3600 + 59 * 60, "4d 6h"),
    ],
)
def test_a_late_event_says_when_it_was_and_how_late_it_is(agent, komodor, delay_s, told):
    began_s = time.time()
    occurred_at = ago(delay_s)
    agent.accept("late", occurredAt=occurred_at)
    details = komodor.wait_for(1)[0].details

    assert details["occurredAt"] == occurred_at
    # Some seconds may pass on the way, which count where seconds are told.
    latest_s = delay_s + int(time.time() - began_s) + 1
    later = {f"{each // 60}m {each % 60}s" for each in range(delay_s, latest_s + 1)}
    assert details["deliveryDelay"] in (later if told.endswith("s") else {told})
    assert details["deliveryAttempts"] == 1
    assert set(details) == STAMPS


def test_keys_that_the_producer_set_are_never_overwritten(agent, komodor):
    agent.accept("late", occurredAt=ago(3600), details={"deliveryDelay": "mine", "occurredAt": 1})
    details = komodor.wait_for(1)[0].details

    assert details == {"deliveryDelay": "mine", "occurredAt": 1, "deliveryAttempts": 1}


def test_late_after_is_a_setting_and_attempts_count_this_one(make_agent, komodor):
    agent = make_agent(delivery={"late_after": "10ms", "report_outage": False})
    answers = [answer(500), answer(500)]
    komodor.respond = lambda _: answers.pop(0) if answers else CREATED
    agent.accept("soon late")
    arrivals = komodor.wait_for(3)

    assert arrivals[2].details["deliveryAttempts"] == 3
    assert arrivals[2].details["deliveryDelay"].endswith("s")


def test_stamp_always_stamps_a_fresh_event(make_agent, komodor):
    agent = make_agent(delivery={"stamp": "always"})
    began_s = time.time()
    agent.accept()
    details = komodor.wait_for(1)[0].details

    assert set(details) == STAMPS
    assert details["deliveryDelay"] in {
        f"{each}s" for each in range(int(time.time() - began_s) + 1)
    }


def test_stamp_never_leaves_out_all_but_the_doubt(make_agent, komodor):
    agent = make_agent(delivery={"stamp": "never"})
    answers = [LOST]
    komodor.respond = lambda _: answers.pop(0) if answers else CREATED
    agent.accept("late and doubtful", occurredAt=ago(3600))

    assert komodor.wait_for(2)[1].details == {"possibleDuplicate": True}


def test_an_outage_is_reported_once_when_it_ends(make_agent, komodor):
    agent = make_agent(delivery={"late_after": "200ms"})
    komodor.respond = lambda _: answer(503)
    for number in range(5):
        agent.accept(f"event {number}")
    agent.await_state("backingOff")
    time.sleep(0.4)  # the outage is long enough to be worth telling
    komodor.respond = lambda _: CREATED
    agent.await_log("outage.ended")
    (report,) = agent.until(
        lambda: r if (r := reports(komodor)) else None, lambda: komodor.arrivals
    )

    assert report.event["summary"].startswith("outboxd: 5 events delayed up to ")
    assert report.details["host"]
    assert report.event["severity"] in ("information", "warning", "error")
    assert len(report.event["eventType"]) <= 30
    # It is an event like others, with a source that says whose it is.
    _, listing = agent.request("GET", "/v1/events?limit=10")
    assert sum(entry["source"] == "agent" for entry in listing["events"]) == 1


def test_a_setting_switches_the_report_off(make_agent, komodor):
    agent = make_agent(delivery={"late_after": "100ms", "report_outage": False})
    komodor.respond = lambda _: answer(503)
    agent.accept("delayed")
    agent.await_state("backingOff")
    time.sleep(0.2)
    komodor.respond = lambda _: CREATED
    agent.await_log("outage.ended")
    agent.accept("behind it")
    komodor.wait_for_summary("behind it")

    assert reports(komodor) == []


def test_a_storm_of_equal_events_becomes_one_entry_with_a_count(make_agent, komodor):
    agent = make_agent(dedup={"repeat_window": "1h"}, delivery={"late_after": "1h"})
    agent.request("POST", "/v1/hold", b"{}")
    first = agent.accept("again", occurredAt=ago(10))
    last_at = ago(1)
    for occurred_at in (ago(5), ago(3), last_at):
        status, receipt = agent.post(
            {"eventType": "test", "summary": "again", "scope": {"clusters": ["c"]},
             "occurredAt": occurred_at}
        )  # fmt: skip
        assert (status, receipt["status"], receipt["id"]) == (200, "duplicate", first)
    entry = agent.entry(first)
    assert entry["repeats"] == 3
    agent.request("POST", "/v1/release", b"{}")
    details = komodor.wait_for_summary("again")[0].details

    assert details == {"repeats": 3, "lastOccurredAt": last_at}
    assert "outboxd_events_repeated_total 3.0" in agent.metrics()


def reports(komodor) -> list:
    return [each for each in komodor.arrivals if each.event["summary"].startswith("outboxd: ")]
