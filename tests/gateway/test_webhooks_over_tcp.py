"""Webhooks at a real gateway: all or nothing, once whatever is resent, never a 404."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
from unittest.mock import MagicMock

import pytest
from support.outside import Agent

from outboxd.clock import Clock
from outboxd.event.komodor import Defaults
from outboxd.gateway.routes import WebhookRoutes
from outboxd.intake.intake import Intake
from outboxd.intake.producer import user

ALERT = {
    "status": "firing",
    "labels": {"alertname": "Down", "namespace": "web", "severity": "critical"},
    "annotations": {"summary": "web is down"},
    "startsAt": "2026-11-21T10:00:00Z",
    "endsAt": "0001-01-01T00:00:00Z",
    "fingerprint": "c5f1e1d0a1b2c3d4",
}
OTHER = {**ALERT, "fingerprint": "0000000000000001", "labels": {"alertname": "Other"}}


def group(*alerts, **more):
    return {"version": "4", "status": "firing", "alerts": list(alerts), **more}


def statuses(answer):
    assert answer.status == 200, answer.raw
    return [result["status"] for result in answer.json["results"]]


def test_an_alert_is_one_event_whatever_is_resent(gateway, token, komodor):
    def post(*alerts):
        return statuses(gateway.request("POST", "/v1/alertmanager", group(*alerts), token))

    assert post(ALERT) == ["accepted"]
    assert post(ALERT) == ["duplicate"]  # repeat_interval, or the twin of a pair
    assert post(ALERT, OTHER) == ["duplicate", "accepted"]  # the group has grown
    earlier = {**ALERT, "startsAt": "2026-11-21T09:59:00Z"}  # another Prometheus saw it before
    assert post(earlier) == ["duplicate"]
    resolved = {**ALERT, "status": "resolved", "endsAt": "2026-11-21T10:05:00Z"}
    assert post(resolved, OTHER) == ["accepted", "duplicate"]
    assert post(resolved) == ["duplicate"]
    again = {**ALERT, "startsAt": "2026-11-21T11:00:00Z"}
    assert post(again) == ["accepted"]
    assert post(again) == ["duplicate"]
    events = [arrival.event for arrival in komodor.wait_for(4)]
    # Several fly at once, and may arrive in any order.
    assert sorted((e["eventType"], e["severity"]) for e in events) == [
        ("Down", "error"),
        ("Down", "error"),
        ("Down", "information"),
        ("Other", "information"),
    ]


def test_the_clusters_of_query_token_and_label(make_gateway, komodor):
    gateway = make_gateway({"am": {"clusters": ("prod", "edge")}, "free": {}})
    named = {**ALERT, "labels": {"alertname": "Named", "cluster": "edge"}}
    named["fingerprint"] = "0000000000000002"
    both = group(ALERT, named)
    answer = gateway.request("POST", "/v1/alertmanager", both, gateway.secrets["am"])
    assert statuses(answer) == ["accepted", "accepted"]
    path = "/v1/alertmanager?cluster=prod"
    answer = gateway.request("POST", path, group(OTHER), gateway.secrets["free"])
    assert statuses(answer) == ["accepted"]
    scopes = [a.event["scope"].get("clusters") for a in komodor.wait_for(3)]
    assert sorted(scopes) == [["edge"], ["prod"], ["prod", "edge"]]


def test_an_alert_that_its_token_does_not_allow_keeps_none_of_its_group_out(make_gateway, komodor):
    gateway = make_gateway({"am": {"clusters": ("prod",)}})
    foreign = {**OTHER, "labels": {"alertname": "X", "cluster": "dev"}}
    for body in (group(foreign, ALERT), group(ALERT, foreign), group(foreign)):
        answer = gateway.request("POST", "/v1/alertmanager", body, gateway.secrets["am"])
        assert answer.status == 422
        assert "not allowed to name 'dev'" in answer.json["error"]
    assert len(gateway.entries()) == 1
    assert [a.event["eventType"] for a in komodor.wait_for(1)] == ["Down"]
    told = 'outboxd_gateway_events_refused_total{reason="not_allowed",token="am"} 3.0'
    assert told in gateway.agent.metrics()


def test_truncated_alerts_are_told_and_counted(gateway, token):
    body = group(ALERT, truncatedAlerts=7)
    answer = gateway.request("POST", "/v1/alertmanager", body, token)
    assert answer.json["truncated"] == 7
    assert "outboxd_gateway_alerts_truncated_total 7.0" in gateway.agent.metrics()
    gateway.agent.await_log("gateway.alerts_truncated")


def test_alertmanager_on_the_socket_too(gateway):
    status, answer = gateway.agent.request(
        "POST", "/v1/alertmanager?cluster=c", json.dumps(group(ALERT)).encode()
    )
    assert status == 200
    assert answer["results"][0]["status"] == "accepted"


def test_a_webhook_by_its_name_and_what_no_name_gets(gateway, token, komodor):
    payload = {"_id": "1", "kind": "flag", "name": "f", "title": "f is on"}
    path = "/v1/webhooks/launchdarkly"
    assert statuses(gateway.request("POST", path, payload, token)) == ["accepted"]
    assert statuses(gateway.request("POST", path, payload, token)) == ["duplicate"]
    assert komodor.wait_for(1)[0].event["summary"] == "f is on"
    assert statuses(gateway.request("POST", "/v1/webhooks/github", {"zen": "x"}, token)) == []
    unknown = gateway.request("POST", "/v1/webhooks/nobody", payload, token)
    assert unknown.status == 422
    assert "launchdarkly" in unknown.json["hint"]
    for body in (b"", b"{", b"[1", b'{"a": NaN}'):
        assert gateway.request("POST", path, body, token).status == 400


def test_a_payload_without_events_is_told_in_the_log_and_a_form_what_to_set(gateway, token):
    """Grafana's at the mapping of Argo CD, say: its sender sees a 200, and no event comes."""
    answer = gateway.request("POST", "/v1/webhooks/argocd", group(ALERT), token)
    assert (answer.status, answer.json["results"]) == (200, [])
    gateway.agent.await_log("webhook.without_events")
    form = gateway.request("POST", "/v1/webhooks/github", b"payload=%7B%22zen%22%3A1%7D", token)
    assert (form.status, form.json["hint"][-16:]) == (400, "application/json")


