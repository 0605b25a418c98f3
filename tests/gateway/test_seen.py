"""What the operator of a gateway sees of those who hand in: counted and logged by name."""

from __future__ import annotations

import json
import re

import pytest
from support.outside import Agent, outboxd

from outboxd.intake.host_clocks import ahead_ms
from outboxd.observe.callers import (
    CLOCK_FORGOTTEN_MS,
    HOSTS_MAX,
    NAMES_MAX,
    NAMES_SHOWN,
    STRANGERS_MAX,
    CallerBook,
)
from outboxd.observe.logs import captured
from outboxd.observe.producers import KINDS_MAX, ProducerObserver
from outboxd.outbox.model import Incoming
from outboxd.times import parse_rfc3339

EVENT = {"eventType": "deploy", "summary": "secret words", "scope": {"clusters": ["prod"]}}
NOW = parse_rfc3339("2026-11-21T12:00:00Z")
HOUR_MS = 3_600_000


def counted(gateway, name, **labels):
    for line in gateway.agent.metrics().splitlines():
        if line.startswith(name) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no {name} {labels}")


def lines(gateway, event):
    gateway.agent.await_log(event)
    found = [json.loads(line) for line in gateway.agent.log_text().splitlines() if event in line]
    return [line for line in found if line["event"] == event]


def test_what_a_token_hands_in_is_counted_by_its_name(make_gateway):
    gateway = make_gateway({"web": {}, "idle": {}})
    accepted = "outboxd_gateway_events_accepted_total"
    assert counted(gateway, accepted, token="web") == 0
    for _ in range(3):
        assert gateway.post(EVENT, gateway.secrets["web"]).status == 201
    batch = b"\n".join([json.dumps(EVENT).encode()] * 4)
    gateway.request("POST", "/v1/events/batch", batch, gateway.secrets["web"])
    gateway.agent.accept("by the socket")
    assert counted(gateway, accepted, token="web") == 7
    assert counted(gateway, accepted, token="idle") == 0
    assert counted(gateway, "outboxd_events_accepted_total", source="socket") == 4


def test_who_is_refused_and_why_is_counted_and_logged_with_the_name(make_gateway):
    gateway = make_gateway({"web": {"clusters": ("prod",)}})
    refused = "outboxd_gateway_events_refused_total"
    token = gateway.secrets["web"]
    assert gateway.post({**EVENT, "scope": {"clusters": ["dev"]}}, token).status == 422
    assert gateway.post({"eventType": "x"}, token).status == 400
    assert gateway.request("POST", "/v1/alertmanager", {"no": "alerts"}, token).status == 422
    assert gateway.request("POST", "/v1/webhooks/github", b"{", token).status == 400
    many = b'{"alerts": [' + b"{}," * 300_000 + b"{}]}"
    assert gateway.request("POST", "/v1/alertmanager", many, token).status == 413
    assert counted(gateway, refused, token="web", reason="not_allowed") == 1
    assert counted(gateway, refused, token="web", reason="invalid") == 3
    assert counted(gateway, refused, token="web", reason="too_large") == 1
    (told,) = [one for one in lines(gateway, "producer.refused") if one["reason"] == "not_allowed"]
    assert (told["producer"], told["count"]) == ("web", 1)
    assert "'dev'" in told["error"]
    assert token not in gateway.agent.log_text()
    assert "secret words" not in gateway.agent.log_text()


def test_who_is_throttled_is_counted_and_logged_by_single_event_and_by_batch(make_gateway):
    gateway = make_gateway({"slow": {"rate": 0.001}})
    token = gateway.secrets["slow"]
    assert gateway.post(EVENT, token).status == 201
    again = gateway.post(EVENT, token)
    assert again.status == 429
    assert int(again.headers["Retry-After"]) >= 50
    batch = gateway.request("POST", "/v1/events/batch", json.dumps(EVENT).encode(), token)
    assert b'"retry": true' in batch.raw
    assert len(gateway.entries()) == 1
    refused = "outboxd_gateway_events_refused_total"
    assert counted(gateway, refused, token="slow", reason="rate") == 2
    assert counted(gateway, "outboxd_events_refused_total", reason="rate") == 2
    (told,) = lines(gateway, "producer.throttled")
    assert told["producer"] == "slow"


def test_a_batch_cannot_go_past_its_tokens_rate(make_gateway):
    """It may use up what it has, and a debt keeps the next one out."""
    gateway = make_gateway({"slow": {"rate": 0.01}})
    token = gateway.secrets["slow"]
    batch = b"\n".join([json.dumps(EVENT).encode()] * 5_000)
    first = gateway.request("POST", "/v1/events/batch", batch, token)
    taken = len(re.findall(rb'"accepted"', first.raw))
    assert 0 < taken < 5_000
    assert len(re.findall(rb'"retry": true', first.raw)) == 5_000 - taken
    assert gateway.request("POST", "/v1/events/batch", batch, token).status == 429


