"""Two hops on real agents: a host, a gateway, Komodor. Nothing lost, told once and rightly."""

from __future__ import annotations

import queue
import time

import pytest
from support.outside import Agent, answer
from support.waiting import PATIENCE_S

from outboxd.delivery.next_hop import hop_body
from outboxd.outbox.model import Claimed
from outboxd.status import Gateway
from outboxd.times import parse_rfc3339

EVENT = {"eventType": "deploy", "summary": "over two hops", "scope": {"clusters": ["prod"]}}


@pytest.fixture
def make_host(tmp_path, gateway, token):
    """An agent that hands on to the gateway."""
    made = []

    def make(name="host", secret=None, start=True, **sections):
        directory = tmp_path / name
        directory.mkdir()
        extra = {"komodor": {"ca_file": str(tmp_path / "ca.pem")}, **sections}
        agent = Agent(
            directory,
            f"https://localhost:{gateway.port}/mgmt/v1/events",
            extra=extra,
            environ={"KOMODOR_API_KEY": secret or token},
        )
        made.append(agent)
        if start:
            agent.start()
        return agent

    yield make
    for agent in made:
        if agent.pid is not None:
            agent.kill()


def test_an_event_in_time_arrives_as_its_producer_wrote_it(make_host, komodor, gateway):
    host = make_host()
    host.await_entry(host.accept("plain"), state="delivered")
    (arrival,) = komodor.wait_for(1)
    assert arrival.event["summary"] == "plain"
    assert "details" not in arrival.event
    assert set(arrival.event) == {"eventType", "summary", "severity", "scope"}
    (entry,) = gateway.entries()
    assert entry["producer"] == "token:web"
    assert entry["hop"]["attempts"] == 1
    assert entry["hop"]["host"]


def test_delays_of_two_hops_are_summed_and_stamped_once(make_host, gateway, token, komodor):
    """Each hop waits, and neither alone is late."""
    late = {"late_after": "3s"}
    config = gateway.agent.config
    config.write_text(config.read_text().replace("[delivery]", '[delivery]\nlate_after = "3s"'))
    gateway.agent.kill()
    host = make_host(delivery=late)
    began_s = time.monotonic()
    id = host.accept("twice late", occurredAt="2001-01-01T00:00:00Z")
    second = host.accept("also twice late")
    accepted_s = time.monotonic()
    until_s(accepted_s + 2)
    komodor.respond = lambda arrival: answer(503)
    gateway.agent.start()
    host.await_entry(id, state="delivered")
    host.await_entry(second, state="delivered")
    until_s(accepted_s + 5)
    seen, taken_ones = set(), queue.SimpleQueue()

    def take(arrival):
        summary = arrival.event["summary"]
        if summary not in seen:  # it may have been on its way before
            seen.add(summary)
            return answer(503)
        if summary == "also twice late":
            taken_ones.put(arrival.details)
        return answer(201)

    komodor.respond = take
    taken = taken_ones.get(timeout=PATIENCE_S)
    waited_s = time.monotonic() - began_s
    delay_s = int(taken["deliveryDelay"].removesuffix("s"))
    assert 4 <= delay_s <= waited_s + 1
    assert taken["deliveryAttempts"] >= 3
    assert "possibleDuplicate" not in taken


def until_s(at_s):
    time.sleep(max(0.0, at_s - time.monotonic()))


def test_what_no_authenticated_agent_sends_may_not_have_a_hop(gateway):
    status, refusal = gateway.agent.post({**EVENT, "hop": {"ageMs": 5}})
    assert status == 400
    assert "hop" in refusal["error"]


def test_an_answer_that_was_lost_on_the_way_to_a_gateway_makes_no_duplicate(
    gateway, token, komodor
):
    """The host's entry id is the key at the gateway."""
    headers = {"Idempotency-Key": "0190a1b2-0000-7000-8000-000000000001"}
    first = gateway.post({**EVENT, "hop": {"ageMs": 1}}, token, headers=headers)
    again = gateway.post({**EVENT, "hop": {"ageMs": 900}}, token, headers=headers)
    assert (first.status, again.status) == (201, 200)
    assert again.json["id"] == first.json["id"]
    assert len(komodor.wait_for(1)) == 1


@pytest.mark.parametrize(
    ("hop", "occurred", "expected"),
    [
        ({"ageMs": 4_000}, None, None),
        ({"ageMs": 3_600_000, "attempts": 5}, None, ("1h", 6)),
        ({"ageMs": 5_400_000, "attempts": 1}, "2031-01-01T00:00:00Z", ("1h 30m", 2)),
    ],
)
def test_the_age_carries_the_delay_whatever_the_hosts_clock_says(
    gateway, token, komodor, hop, occurred, expected
):
    event = {**EVENT, "hop": hop} | ({"occurredAt": occurred} if occurred else {})
    assert gateway.post(event, token).status == 201
    details = komodor.wait_for(1)[0].details
    if expected is None:
        assert details == {}
        return
    delay, attempts = expected
    assert details["deliveryDelay"].startswith(delay)
    assert details["deliveryAttempts"] == attempts
    if occurred:
        assert details["occurredAt"] == "2031-01-01T00:00:00.000Z"


