"""'What an answer means', row by row: a real agent before a scripted Komodor."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from support.outside import CREATED, LOST, answer
from support.waiting import PATIENCE_S

from outboxd.times import parse_rfc3339

HTML = "<!DOCTYPE html><html><body>Sign in to the hotel's network</body></html>"


def seconds_from(at_s: float, text: str) -> float:
    return parse_rfc3339(text) / 1000 - at_s


def test_a_2xx_is_delivered_whatever_it_says(agent, komodor):
    for status in (200, 201, 202, 204, 299):
        komodor.respond = lambda _, status=status: answer(status, "" if status == 204 else "ok")
        entry = agent.await_entry(agent.accept(), state="delivered")
        assert (entry["lastOutcome"], entry["lastStatus"]) == ("delivered", status)
        assert entry["deliveredAt"] is not None


def test_a_2xx_with_a_page_is_unavailable_and_no_possible_duplicate(agent, komodor):
    komodor.respond = lambda _: answer(200, HTML, Content_Type="text/html")
    id = agent.accept("behind a portal")
    status = agent.await_state("backingOff")
    assert "HTML page" in status["destination"]["reason"]

    komodor.respond = lambda _: CREATED
    entry = agent.await_entry(id, state="delivered")
    assert "possibleDuplicate" not in komodor.arrivals[-1].details
    assert entry["attempts"][0]["outcome"] == "unavailable"


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", [429, 503])
def test_throttled_the_whole_destination_waits_as_told(agent, komodor, status, form):
    now = datetime.now(UTC)
    wait = "30" if form == "seconds" else f"{now + timedelta(seconds=30):%a, %d %b %Y %H:%M:%S GMT}"
    komodor.respond = lambda _: answer(status, Retry_After=wait)
    agent.accept("first")
    destination = agent.await_state("throttled")["destination"]
    told_s = time.time()
    agent.accept("second")

    assert seconds_from(now.timestamp(), destination["nextProbeAt"]) > 25
    assert seconds_from(told_s, destination["nextProbeAt"]) < 32
    assert str(status) in destination["reason"]
    assert len(komodor.arrivals) == 1
    assert agent.status()["outbox"]["pending"] == 2


def test_a_retry_after_is_capped(make_agent, komodor):
    agent = make_agent(komodor={"retry_after_max": "20s"})
    komodor.respond = lambda _: answer(429, Retry_After="86400")
    began_s = time.time()
    agent.accept()
    next_probe_at = agent.await_state("throttled")["destination"]["nextProbeAt"]

    assert seconds_from(began_s, next_probe_at) > 10
    assert seconds_from(time.time(), next_probe_at) < 21


@pytest.mark.parametrize("retry_after", [{}, {"Retry_After": "soon"}, {"Retry_After": "-5"}])
def test_a_429_without_a_usable_retry_after_waits_as_the_breaker_does(agent, komodor, retry_after):
    komodor.respond = lambda _: answer(429, **retry_after)
    agent.accept()
    komodor.wait_for(2)
    destination = agent.status()["destination"]

    assert destination["state"] == "throttled"


def test_throttling_spends_no_attempt(make_agent, komodor):
    agent = make_agent(delivery={"attempts_max": 1})
    throttled = [answer(429)] * 4
    komodor.respond = lambda _: throttled.pop() if throttled else CREATED
    id = agent.accept()

    entry = agent.await_entry(id, state="delivered")
    assert entry["attemptCount"] == len(entry["attempts"]) == 5


@pytest.mark.parametrize("status", [408, 425, 500, 503])
def test_unavailable_backs_the_destination_off_and_spends_nothing(make_agent, komodor, status):
    agent = make_agent(delivery={"attempts_max": 1})
    komodor.respond = lambda _: answer(status, "try later")
    id = agent.accept()
    destination = agent.await_state("backingOff")["destination"]
    komodor.wait_for(3)
    komodor.respond = lambda _: CREATED
    entry = agent.await_entry(id, state="delivered")

    assert f"{status}" in destination["reason"]
    assert "possibleDuplicate" not in komodor.arrivals[-1].details
    assert {attempt["status"] for attempt in entry["attempts"]} == {status, 201}


def test_an_event_that_fails_while_others_are_delivered_is_exhausted(make_agent, komodor):
    agent = make_agent(delivery={"attempts_max": 3})
    komodor.respond = lambda a: answer(500) if a.event["summary"] == "poison" else CREATED
    id = agent.accept("poison")

    def after_another() -> dict | None:
        agent.accept("good")
        return entry if (entry := agent.entry(id))["state"] != "pending" else None

    entry = agent.until(after_another, lambda: agent.entry(id))

    assert (entry["state"], entry["deadReason"]) == ("dead", "exhausted")
    assert entry["lastStatus"] == 500
    agent.until(lambda: True if agent.status()["outbox"]["pending"] == 0 else None, agent.status)


@pytest.mark.parametrize("status", [401, 404, 407, 302, 308])
def test_hold_keeps_everything_and_follows_no_redirect(make_agent, komodor, status):
    agent = make_agent(delivery={"attempts_max": 1})
    headers = {"Location": komodor.url + "/elsewhere"} if status < 400 else {}
    komodor.respond = lambda _: answer(status, "", **headers)
    began_s = time.time()
    ids = [agent.accept(f"event {number}") for number in range(3)]
    destination = agent.await_state("held")["destination"]

    assert str(status) in destination["reason"]
    # hold_probe's default
    assert seconds_from(began_s, destination["nextProbeAt"]) > 200
    assert seconds_from(time.time(), destination["nextProbeAt"]) <= 300
    assert {agent.entry(id)["state"] for id in ids} == {"pending"}
    assert {arrival.path for arrival in komodor.arrivals} == {"/mgmt/v1/events"}
    assert agent.log_text().count("destination.held") == 1


def test_a_hold_goes_on_by_itself_when_a_probe_succeeds(make_agent, komodor):
    agent = make_agent(delivery={"hold_probe": "200ms"})
    komodor.respond = lambda _: answer(403)
    ids = [agent.accept(f"event {number}") for number in range(3)]
    agent.await_state("held")
    komodor.respond = lambda _: CREATED

    for id in ids:
        agent.await_entry(id, state="delivered")
    assert agent.status()["destination"]["state"] == "ok"


def test_rejected_is_a_dead_letter_with_status_and_start_of_the_answer(agent, komodor):
    for status in (400, 406, 409, 410, 413, 415, 418, 422, 451, 499):
        told = answer(status, '{"message": "summary must be shorter"}')
        komodor.respond = lambda _, told=told: told
        entry = agent.await_entry(agent.accept(), state="dead")

        assert (entry["deadReason"], entry["lastOutcome"]) == ("rejected", "rejected")
        assert entry["lastStatus"] == status
        assert "summary must be shorter" in entry["lastError"]
        assert entry["attemptCount"] == 1
    assert agent.status()["destination"]["state"] == "ok"


def test_what_outlived_its_ttl_is_expired_and_never_sent(agent, komodor):
    komodor.respond = lambda _: answer(429, Retry_After="30")
    agent.accept("first")
    agent.await_state("throttled")
    entry = agent.await_entry(agent.accept("short-lived", ttlSeconds=0.3), state="dead")

    assert entry["deadReason"] == "expired"
    assert "short-lived" not in {arrival.event["summary"] for arrival in komodor.arrivals}


def test_a_lost_answer_marks_the_next_delivery(agent, komodor):
    lost = [LOST, CREATED]
    komodor.respond = lambda _: lost.pop(0) if lost else CREATED
    agent.accept("in doubt")
    first, second = komodor.wait_for(2)[:2]

    assert "possibleDuplicate" not in first.details
    assert second.details["possibleDuplicate"] is True


def test_a_timeout_after_sending_marks_the_next_delivery(make_agent, komodor):
    agent = make_agent(komodor={"request_timeout": "300ms"})

    over, answers = threading.Event(), [LOST]

    def slow_once(_):
        told = answers.pop() if answers else CREATED
        if told is LOST:
            over.wait(PATIENCE_S)
        return told

    komodor.respond = slow_once
    id = agent.accept("slow")
    entry = agent.await_entry(id, state="delivered")

    # The first, which is kept waiting, is noted only when it is let go.
    assert komodor.arrivals[-1].details["possibleDuplicate"] is True
    over.set()
    assert "timeout" in entry["attempts"][0]["error"]


def test_a_refused_connection_marks_nothing(make_agent, komodor):
    agent = make_agent(endpoint="http://127.0.0.1:9/mgmt/v1/events")
    id = agent.accept("fresh")
    destination = agent.await_state("backingOff")["destination"]
    entry = agent.entry(id)

    assert "no connection" in destination["reason"]
    assert "possibleDuplicate" not in entry["sentBody"].get("details", {})
    assert entry["lastStatus"] is None


def test_the_producers_own_word_does_not_stand_for_ours(agent, komodor):
    lost = [LOST, CREATED]
    komodor.respond = lambda _: lost.pop(0) if lost else CREATED
    agent.accept("doubt", details={"possibleDuplicate": "never", "kept": 1.0})
    first, second = komodor.wait_for(2)[:2]

    assert first.details["possibleDuplicate"] == "never"
    assert second.details == {"possibleDuplicate": True, "kept": 1.0}
