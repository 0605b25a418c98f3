"""The TCP intake of a real gateway: who gets in, what they can reach, what they are told."""

from __future__ import annotations

import os
import re
import ssl
from typing import Any
from unittest.mock import MagicMock

import pytest
from support.waiting import wait_until

from outboxd.api.control import ControlRoutes
from outboxd.api.routes import ReadingRoutes
from outboxd.gateway.tokens import ProducerLimits, line_of, new_token

EVENT = {"eventType": "deploy", "summary": "billing is out", "scope": {"clusters": ["prod"]}}
GREETING = "1; dedup=604800; type=60; bytes=262144"


def test_komodors_own_call_gets_its_receipt_and_arrives(gateway, token, komodor):
    answer = gateway.post(EVENT, token)
    assert answer.status == 201
    assert answer.json["status"] == "accepted"
    assert answer.headers["Outboxd-Gateway"] == GREETING
    (arrival,) = komodor.wait_for(1)
    assert arrival.event == {**EVENT, "severity": "information"}
    assert arrival.headers["x-api-key"] == "test-key"


def test_a_bearer_token_is_as_good(gateway, token):
    headers = {"Authorization": f"Bearer {token}"}
    assert gateway.post(EVENT, None, headers=headers).status == 201


IN_EITHER_HEADER = {
    (" {} ", None): 200,
    (None, "bearer   {} "): 200,
    ("an old key of Komodor", "Bearer {}"): 200,
    ("", "Bearer {}"): 200,
    ("{}", "Basic dXNlcjpwYXNzd29yZA=="): 200,
    ("{}", "Bearer an old one"): 200,
    ("an old key of Komodor", "Bearer another"): 401,
    (None, "Token {}"): 401,
    (None, "Basic {}"): 401,
    ('"{}"', None): 401,
    ("{}x", "Bearer x{}"): 401,
}


def test_a_good_token_counts_in_either_header_whatever_stands_in_the_other(gateway, token):
    """A sender that was changed over, or a proxy, may have left something there."""
    found = {}
    for both in IN_EITHER_HEADER:
        named = zip(("x-api-key", "Authorization"), both, strict=True)
        headers = {name: value.format(token) for name, value in named if value is not None}
        answer = gateway.request("GET", "/mgmt/v1/apikey/validate", headers=headers)
        found[both] = answer.status
    assert found == IN_EITHER_HEADER


def test_komodors_validation_says_that_the_token_is_good(gateway, token):
    answer = gateway.request("GET", "/mgmt/v1/apikey/validate", token=token)
    assert answer.status == 200
    assert answer.headers["Outboxd-Gateway"] == GREETING
    assert gateway.request("GET", "/mgmt/v1/apikey/validate", token="wrong").status == 401


PATHS = (
    ("POST", "/mgmt/v1/events"),
    ("GET", "/mgmt/v1/apikey/validate"),
    ("GET", "/v1/events"),
    ("GET", "/v1/status"),
    ("GET", "/metrics"),
    ("GET", "/"),
    ("POST", "/v1/hold"),
    ("POST", "/nothing/here"),
    ("DELETE", "/healthz"),
    ("POST", "/v1/webhooks/github"),
)


def test_whoever_has_no_token_gets_one_constant_401(gateway):
    answers = set()
    for method, path in PATHS:
        for token in (None, "", "wrong", "outboxd_" + "A" * 43, "x" * 4000):
            answer = gateway.request(method, path, b"{" if method == "POST" else None, token)
            assert "Outboxd-Gateway" not in answer.headers
            told = tuple(sorted((n.lower(), v) for n, v in answer.headers.items() if n != "Date"))
            answers.add((answer.status, answer.raw, told))
    bodies = {(status, raw) for status, raw, _ in answers}
    assert len(bodies) == 1
    assert next(iter(bodies))[0] == 401


def test_the_health_of_a_gateway_is_its_status_alone(gateway):
    for path in ("/healthz", "/readyz"):
        answer = gateway.request("GET", path)
        assert (answer.status, answer.raw) == (200, b"")
        assert "Outboxd-Gateway" not in answer.headers


def test_a_gateway_that_takes_nothing_is_not_ready_until_it_does(make_gateway, komodor):
    """So that a balancer sends hosts to another."""
    taken = komodor.respond
    komodor.respond = lambda arrival: b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n"
    gateway = make_gateway(outbox={"events_max": 1})
    assert gateway.request("GET", "/readyz").status == 200
    assert gateway.post(EVENT, gateway.secrets["web"]).status == 201
    assert gateway.post(EVENT, gateway.secrets["web"]).status == 503
    answer = gateway.request("GET", "/readyz")
    assert (answer.status, answer.raw) == (503, b"")
    assert gateway.request("GET", "/healthz").status == 200
    komodor.respond = taken
    gateway.agent.await_empty()
    assert gateway.request("GET", "/readyz").status == 200