def test_a_hosts_doubt_and_its_repeats_are_told_by_the_gateway(gateway, token, komodor):
    hop = {"ageMs": 1, "possibleDuplicate": True, "repeats": 3}
    gateway.post({**EVENT, "hop": hop | {"lastOccurredAt": "2026-11-21T10:00:00Z"}}, token)
    assert komodor.wait_for(1)[0].details == {
        "possibleDuplicate": True,
        "repeats": 3,
        "lastOccurredAt": "2026-11-21T10:00:00.000Z",
    }


def test_what_a_token_may_not_say_is_a_dead_letter_of_its_host_and_holds_nobody(
    make_gateway, tmp_path, komodor
):
    gateway = make_gateway({"web": {"clusters": ("prod",)}})
    directory = tmp_path / "host"
    directory.mkdir()
    host = Agent(
        directory,
        f"https://localhost:{gateway.port}/mgmt/v1/events",
        extra={"komodor": {"ca_file": str(tmp_path / "ca.pem")}},
        environ={"KOMODOR_API_KEY": gateway.secrets["web"]},
    )
    host.start()
    try:
        _, refused = host.post({**EVENT, "scope": {"clusters": ["dev"]}})
        _, taken = host.post(EVENT)
        host.await_entry(taken["id"], state="delivered")
        dead = host.await_entry(refused["id"], state="dead")
        assert (dead["deadReason"], dead["lastStatus"]) == ("rejected", 422)
        assert "not allowed" in dead["lastError"]
    finally:
        host.kill()


def test_while_the_gateway_is_away_a_host_keeps_everything(make_host, gateway, komodor):
    host = make_host(delivery={"late_after": "1h"})
    gateway.agent.kill()
    ids = [host.accept(f"n{n}") for n in range(20)]
    gateway.agent.start()
    for id in ids:
        host.await_entry(id, state="delivered")
    arrivals = komodor.wait_for(20)
    assert sorted(a.event["summary"] for a in arrivals) == sorted(f"n{n}" for n in range(20))
    assert all("possibleDuplicate" not in a.details for a in arrivals)


def test_a_gateway_that_is_killed_loses_nothing_that_it_had_a_receipt_for(
    make_host, gateway, komodor
):
    host = make_host()
    komodor.respond = lambda arrival: answer(503)
    ids = [host.accept(f"n{n}") for n in range(50)]
    for id in ids:
        host.await_entry(id, state="delivered")
    gateway.agent.kill()
    komodor.respond = lambda arrival: answer(201)
    gateway.agent.start()
    ends_s = time.monotonic() + PATIENCE_S
    while gateway.agent.status()["outbox"]["pending"] and time.monotonic() < ends_s:
        time.sleep(0.05)
    delivered = {a.event["summary"] for a in komodor.arrivals}
    assert delivered >= {f"n{n}" for n in range(50)}


def test_what_is_left_of_a_ttl_goes_along(make_host, gateway, komodor):
    komodor.respond = lambda arrival: answer(503)
    host = make_host()
    host.await_entry(host.accept("short", ttlSeconds=9_000), state="delivered")
    (entry,) = gateway.entries()
    left_s = (parse_rfc3339(entry["expiresAt"]) - parse_rfc3339(entry["receivedAt"])) / 1000
    assert 8_000 < left_s < 9_000


GATEWAY = Gateway(dedup_s=900.0)
DOUBTED = Claimed(1, "id", b'{"a":1}', 0, None, None, 3, 0, True, 0, None, "socket")


@pytest.mark.parametrize(
    ("now_s", "doubted_for_s", "marked"),
    [
        (10.0, None, False),  # received ten seconds ago: the gateway surely knows it
        (8 * 86_400.0, None, True),
        (8 * 86_400.0, 5.0, False),  # it waited long, and its answer was lost just now
        (-86_400.0, 1_000.0, True),  # the clock was set back meanwhile
        (1_000.0, 850.0, True),  # the gateway may forget it while this is on its way
    ],
)
def test_a_possible_duplicate_is_told_where_the_gateway_may_have_forgotten(
    now_s, doubted_for_s, marked
):
    body = hop_body(DOUBTED, round(now_s * 1000), GATEWAY, "host", doubted_for_s)
    assert (b"possibleDuplicate" in body) is marked
    certain = DOUBTED._replace(possible_duplicate=False)
    body = hop_body(certain, round(now_s * 1000), GATEWAY, "host", doubted_for_s)
    assert b"possibleDuplicate" not in body