def test_a_full_outbox_is_told_so_that_the_sender_comes_again(make_gateway, komodor):
    komodor.respond = lambda arrival: b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n"
    gateway = make_gateway(outbox={"events_max": 1})
    answer = gateway.request(
        "POST", "/v1/alertmanager", group(ALERT, OTHER), gateway.secrets["web"]
    )
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert gateway.entries() == []


def test_a_signature_stands_in_for_a_token_and_a_wrong_one_for_nothing(make_gateway, tmp_path):
    secret = b"a secret of sixteen bytes and more"
    (tmp_path / "secret").write_bytes(secret + b"\n")
    gateway = make_gateway(
        **{
            "webhooks.github": {
                "signature_header": "X-Hub-Signature-256",
                "signature_secret_file": str(tmp_path / "secret"),
            }
        }
    )
    body = json.dumps({"deployment": {"id": 1}, "repository": {"full_name": "a/b"}}).encode()
    good = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
    path = "/v1/webhooks/github"

    def post(signature, body=body, path=path, headers=None):
        signed = {"X-Hub-Signature-256": signature} if signature else {}
        return gateway.request("POST", path, body, headers=signed | (headers or {}))

    known = post(good)
    assert known.status == 200
    assert known.headers["Outboxd-Gateway"].startswith("1; dedup=")
    constant = gateway.request("GET", "/v1/status").raw
    for answer in (
        post(None),
        post(None, b"x" * (9 << 20)),
        gateway.request("GET", path),
        gateway.request("GET", path, headers={"X-Hub-Signature-256": good}),
        gateway.request("POST", path, body, headers={"Content-Encoding": "gzip"}),
        post("sha256=" + "0" * 64),
        post(good, body + b" "),
        post(good, b"x" * (9 << 20)),
        post(good, headers={"Content-Encoding": "gzip"}),
        post(good, b"{"),
        post(good, path="/v1/webhooks/grafana"),
        post(good, path="/v1/alertmanager"),
    ):
        assert (answer.status, answer.raw) == (401, constant)
    (entry,) = gateway.entries()
    assert entry["producer"] == "token:webhook-github"


