"""Intake over the socket, and what of an event reaches Komodor."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection

import pytest
from support.outside import Agent
from support.waiting import PATIENCE_S

HEAD = b"POST /mgmt/v1/events HTTP/1.1\r\nHost: localhost\r\n"


def spoken(agent: Agent, data: bytes) -> bytes:
    """All that the agent answers to these bytes, after which the writing side is shut down."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(agent.socket))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while more := connection.recv(65536):
            answer += more
        return answer


def test_komodors_own_body_in_komodors_own_call_out(agent, komodor):
    agent.post(
        {
            "eventType": "deploy",
            "summary": "billing 4.2 is out",
            "severity": "Warning",
            "scope": {"clusters": ["a", "b"], "serviceNames": ["billing"], "namespaces": []},
            "details": {"commit": "3f2c1a", "nested": {"list": [1, None, True]}},
            "dedupKey": "deploy-4.2",
            "ttlSeconds": 3600,
        }
    )
    (arrival,) = komodor.wait_for(1)

    assert (arrival.method, arrival.path) == ("POST", "/mgmt/v1/events")
    assert arrival.headers["x-api-key"] == "test-key"
    assert arrival.headers["content-type"] == "application/json"
    assert arrival.event == {
        "eventType": "deploy",
        "summary": "billing 4.2 is out",
        "severity": "warning",
        "scope": {"clusters": ["a", "b"], "servicesNames": ["billing"]},
        "details": {"commit": "3f2c1a", "nested": {"list": [1, None, True]}},
    }


def test_a_scope_of_empty_lists_and_nulls_is_none_at_all(agent, komodor):
    scope = {"clusters": [], "namespaces": None, "servicesNames": []}
    status, receipt = agent.post({"eventType": "t", "summary": "s", "scope": scope})
    (arrival,) = komodor.wait_for(1)

    assert status == 201
    assert any("every service" in warning for warning in receipt["warnings"])
    assert arrival.event == {"eventType": "t", "summary": "s", "severity": "information"}


def test_numbers_keep_their_text_on_the_whole_way(agent, komodor):
    numbers = b'{"big":%s,"money":1.10,"e":1E+2,"zero":-0,"pi":3.14159265358979323846264}' % (
        b"9" * 6000
    )
    status, _ = agent.post(b'{"eventType":"t","summary":"s","details":%s}' % numbers)
    (arrival,) = komodor.wait_for(1)

    assert status == 201
    assert numbers in arrival.body


def test_sixty_characters_are_code_points_and_sixty_one_are_too_many(agent, komodor):
    for character in ("x", "é", "漢", "😀"):
        assert agent.post({"eventType": character * 60, "summary": "s"})[0] == 201
        status, refusal = agent.post({"eventType": character * 61, "summary": "s"})
        assert (status, refusal["field"]) == (400, "$.eventType")
    assert {a.event["eventType"] for a in komodor.wait_for(4)} == {
        "x" * 60,
        "é" * 60,
        "漢" * 60,
        "😀" * 60,
    }


def test_a_hundred_levels_arrive_and_one_more_is_refused(agent, komodor):
    def nested(levels: int) -> bytes:
        inside = levels - 1  # the event's own object is the first
        deep = b'{"a":' * inside + b"1" + b"}" * inside
        return b'{"eventType":"t","summary":"s","details":%s}' % deep

    assert agent.post(nested(101))[0] == 400
    assert agent.post(nested(100))[0] == 201
    assert b'{"a":' * 99 in komodor.wait_for(1)[0].body


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_a_producer_that_shuts_its_writing_side_down_gets_its_receipt(agent, close):
    # What `nc -N` and socat do; the end may arrive together with the request.
    for number in range(20):
        body = b'{"eventType":"t","summary":"%d"}' % number
        request = HEAD + close + b"Content-Length: %d\r\n\r\n" % len(body) + body
        assert spoken(agent, request).startswith(b"HTTP/1.1 201 ")


def test_any_content_type_a_chunked_body_and_the_absolute_form_are_taken(agent):
    body = b'{"eventType":"t","summary":"s"}'
    for kind in (b"application/json", b"text/plain", b"application/x-www-form-urlencoded", b"x"):
        head = HEAD + b"Content-Type: " + kind + b"\r\n"
        whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
        chunked += (
            b"5\r\n" + body[:5] + b"\r\n%x\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\n\r\n"
        )
        assert spoken(agent, whole).startswith(b"HTTP/1.1 201 ")
        assert spoken(agent, chunked).startswith(b"HTTP/1.1 201 ")
        absolute = whole.replace(b"POST /", b"POST http://localhost/", 1)
        assert spoken(agent, absolute).startswith(b"HTTP/1.1 201 ")


def test_every_refusal_of_whatever_status_has_error_field_and_hint(agent):
    refused = [
        ("POST", "/mgmt/v1/events", b"{}", 400),
        ("POST", "/mgmt/v1/events", b"x" * 300_000, 413),
        ("GET", "/mgmt/v1/events", None, 405),
        ("GET", "/nowhere", None, 404),
        ("GET", "/v1/events/none", None, 404),
        ("GET", "/v1/events?limit=0", None, 400),
        ("GET", "/v1/events?stat=dead", None, 400),
        ("POST", "/v1/hold", b'{"who": 1}', 400),
        ("POST", "/v1/events/none/retry", b"", 404),
    ]
    for method, path, body, wanted in refused:
        status, refusal = agent.request(method, path, body)
        assert status == wanted, path
        assert {"error", "field", "hint"} <= set(refusal), path
        assert isinstance(refusal["error"], str)


def test_a_full_outbox_says_when_to_come_again_and_a_batch_what_to_send_again(make_agent):
    agent = make_agent(outbox={"events_max": 3})
    agent.request("POST", "/v1/hold", b"{}")
    lines = [json.dumps({"eventType": "t", "summary": str(n)}).encode() for n in range(5)]
    lines.insert(1, b"no event")
    status, answer = agent.request("POST", "/v1/events/batch", b"\n".join(lines))
    results = answer["results"]
    assert status == 200
    assert [each.get("status", "refused") for each in results] == [
        "accepted", "refused", "accepted", "accepted", "refused", "refused",
    ]  # fmt: skip
    assert [each.get("retry") for each in results] == [None, None, None, None, True, True]

    connection = agent.connection()
    connection.request("POST", "/mgmt/v1/events", lines[0])
    response = connection.getresponse()
    refusal = json.loads(response.read())
    connection.close()
    assert response.status == 503
    assert 1 <= int(response.getheader("Retry-After", "0")) <= 300
    assert {"error", "field", "hint"} <= set(refusal)
    assert agent.status()["intake"]["accepting"] is False
    assert agent.request("GET", "/readyz")[0] == 200


def test_the_page_and_metrics_on_tcp_change_nothing(make_agent):
    agent = make_agent(http={"listen": "127.0.0.1:0"})
    line = next(each for each in agent.log_text().splitlines() if "agent.started" in each)
    host, port = json.loads(line)["http"].removeprefix("http://").split(":")
    for method, path, wanted in (
        ("GET", "/", 200),
        ("GET", "/metrics", 200),
        ("GET", "/v1/status", 200),
        ("POST", "/mgmt/v1/events", 404),
        ("POST", "/v1/hold", 403),
    ):
        connection = HTTPConnection(host, int(port), timeout=PATIENCE_S)
        connection.request(method, path, b"{}" if method == "POST" else None)
        status = connection.getresponse().status
        connection.close()
        assert status in (wanted, 405 if wanted == 404 else wanted), path