def test_who_is_not_known_is_logged_with_its_address_and_never_with_what_it_sent(gateway):
    gateway.post(EVENT, "outboxd_wrong-and-secret")
    gateway.post(EVENT, None)
    told = lines(gateway, "gateway.unauthenticated")
    assert {one["reason"] for one in told} == {"an unknown or revoked token", "no token"}
    assert {one["peer"] for one in told} == {"127.0.0.1"}
    assert "wrong-and-secret" not in gateway.agent.log_text()


def test_a_host_whose_clock_is_wrong_is_counted_and_named(gateway, token):
    hop = {"ageMs": 5_000, "attempts": 1, "host": "web-7"}
    ahead = {**EVENT, "occurredAt": "2039-01-01T00:00:00Z", "hop": hop}
    assert gateway.post(ahead, token).status == 201
    assert counted(gateway, "outboxd_gateway_clock_wrong_total", token="web") == 1
    (told,) = lines(gateway, "producer.clock_wrong")
    assert (told["producer"], told["host"], told["direction"]) == ("web", "web-7", "ahead")


@pytest.mark.parametrize(
    ("occurred", "age_ms", "expected"),
    [
        (None, 5, None),
        (NOW - HOUR_MS, HOUR_MS, None),  # an hour late, and both clocks agree
        (NOW - HOUR_MS, HOUR_MS + 30_000, None),
        (NOW, HOUR_MS, HOUR_MS),
        (NOW - 3 * HOUR_MS, HOUR_MS, -2 * HOUR_MS),
        (NOW + HOUR_MS, 0, HOUR_MS),
        (NOW + HOUR_MS, None, HOUR_MS),
        (NOW - HOUR_MS, None, None),  # nobody says how old it is
    ],
)
def test_how_far_a_clock_is_off_is_told_by_the_age_and_the_time(occurred, age_ms, expected):
    hop = None if age_ms is None else f'{{"ageMs":{age_ms},"attempts":1}}'
    item = Incoming(b"{}", "t", "information", "", "socket", NOW, occurred, hop=hop)
    assert ahead_ms(item) == expected


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def monotonic_s(self):
        return self.now_s

    def wall_ms(self):
        return NOW + round(self.now_s * 1000)


class Uncounted:
    def token_accepted(self, name, count):
        pass

    def token_refused(self, name, reason, count):
        pass

    def token_clock_wrong(self, name):
        pass

    def user_refused(self, name, reason, count):
        pass


def test_a_name_and_reason_has_a_line_a_minute_that_has_the_count_since_the_last():
    clock = Clock()
    with captured() as told:
        observer = ProducerObserver(Uncounted(), clock, CallerBook())
        for _ in range(100):
            observer.refused("token:web", "rate", 2, "too many")
        observer.refused("token:web", "invalid", 1, "no event")
        for _ in range(100):
            observer.refused("uid:0", "invalid", 1, "no event")
        observer.refused("agent", "full", 1, "no room")
        clock.now_s = 61
        observer.refused("token:web", "rate", 2, "too many")
        observer.refused("uid:0", "invalid", 1, "no event")
    assert [(line["event"], line["producer"], line["reason"], line["count"]) for line in told] == [
        ("producer.throttled", "web", "rate", 2),
        ("producer.refused", "web", "invalid", 1),
        ("user.refused", "uid:0", "invalid", 1),
        ("producer.throttled", "web", "rate", 200),
        ("user.refused", "uid:0", "invalid", 100),
    ]


def test_names_without_end_take_no_room_without_end():
    clock = Clock()
    with captured() as told:
        observer = ProducerObserver(Uncounted(), clock, CallerBook())
        for number in range(KINDS_MAX + 500):
            observer.refused(f"uid:{number}", "full", 1, "no room")
        for number in range(KINDS_MAX + 500):
            observer.refused(f"token:n{number}", "rate", 1, "too many")
    assert [line["event"] for line in told] == [
        *["user.refused"] * KINDS_MAX,
        *["producer.throttled"] * KINDS_MAX,
    ], "users push no token out"


def producer_of(gateway, name):
    return next(
        one for one in gateway.agent.status()["gateway"]["producers"] if one["name"] == name
    )