def test_tokens_and_secrets_are_taken_over_each_by_itself(make_gateway, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"the first secret, long enough")
    signed = {"signature_header": "X-Sig", "signature_secret_file": str(secret)}
    gateway = make_gateway(**{"webhooks.github": signed})

    def post(key):
        signature = hmac.new(key, b"{}", hashlib.sha256).hexdigest()
        headers = {"X-Sig": signature}
        return gateway.request("POST", "/v1/webhooks/github", b"{}", headers=headers).status

    assert post(b"the first secret, long enough") == 200
    secret.unlink()
    gateway.agent.await_log("gateway.webhooks_refused")
    assert gateway.post({"eventType": "t", "summary": "s"}, gateway.token("fresh")).status == 201
    assert post(b"the first secret, long enough") == 200, "it stays in force"
    (trouble,) = gateway.agent.status()["gateway"]["troubles"]
    assert str(secret) in trouble["message"]
    secret.write_bytes(b"another secret, long enough")
    gateway.agent.await_log("gateway.webhooks_renewed")
    assert post(b"another secret, long enough") == 200
    assert post(b"the first secret, long enough") == 401
    assert gateway.agent.status()["gateway"]["troubles"] == []


def test_more_alerts_than_a_tokens_rate_is_told_as_alertmanager_understands_it(make_gateway):
    gateway = make_gateway({"am": {"rate": 0.001}})
    secret = gateway.secrets["am"]
    assert statuses(gateway.request("POST", "/v1/alertmanager", group(ALERT), secret))
    answer = gateway.request("POST", "/v1/alertmanager", group(OTHER), secret)
    assert answer.status == 503, "it tries again on nothing else"
    assert int(answer.headers["Retry-After"]) >= 60


def test_an_alert_larger_than_an_event_may_be_is_cut_and_the_group_is_taken(make_gateway):
    gateway = make_gateway(intake={"event_bytes_max": "4KiB"})
    long = {**ALERT, "annotations": {f"a{n}": "\n" * 4000 for n in range(20)}}
    answer = gateway.request("POST", "/v1/alertmanager", group(long, OTHER), gateway.secrets["web"])
    assert statuses(answer) == ["accepted", "accepted"]


def test_a_payload_nested_deeply_is_refused_and_no_failure_of_the_gateway(gateway, token):
    deep = b'{"name":"x","a":' + b'{"a":' * 400 + b"1" + b"}" * 401
    for depth in (400, 900):
        deep = b'{"name":"x","a":' + b'{"a":' * depth + b"1" + b"}" * (depth + 1)
        answer = gateway.request("POST", "/v1/webhooks/launchdarkly", deep, token)
        assert answer.status in (400, 422)


@pytest.mark.parametrize(("size_bytes", "beside"), [(4096, False), (4097, True)])
def test_what_may_take_long_is_read_beside_the_loop(size_bytes, beside):
    """On it ten thousand alerts would take seconds, in which nobody is served."""
    intake = Intake(
        MagicMock(),
        MagicMock(),
        MagicMock(),
        Clock(),
        defaults=Defaults(),
        event_type_max=60,
        event_bytes_max=4096,
    )
    routes = WebhookRoutes(intake, MagicMock(), {})
    reading = routes._read(b" " * size_bytes, user(1000), threading.get_ident)
    assert (asyncio.run(reading) != threading.get_ident()) == beside


def test_a_wrong_mapping_stops_the_start(tmp_path):
    agent = Agent(
        tmp_path,
        "http://127.0.0.1:1/mgmt/v1/events",
        extra={"webhooks.mine": {"event_type": "a[", "summary": "b"}},
    )
    agent.start(ready=False)
    assert agent.wait() == 78
    assert "[webhooks.mine] event_type" in agent.log_text()
