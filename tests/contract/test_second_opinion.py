"""One event, or one wrong answer, stops nobody: on the real agent, by its answers alone."""

from __future__ import annotations

import threading
import time

import pytest
from support.outside import CREATED, answer
from support.waiting import PATIENCE_S


def grudge(komodor, told):
    """Answers `told` to what has a grudge word in its text, and takes the rest."""
    komodor.respond = lambda arrival: told if b"DROP TABLE" in arrival.body else CREATED


def delivered(agent, ids):
    for id in ids:
        agent.await_entry(id, state="delivered")


@pytest.mark.parametrize("order", ["mixed", "fifo"])
@pytest.mark.parametrize("status", [403, 404, 302])
def test_one_event_that_a_firewall_refuses_holds_nobody_and_is_given_up(
    make_agent, komodor, order, status
):
    agent = make_agent(delivery={"order": order, "backoff_initial": "100ms"})
    grudge(komodor, answer(status))
    began_s = time.monotonic()
    bad = agent.accept("DROP TABLE users")
    delivered(agent, [agent.accept(f"good {number}") for number in range(5)])
    for number in range(2000):
        if agent.entry(bad)["state"] == "dead":
            break
        delivered(agent, [agent.accept(f"more {number}")])

    entry = agent.entry(bad)
    assert (entry["state"], entry["deadReason"], entry["lastStatus"]) == (
        "dead",
        "rejected",
        status,
    )
    assert f"event {bad} is refused ({status}) while others pass: set aside" in agent.log_text()
    assert agent.status()["destination"]["state"] == "ok"
    # While none of the others comes, on a busy machine, it is tried all the same: every
    # 100 ms on average, after a wait of up to `backoff_max`.
    held_up_s = max(0.0, time.monotonic() - began_s - 1)
    tries = sum(b"DROP TABLE" in arrival.body for arrival in komodor.arrivals)
    assert tries <= 12 + 20 * held_up_s
    metrics = agent.metrics()
    assert 'outboxd_events_set_aside_total{outcome="hold"} 1.0' in metrics


def test_one_event_that_is_always_throttled_waits_alone(make_agent, komodor):
    agent = make_agent(delivery={"backoff_initial": "100ms"})
    grudge(komodor, answer(429, Retry_After="1"))
    bad = agent.accept("DROP TABLE users")
    delivered(agent, [agent.accept(f"good {number}") for number in range(30)])
    agent.await_log("while others pass: set aside")
    ids = [agent.accept(f"later {number}") for number in range(30)]
    delivered(agent, ids)

    assert agent.entry(bad)["state"] == "pending"
    destination = agent.status()["destination"]
    assert destination["state"] == "ok"
    assert bad in destination["reason"]


def test_everything_rejected_is_the_destinations_fault_and_buries_nothing(make_agent, komodor):
    agent = make_agent()
    komodor.respond = lambda _: answer(400, '{"message": "plain HTTP sent to HTTPS port"}')
    ids = [agent.accept(f"event {number}") for number in range(40)]
    agent.await_state("held")
    agent.until(lambda: agent.status()["outbox"]["dead"] == 0 or None, agent.status)

    assert "refuses everything" in agent.status()["destination"]["reason"]
    assert agent.status()["outbox"]["pending"] == 40
    assert len(komodor.arrivals) <= 40
    komodor.respond = lambda _: CREATED
    agent.request("POST", "/v1/release", b"{}")
    delivered(agent, ids)
    assert "brake.pulled" in agent.log_text()


def test_a_second_rejection_after_others_were_delivered_is_final(make_agent, komodor):
    agent = make_agent()
    komodor.respond = lambda _: answer(400)
    bad = [agent.accept(f"DROP TABLE {number}") for number in range(10)]
    agent.await_state("held")
    grudge(komodor, answer(400))
    good = agent.accept("good")
    agent.request("POST", "/v1/release", b"{}")
    agent.await_entry(good, state="delivered")
    for id in bad:
        assert agent.await_entry(id, state="dead")["deadReason"] == "rejected"


def test_a_request_that_hangs_is_not_the_only_one_for_long(make_agent, komodor):
    agent = make_agent()
    begun, over = threading.Event(), threading.Event()

    def respond(arrival):
        if b"DROP TABLE" in arrival.body:
            begun.set()
            over.wait(PATIENCE_S)
        return CREATED

    komodor.respond = respond
    bad = agent.accept("DROP TABLE users")
    assert begun.wait(PATIENCE_S)
    try:
        delivered(agent, [agent.accept(f"good {number}") for number in range(20)])
        assert agent.entry(bad)["state"] == "pending"
    finally:
        over.set()
    agent.await_entry(bad, state="delivered")


def test_a_good_event_does_not_wait_behind_one_that_always_gets_500(make_agent, komodor):
    agent = make_agent(delivery={"backoff_initial": "1h", "backoff_max": "1h"})
    grudge(komodor, answer(500))
    agent.accept("DROP TABLE users")
    agent.await_state("backingOff")
    agent.await_entry(agent.accept("good"), state="delivered")
    assert agent.status()["destination"]["state"] == "ok"


@pytest.mark.parametrize(
    ("told", "state"),
    [
        (answer(429, Retry_After="600"), "throttled"),
        (answer(503, Retry_After="600"), "throttled"),
        (answer(500), "backingOff"),
        (answer(401), "held"),
    ],
)
def test_a_release_ends_every_wait_and_says_what_it_was(make_agent, komodor, told, state):
    agent = make_agent(delivery={"backoff_initial": "1h", "backoff_max": "1h"})
    komodor.respond = lambda _: told
    id = agent.accept()
    agent.await_state(state)
    status = agent.until(lambda: agent.entry(id)["lastStatus"], lambda: agent.entry(id))
    komodor.respond = lambda _: CREATED
    _, released = agent.request("POST", "/v1/release", b"{}")
    assert released["was"]["state"] == state
    assert released["was"]["reason"].startswith(str(status))
    agent.await_entry(id, state="delivered")