def test_the_status_of_a_gateway_says_who_hands_in_and_who_is_refused_and_why(make_gateway):
    gateway = make_gateway({"web": {"clusters": ("prod",)}, "slow": {"rate": 0.01}, "idle": {}})
    web, slow = gateway.secrets["web"], gateway.secrets["slow"]
    assert gateway.post(EVENT, web).status == 201
    assert gateway.post({**EVENT, "scope": {"clusters": ["dev"]}}, web).status == 422
    assert gateway.post(EVENT, slow).status == 201
    assert gateway.post(EVENT, slow).status == 429
    ahead = {**EVENT, "occurredAt": "2039-01-01T00:00:00Z"}
    assert gateway.post(ahead | {"hop": {"ageMs": 5_000, "host": "web-7"}}, web).status == 201
    gateway.post(EVENT, "outboxd_wrong-and-secret")
    status = gateway.agent.status()["gateway"]
    assert status["address"] == f"https://127.0.0.1:{gateway.port}"
    assert (status["connectionsMax"], status["connectionsPerPeer"]) == (2000, 50)
    assert (status["tokens"], status["unauthenticated"]) == (3, 1)
    assert [one["name"] for one in status["producers"]] == ["web", "slow"]
    (stranger,) = status["strangers"]
    assert (stranger["peer"], stranger["reason"], stranger["count"]) == (
        "127.0.0.1",
        "an unknown or revoked token",
        1,
    )
    seen = producer_of(gateway, "web")
    assert seen["accepted"] == 2
    assert seen["acceptedAt"] is not None
    (refused,) = seen["refused"]
    assert (refused["reason"], refused["count"]) == ("not_allowed", 1)
    assert "'dev'" in refused["told"]
    (clock,) = seen["wrongClocks"]
    assert clock["host"] == "web-7"
    assert clock["aheadMs"] > HOUR_MS
    assert [one["reason"] for one in producer_of(gateway, "slow")["refused"]] == ["rate"]
    assert "wrong-and-secret" not in json.dumps(status)
    screen = outboxd("status", "-c", str(gateway.agent.config)).stdout.decode()
    for told in (
        f"https://127.0.0.1:{gateway.port}",
        "web: 2 taken",
        "1 refused (not_allowed)",
        "slow: 1 taken",
        "1 throttled",
        "web-7 of web is ",
        "127.0.0.1: 1 request, an unknown or revoked token",
    ):
        assert told in screen


def test_the_status_tells_what_of_a_gateway_cannot_be_used(gateway, tmp_path):
    assert gateway.agent.status()["gateway"]["certificateEndsAt"] > "2026"
    assert counted(gateway, "outboxd_gateway_certificate_left_seconds") > 86_400
    assert gateway.agent.status()["gateway"]["troubles"] == []
    text = gateway.tokens.read_text()
    gateway.tokens.write_text("web")
    gateway.agent.await_log("gateway.tokens_refused")
    status = gateway.agent.status()
    (trouble,) = status["gateway"]["troubles"]
    assert "line 1" in trouble["message"]
    assert trouble["message"] in [one["message"] for one in status["findings"]]
    screen = outboxd("status", "-c", str(gateway.agent.config)).stdout.decode()
    assert trouble["message"] in screen
    gateway.tokens.write_text(text)
    gateway.agent.await_log("gateway.tokens_renewed")
    assert gateway.agent.status()["gateway"]["troubles"] == []


def test_an_agent_that_is_no_gateway_says_so(tmp_path, zygote):
    agent = Agent(tmp_path, "http://127.0.0.1:1/mgmt/v1/events", zygote=zygote)
    agent.start()
    try:
        assert agent.status()["gateway"] is None
    finally:
        agent.kill()


def test_what_is_remembered_of_callers_is_bounded_and_the_newest_stay():
    book = CallerBook()
    for number in range(NAMES_MAX + 50):
        book.accepted(f"n{number}", 1, NOW + number)
        book.stranger(f"10.0.{number // 250}.{number % 250}", "no token", NOW + number)
    for number in range(HOSTS_MAX + 5):
        book.clock_wrong("n1049", f"host-{number}", HOUR_MS, NOW + number)
    seen = book.seen(NOW + 5_000)
    assert len(seen.producers) == NAMES_SHOWN
    assert seen.producers[0].name == "n1049"
    assert seen.producers_left_out == NAMES_MAX - NAMES_SHOWN
    assert len(seen.strangers) == STRANGERS_MAX
    assert seen.unauthenticated == NAMES_MAX + 50
    assert len(seen.producers[0].clocks) == HOSTS_MAX
    assert seen.producers[0].clocks[0].host == f"host-{HOSTS_MAX + 4}"
    assert book.seen(NOW + CLOCK_FORGOTTEN_MS + 5_000).producers[0].clocks == ()
    for number in range(NAMES_MAX + 50):
        book.user_refused(f"uid:{number}", "full", 1, "x" * 500, NOW)
    book.user_refused("uid:50", "full", 2, "again", NOW)
    users, left_out = book.refused_users()
    assert (len(users), left_out) == (NAMES_SHOWN, NAMES_MAX - NAMES_SHOWN)
    assert users[0].producer == "uid:50"
    assert (users[0].refused[0].events, users[0].refused[0].told) == (3, "again")
    assert len(users[1].refused[0].told) < 500
    assert len(book.seen(NOW).producers) == NAMES_SHOWN, "users push no token out"
