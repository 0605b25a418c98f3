"""Bodies that Alertmanager 0.32 and newer make of a template like Komodor's, byte by byte.

Alertmanager (`notify/webhook`, `template.DeepCopyWithTemplate` in its source) renders each
text of the template, reads it as YAML, and encodes the whole by Go's encoding/json, which
sorts members, escapes <, > and &, and ends with a line feed. `bodies_of_alertmanager.json`
holds what 0.33.1 posted for alerts of all kinds.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outboxd.event.komodor import parse
from outboxd.gateway.templated import read_templated

HEADERS = {
    "User-Agent": "Alertmanager/0.32.1",
    "Content-Type": "application/json",
    "Accept-Encoding": "gzip",
}
FULL = (
    b'{"details":{"alertname":"HighLatency","cluster":"prod-eks-01",'
    b'"endsAt":"0001-01-01 00:00:00 +0000 UTC","fingerprint":"c5f1e1d0a1b2c3d4",'
    b'"generatorURL":"http://prometheus:9090/graph?g0.expr=up+%3D%3D+0\\u0026g0.tab=1",'
    b'"instance":"10.0.0.7:9100","job":"node","namespace":"payments","pod":"checkout-1",'
    b'"service":"checkout-api","severity":"critical",'
    b'"startsAt":"2026-11-21 10:00:00.123 +0000 UTC","status":"firing"},'
    b'"eventType":"HighLatency","scope":{"clusters":["prod-eks-01"],'
    b'"namespaces":["payments"],"servicesNames":["checkout-api"]},"severity":"error",'
    b'"summary":"checkout is slow \\u003e 2s"}\n'
)
# No namespace, no service, a cluster that is a number to YAML, and no annotation: the
# template's own words, "firing: NodeDown", are a mapping to YAML.
BARE = (
    b'{"details":{"alertname":"NodeDown","cluster":42,"endsAt":"0001-01-01 00:00:00 +0000 UTC",'
    b'"fingerprint":1234567890123456,"generatorURL":"http://prometheus:9090/graph",'
    b'"instance":"10.0.0.7:9100","job":true,"namespace":null,"pod":null,"service":null,'
    b'"severity":null,"startsAt":"2026-11-21 10:00:00 +0000 UTC","status":"firing"},'
    b'"eventType":"NodeDown","scope":{"clusters":[42],"namespaces":[null],'
    b'"servicesNames":[null]},"severity":"information","summary":{"firing":"NodeDown"}}\n'
)


def resolved(body: bytes) -> bytes:
    body = body.replace(b'"status":"firing"', b'"status":"resolved"')
    body = body.replace(b'"endsAt":"0001-01-01 00', b'"endsAt":"2026-11-21 10:05')
    return body.replace(b'"severity":"error"', b'"severity":"information"')


with (Path(__file__).parent / "bodies_of_alertmanager.json").open(encoding="utf-8") as file:
    RECORDED = json.load(file)


def plain(text: str) -> str:
    """What of a text survives YAML for certain: letters and digits."""
    return "".join(filter(str.isalnum, text))


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda r: str(r["annotations"] or r["labels"]))
def test_whatever_alertmanager_posts_becomes_an_event_that_is_known_again(recorded):
    labels, annotations = recorded["labels"], recorded["annotations"]
    identities = set()
    for status in ("firing", "resolved"):
        sent = json.loads(recorded[status])
        found = read_templated(recorded[status].encode(), 60)
        event = parse(found.body, event_type_max=60)
        assert found.began_at == 1795255200123
        identities.add(found.identity)
        told = json.loads(found.body)
        assert told["details"] == sent["details"]
        if sent["summary"] == annotations.get("summary"):
            assert event.summary == sent["summary"]
        elif isinstance(sent["summary"], (dict, str)):
            wanted = annotations.get("summary") or f"{status}: {labels['alertname']}"
            assert plain(event.summary) == plain(wanted)
        assert event.summary
        assert event.event_type
        assert all(type(name) is str for names in told.get("scope", {}).values() for name in names)
    assert len(identities) == 2
    assert None not in identities


def test_an_alert_of_which_yaml_left_nothing_is_called_by_its_name():
    (recorded,) = (r for r in RECORDED if r["annotations"].get("summary") == "null")
    assert json.loads(recorded["firing"])["summary"] is None
    body = json.loads(read_templated(recorded["firing"].encode(), 60).body)
    assert body["summary"] == f"firing: {recorded['labels']['alertname']}"
    (unnamed,) = (r for r in RECORDED if r["labels"]["alertname"] == "null")
    body = json.loads(read_templated(unnamed["resolved"].encode(), 60).body)
    assert body["eventType"] == "AlertmanagerAlert"
    assert body["scope"] == {"clusters": [], "namespaces": [], "servicesNames": []}


@pytest.fixture
def post(gateway, token):
    def send(body: bytes):
        return gateway.request("POST", "/mgmt/v1/events", body, token, headers=HEADERS)

    return send


def test_the_whole_of_an_alert_arrives_as_the_template_says(post, komodor):
    answer = post(FULL)
    assert (answer.status, answer.json["status"]) == (201, "accepted")
    (arrival,) = komodor.wait_for(1)
    assert arrival.event == json.loads(FULL)


def test_what_yaml_made_of_a_text_is_a_text_again(post, komodor):
    answer = post(BARE)
    assert (answer.status, answer.json["status"]) == (201, "accepted"), answer.raw
    (arrival,) = komodor.wait_for(1)
    assert arrival.event["scope"] == {"clusters": ["42"]}
    assert arrival.event["summary"] == "firing: NodeDown"
    assert arrival.event["details"] == json.loads(BARE)["details"]


@pytest.mark.parametrize("body", [FULL, BARE], ids=["full", "bare"])
def test_an_alert_is_one_event_and_one_when_it_is_resolved_whatever_is_resent(post, komodor, body):
    later = body.replace(b"2026-11-21 10:00:00", b"2026-11-21 11:00:00")
    sent = (body, body, resolved(body), body, resolved(body), later, later)
    told = [post(one).status for one in sent]
    assert told == [201, 200, 201, 200, 200, 201, 200]
    assert len(komodor.wait_for(3)) == 3


def test_a_rate_that_is_used_up_is_told_as_alertmanager_understands_it(make_gateway):
    gateway = make_gateway({"am": {"rate": 0.01}})
    secret = gateway.secrets["am"]
    statuses = [
        gateway.request("POST", "/mgmt/v1/events", FULL, secret, headers=HEADERS).status
        for _ in range(2)
    ]
    assert statuses == [201, 503], "it tries again on nothing else"


def test_a_token_and_the_rules_for_events_hold_for_templates_too(make_gateway):
    gateway = make_gateway({"am": {"clusters": ("other",)}})
    secret = gateway.secrets["am"]

    def status(body: bytes) -> int:
        return gateway.request("POST", "/mgmt/v1/events", body, secret, headers=HEADERS).status

    assert status(FULL) == 422
    assert status(b"{") == 400
    assert status(b'{"eventType":"t"}') == 400
    assert status(b"x" * 300_000) == 413
    assert gateway.entries() == []


def test_for_all_others_a_number_is_no_name(gateway, token):
    assert gateway.request("POST", "/mgmt/v1/events", BARE, token).status == 400


def event(**members):
    return json.dumps({"eventType": "t", "summary": "s", **members}).encode()


@pytest.mark.parametrize(
    ("sent", "summary"),
    [
        ({"summary": {"disk": "95 %"}}, "disk: 95 %"),
        ({"summary": {"a": 1, "b": None}}, "a: 1, b:"),
        ({"summary": ["a", True]}, "a, true"),
        ({"summary": 95}, "95"),
        ({"summary": False}, "false"),
    ],
)
def test_a_summary_is_told_as_far_as_it_can_be_seen(sent, summary):
    assert json.loads(read_templated(event(**sent), 60).body)["summary"] == summary


def test_a_name_that_is_too_long_is_cut_and_details_keep_their_text():
    body = b'{"eventType":"%s","summary":"s","details":{"n":1.50}}' % (b"e" * 80)
    read = read_templated(body, 60)
    assert len(json.loads(read.body)["eventType"]) == 60
    assert b'"n":1.50' in read.body


@pytest.mark.parametrize(
    ("starts_at", "is_known"),
    [
        ("2026-11-21 10:00:00 +0000 UTC", True),
        ("2026-11-21 11:00:00.5 +0100 CET", True),
        ("2026-11-21T10:00:00Z", True),
        ("2026-11-21 10:00:00 +0000 UTC m=+0.1", True),
        ("yesterday", False),
        (None, False),
    ],
)
def test_an_alert_without_a_beginning_is_not_known_again(starts_at, is_known):
    details = {"fingerprint": "f", "status": "firing", "startsAt": starts_at}
    assert (read_templated(event(details=details), 60).identity is not None) == is_known


def test_a_dedup_key_of_the_template_counts():
    details = {"fingerprint": "f", "status": "firing", "startsAt": "2026-11-21T10:00:00Z"}
    assert read_templated(event(details=details, dedupKey="mine"), 60).identity is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"eventType": null}'])
def test_what_is_no_event_stays_as_it_is(data):
    assert read_templated(data, 60).body == data