CONTRACT = {
    ("POST", "/mgmt/v1/events"),
    ("GET", "/mgmt/v1/apikey/validate"),
    ("POST", "/v1/events/batch"),
    ("POST", "/v1/alertmanager"),
    ("POST", "/v1/webhooks/{name}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
}


def test_no_route_of_the_socket_is_reached_over_tcp_but_those_of_the_contract(gateway, token):
    nothing: Any = MagicMock()
    reading, control = ReadingRoutes(nothing), ControlRoutes(nothing, nothing)
    routes = [*reading.routes(), *reading.socket_routes()]
    routes += [*control.routes(), *control.socket_routes()]
    known = {(route.method, route.path) for route in routes}
    assert len(known) > 10
    for method, path in known - CONTRACT:
        answer = gateway.request(method, path.replace("{id}", "1"), b"{}", token)
        assert answer.status in (404, 405), (method, path)
    assert {entry["state"] for entry in gateway.entries()} <= {"delivered", "pending"}


@pytest.mark.parametrize(
    ("scope", "field"),
    [
        ({"clusters": ["dev"]}, "$.scope.clusters[0]"),
        ({"clusters": ["prod", "dev"]}, "$.scope.clusters[1]"),
        ({"namespaces": ["kube-system"]}, "$.scope.namespaces[0]"),
    ],
)
def test_what_a_token_does_not_allow_is_422(make_gateway, scope, field):
    gateway = make_gateway({"web": {"clusters": ("prod",), "namespaces": ("web",)}})
    answer = gateway.post({**EVENT, "scope": scope}, gateway.secrets["web"])
    assert answer.status == 422
    assert answer.json["field"] == field
    assert answer.json["hint"]
    assert gateway.entries() == []


def test_a_tokens_cluster_is_added_where_none_is_named(make_gateway, komodor):
    gateway = make_gateway({"web": {"clusters": ("prod",)}})
    event = {"eventType": "t", "summary": "s"}
    assert gateway.post(event, gateway.secrets["web"]).status == 201
    assert komodor.wait_for(1)[0].event["scope"] == {"clusters": ["prod"]}


def test_a_tokens_rate_is_429_with_a_time_that_is_not_for_all_the_same(make_gateway):
    gateway = make_gateway({"slow": {"rate": 0.001}, "other": {}})
    secret = gateway.secrets["slow"]
    assert gateway.post(EVENT, secret).status == 201
    waits = set()
    for _ in range(12):
        answer = gateway.post(EVENT, secret)
        assert answer.status == 429
        waits.add(int(answer.headers["Retry-After"]))
    assert len(waits) > 1
    assert all(900 <= wait_s <= 1501 for wait_s in waits)
    assert gateway.post(EVENT, gateway.secrets["other"]).status == 201


def test_a_new_token_is_good_and_a_revoked_one_is_not_without_a_restart(gateway, token):
    fresh = gateway.token("fresh")
    wait_until(lambda: gateway.post(EVENT, fresh).status == 201)
    gateway.tokens.write_text("\n".join(gateway.tokens.read_text().splitlines()[1:]) + "\n")
    wait_until(lambda: gateway.post(EVENT, token).status == 401)
    assert gateway.post(EVENT, fresh).status == 201


def test_a_token_is_good_as_soon_as_it_is_printed(gateway):
    """Its host would be refused else, and look again after minutes."""
    for number in range(3):
        secret = gateway.token(f"fresh-{number}")
        assert gateway.post(EVENT, secret).status == 201


def test_tokens_are_good_that_were_made_before_the_gateway_looked(gateway):
    """The second file may get the number of the one that the gateway knows."""
    for number in range(3):
        made = [gateway.token(f"host-{number}-{each}") for each in range(2)]
        assert [gateway.post(EVENT, secret).status for secret in made] == [201, 201]


def test_a_token_that_is_added_to_the_file_where_it_lies_is_good_at_once(gateway):
    secret, token = new_token("by-hand", ProducerLimits())
    with open(gateway.tokens, "a") as file:
        file.write(line_of(token))
        file.flush()
        assert gateway.post(EVENT, secret).status == 401  # its limits may follow
        file.write("\n")
    assert gateway.post(EVENT, secret).status == 201


def test_a_half_written_tokens_file_leaves_the_tokens_as_they_were(gateway, token):
    text = gateway.tokens.read_text()
    gateway.tokens.write_text(text[: len(text) // 2])
    wait_until(lambda: "gateway.tokens_refused" in gateway.agent.log_text())
    assert gateway.post(EVENT, token).status == 201
    gateway.tokens.write_text(text)
    wait_until(lambda: "gateway.tokens_renewed" in gateway.agent.log_text())
    assert gateway.post(EVENT, token).status == 201


# What is said of a second is seen of half an hour, and the clock shows an hour more once the
# test says so: however long a busy machine takes over two requests.
SETTLED_LATER = """
import os
import outboxd.clock as clock, outboxd.gateway.listener as listener
listener.SETTLED_MS = 1_800_000
shown_ms = clock.Clock.wall_ms
clock.Clock.wall_ms = lambda self: shown_ms(self) + 3_600_000 * os.path.exists("{an_hour_later}")
"""


def test_a_tokens_file_that_is_just_being_written_where_it_lies_refuses_nobody(
    make_gateway, tmp_path
):
    """An editor, or a shell's redirection: the file is empty, and then it is not."""
    an_hour_later = tmp_path / "an-hour-later"
    gateway = make_gateway(patch=SETTLED_LATER.format(an_hour_later=an_hour_later))
    token = gateway.secrets["web"]
    for _ in range(10):
        gateway.tokens.write_text("# hosts\n")
        assert gateway.post(EVENT, "an unknown one, which makes it look").status == 401
        assert gateway.post(EVENT, token).status == 201
    an_hour_later.touch()
    wait_until(lambda: gateway.post(EVENT, token).status == 401)  # it was meant


@pytest.mark.long
def test_no_file_that_cannot_be_read_stops_a_gateway(gateway, token, tmp_path):
    """A FIFO would be waited for by whoever opens it."""
    before = certificate_of(gateway)

    def told(what, count):
        wait_until(lambda: gateway.agent.log_text().count(f"gateway.{what}_refused") == count)
        assert gateway.post(EVENT, token).status == 201
        assert certificate_of(gateway) == before

    for count, harm in enumerate((os.mkfifo, lambda path: os.symlink("/dev/zero", path))):
        for path in (gateway.tokens, tmp_path / "key.pem"):
            harm(f"{path}-{count}")
            os.replace(f"{path}-{count}", path)  # in one step: none is seen that is not there
        told("tokens", count + 1)
        told("certificate", count + 1)


def certificate_of(gateway):
    return ssl.get_server_certificate(("127.0.0.1", gateway.port))


def test_a_certificate_is_read_anew_and_a_half_written_one_changes_nothing(
    gateway, token, authority, tmp_path
):
    before = certificate_of(gateway)
    (tmp_path / "cert.pem").write_text("-----BEGIN CERT")
    wait_until(lambda: "gateway.certificate_refused" in gateway.agent.log_text())
    assert certificate_of(gateway) == before
    renewed = authority.issue_cert("localhost", "127.0.0.1")
    renewed.private_key_pem.write_to_path(tmp_path / "key.pem")
    renewed.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    wait_until(lambda: certificate_of(gateway) != before)
    assert gateway.post(EVENT, token).status == 201


def test_a_clients_certificate_stands_in_for_a_token(make_gateway, authority, tmp_path):
    gateway = make_gateway(intake={"client_ca": str(tmp_path / "ca.pem")})

    def showing(*names, **more):
        context = ssl.create_default_context()
        authority.configure_trust(context)
        authority.issue_cert(*names, **more).configure_cert(context)
        return gateway.post(EVENT, None, context=context).status

    names = ("host-7.example", "ops@host.example", "10.0.0.7")
    assert [showing(name) for name in names] == [201] * 3
    assert {entry["producer"] for entry in gateway.entries()} == {f"token:{name}" for name in names}
    assert showing(common_name="host-7.example") == 401
    assert "a certificate without an alternative name" in gateway.agent.log_text()
    assert gateway.post(EVENT, None).status == 401
    assert gateway.request("GET", "/healthz").status == 200


def test_tokens_are_never_written_to_the_log(gateway, token):
    gateway.post(EVENT, token)
    gateway.post(EVENT, token + "x")
    gateway.post({"summary": token}, token)
    log = gateway.agent.log_text()
    assert token not in log
    assert not re.search(r"outboxd_[A-Za-z0-9_-]{20,}", log)


def test_events_of_a_batch_are_each_held_to_the_token(make_gateway):
    gateway = make_gateway({"web": {"clusters": ("prod",)}})
    lines = b"\n".join(
        b'{"eventType":"t","summary":"s","scope":{"clusters":["%s"]}}' % name
        for name in (b"prod", b"dev", b"prod")
    )
    answer = gateway.request("POST", "/v1/events/batch", lines, gateway.secrets["web"])
    assert answer.status == 200
    first, second, third = answer.json["results"]
    assert first["status"] == third["status"] == "accepted"
    assert second["field"] == "$.scope.clusters[0]"


def test_a_dedup_key_counts_within_its_tokens_name(make_gateway):
    gateway = make_gateway({"alice": {}, "bob": {}})
    event = {**EVENT, "dedupKey": "backup"}
    first = gateway.post(event, gateway.secrets["alice"])
    again = gateway.post(event, gateway.secrets["alice"])
    other = gateway.post(event, gateway.secrets["bob"])
    assert (first.status, again.status, other.status) == (201, 200, 201)
    assert again.json["id"] == first.json["id"] != other.json["id"]


@pytest.mark.parametrize("depth", [1_000, 1_100, 40_000])
def test_what_is_nested_without_end_is_refused_over_tcp_as_on_the_socket(gateway, token, depth):
    """Also what is a little larger than an event may be, since a hop may come with it."""
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    body = b'{"eventType":"a","summary":"b","details":' + deep
    body = body.ljust(265_000) if depth == 40_000 else body
    answer = gateway.request("POST", "/mgmt/v1/events", body + b"}", token)
    assert (answer.status, answer.json["field"]) == (400, None) or "nest" in answer.json["error"]
    assert gateway.agent.post(body[:262_000] + b"}")[0] == 400
    assert "request.failed" not in gateway.agent.log_text()
