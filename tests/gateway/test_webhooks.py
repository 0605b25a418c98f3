"""Webhooks of other senders as events, by mappings of JMESPath."""

from __future__ import annotations

import json

import pytest

from outboxd.errors import ConfigError, EventError
from outboxd.event.komodor import parse
from outboxd.gateway.shipped import compile_webhooks
from outboxd.gateway.webhooks import compile_webhook, read_events

SHIPPED = compile_webhooks({})
LEAST = {"event_type": "'t'", "summary": "'s'"}


def events(name, payload, **options):
    found = read_events(SHIPPED[name], payload, **options)
    for body in found:
        parse(body)
    return [json.loads(body) for body in found]


def mapped(payload, **mapping):
    found = read_events(compile_webhook("own", {**LEAST, **mapping}), payload)
    return [json.loads(body) for body in found]


# ----- the senders' own payloads, after their documentation

FLAG = {
    "_id": "64a5f1",
    "date": 1795255200123,
    "kind": "flag",
    "name": "new-checkout",
    "title": "Bob Loblaw turned on the flag new-checkout in Production",
    "titleVerb": "turned on the flag",
    "member": {"email": "bob@example.com"},
    "accesses": [{"action": "updateOn"}],
}


@pytest.mark.parametrize(
    "payload", [FLAG, {"body": json.dumps(FLAG)}, {"body": FLAG}], ids=["flat", "text", "nested"]
)
def test_launchdarkly_flat_and_in_a_body(payload):
    assert events("launchdarkly", payload) == [
        {
            "eventType": "launchdarkly flag",
            "summary": "Bob Loblaw turned on the flag new-checkout in Production",
            "severity": "information",
            "details": FLAG,
            "dedupKey": "launchdarkly:64a5f1",
            "occurredAt": "2026-11-21T10:00:00.123Z",
        }
    ]


def test_launchdarkly_as_komodors_bridge_reads_it():
    (event,) = events("launchdarkly", {"Event": "flag-alert", "AlertName": "too many errors"})
    assert (event["eventType"], event["summary"]) == ("flag-alert", "too many errors")
    (event,) = events("launchdarkly", {"body": "no JSON"})
    assert (event["eventType"], event["summary"]) == ("launchdarkly-alert", "LaunchDarkly Alert")


DEPLOYMENT = {
    "action": "created",
    "deployment": {
        "id": 145988746,
        "ref": "main",
        "sha": "f95f852bd8fca8fcc58a9a2d6c842781e32a215e",
        "environment": "production",
        "task": "deploy",
        "creator": {"login": "octocat"},
        "created_at": "2026-11-21T10:00:00Z",
    },
    "repository": {"name": "shop", "full_name": "acme/shop"},
}


def test_github_deployment_and_its_status_are_two_events():
    (created,) = events("github", DEPLOYMENT)
    assert created["summary"] == "acme/shop main to production created"
    assert created["dedupKey"] == "github:145988746:created"
    status = {"id": 9, "state": "failure", "created_at": "2026-11-21T10:03:00Z"}
    (failed,) = events("github", {**DEPLOYMENT, "deployment_status": status})
    assert failed["eventType"] == "github deployment failure"
    assert failed["severity"] == "error"
    assert failed["dedupKey"] == "github:145988746:9"
    assert failed["occurredAt"] == "2026-11-21T10:03:00.000Z"
    assert failed["scope"] == {"servicesNames": ["shop"]}


@pytest.mark.parametrize("payload", [{"zen": "Keep it logically awesome.", "hook_id": 1}, {}])
def test_a_ping_of_github_makes_no_event(payload):
    assert events("github", payload) == []


APPLICATION = {
    "metadata": {"name": "guestbook", "uid": "8c3f"},
    "spec": {
        "project": "default",
        "source": {"repoURL": "https://github.com/acme/apps", "path": "guestbook"},
        "destination": {"server": "https://kubernetes.default.svc", "namespace": "web"},
    },
    "status": {
        "sync": {"status": "Synced", "revision": "a1b2c3"},
        "health": {"status": "Degraded"},
        "operationState": {
            "phase": "Failed",
            "message": "one or more objects failed to apply",
            "startedAt": "2026-11-21T10:00:00Z",
            "finishedAt": "2026-11-21T10:00:07Z",
        },
    },
}


@pytest.mark.parametrize("payload", [APPLICATION, {"app": APPLICATION}])
def test_argocd_says_how_the_sync_of_an_application_ended(payload):
    (event,) = events("argocd", payload)
    assert event["eventType"] == "argocd failed"
    assert event["severity"] == "error"
    assert event["scope"] == {"servicesNames": ["guestbook"], "namespaces": ["web"]}
    assert event["summary"].startswith("guestbook failed (Degraded) one or more")
    assert event["occurredAt"] == "2026-11-21T10:00:07.000Z"


def test_argocd_degraded_is_a_warning_and_all_well_is_information():
    well = {
        **APPLICATION,
        "status": {"sync": {"status": "Synced"}, "health": {"status": "Healthy"}},
    }
    assert events("argocd", well)[0]["severity"] == "information"
    well["status"]["health"] = {"status": "Degraded"}
    assert events("argocd", well)[0]["severity"] == "warning"


@pytest.mark.parametrize("since_version_3", [True, False])
def test_argocd_each_loss_of_health_between_two_syncs_is_one_event_of_its_time(since_version_3):
    operation = {**APPLICATION["status"]["operationState"], "phase": "Succeeded"}

    def degraded(at, looked_at):
        health = {"status": "Degraded"} | ({"lastTransitionTime": at} if since_version_3 else {})
        status = {"health": health, "reconciledAt": looked_at, "operationState": operation}
        (event,) = events("argocd", {**APPLICATION, "status": status})
        return event["dedupKey"], event["occurredAt"]

    first = degraded("2026-11-22T10:00:00Z", "2026-11-22T10:00:01Z")
    again = degraded("2026-11-22T10:00:00Z", "2026-11-22T10:00:01Z")
    later = degraded("2026-11-24T10:00:00Z", "2026-11-24T10:00:01Z")
    assert first == again
    assert first[0] != later[0]
    expected = "2026-11-24T10:00:00.000Z" if since_version_3 else "2026-11-24T10:00:01.000Z"
    assert later[1] == expected


def test_grafana_has_an_event_for_each_alert():
    firing = {
        "status": "firing",
        "labels": {"alertname": "High latency", "namespace": "web", "severity": "critical"},
        "annotations": {"summary": "p99 above 2 s"},
        "startsAt": "2026-11-21T10:00:00Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "values": {"B": 2.25},
        "fingerprint": "c6eadffa33fcdf37",
    }
    resolved = {**firing, "status": "resolved", "endsAt": "2026-11-21T10:09:00Z"}
    first, second = events("grafana", {"receiver": "outboxd", "alerts": [firing, resolved]})
    assert (first["eventType"], first["summary"]) == ("High latency", "p99 above 2 s")
    assert (first["severity"], second["severity"]) == ("error", "information")
    assert first["details"]["values"] == {"B": 2.25}
    assert "endsAt" not in first["details"]
    assert first["dedupKey"] != second["dedupKey"]
    assert second["occurredAt"] == "2026-11-21T10:09:00.000Z"


# ----- a mapping of one's own


def test_a_mapping_of_the_configuration_takes_the_place_of_a_shipped_one():
    webhooks = compile_webhooks({"github": LEAST, "mine": LEAST})
    assert {"launchdarkly", "argocd", "grafana", "github", "mine"} == set(webhooks)
    assert len(read_events(webhooks["github"], {})) == 1


def test_the_payload_can_be_reached_from_within_an_item():
    payload = {"env": "prod", "items": [{"name": "a"}, {"name": "b"}]}
    found = mapped(payload, each="items", summary="name", clusters="payload().env")
    assert [(event["summary"], event["scope"]) for event in found] == [
        ("a", {"clusters": ["prod"]}),
        ("b", {"clusters": ["prod"]}),
    ]


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-11-21T11:00:00+01:00", "2026-11-21T10:00:00.000Z"),
        (1795255200, "2026-11-21T10:00:00.000Z"),
        (1795255200123, "2026-11-21T10:00:00.123Z"),
        (1795255200.5, "2026-11-21T10:00:00.500Z"),
        *((odd, None) for odd in ("yesterday", "", -1, 0, True, [], {}, 1e300, None)),
    ],
)
def test_a_moment_is_a_text_or_a_number_and_anything_else_is_not_given(value, moment):
    (event,) = mapped({"at": value}, occurred_at="at")
    assert event.get("occurredAt") == moment


def test_names_are_one_or_many_and_empty_ones_are_left_out():
    (event,) = mapped({"a": ["x", "", None, "x", 5]}, services="a", clusters="missing")
    assert event["scope"] == {"servicesNames": ["x", "5"]}


NOTHING = [None, False, "", [], {}]


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_what_says_nothing_is_neither_a_key_nor_a_name(nothing):
    mapping = {"dedup_key": "id && join(':', ['ci', id])", "clusters": "env && env.name"}
    (event,) = mapped({"id": nothing, "env": nothing}, **mapping)
    assert event == {"eventType": "t", "summary": "s", "severity": "information"}


def test_long_keys_that_begin_alike_are_not_one():
    long = "https://ci.example/" + "x" * 5000
    first, again, other = (mapped({"k": key}, dedup_key="k") for key in (long, long, long + "2"))
    assert first == again
    assert first[0]["dedupKey"] != other[0]["dedupKey"]


def test_values_keep_their_worth_and_what_no_event_may_hold_is_replaced():
    payload = {"big": 2**80, "odd": "a\0b\ud800", "list": [{"k\0": None}]}
    (event,) = mapped(payload, details="@")
    assert event["details"] == {"big": 2**80, "odd": "ab?", "list": [{"k": None}]}


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ({"summary": "s"}, "event_type is missing"),
        ({**LEAST, "summery": "s"}, "summery: unknown"),
        ({**LEAST, "details": "a["}, "details = "),
        ({**LEAST, "details": "{a: [?lowre(x)]}"}, "there is no function lowre"),
        ({**LEAST, "details": 5}, "details = 5"),
    ],
)
def test_a_wrong_mapping_stops_the_start_and_names_its_part(mapping, told):
    with pytest.raises(ConfigError) as raised:
        compile_webhook("own", mapping)
    assert "[webhooks.own]" in raised.value.message
    assert told in raised.value.message


@pytest.mark.parametrize("part", ["event_type", "summary"])
def test_an_event_without_type_or_summary_is_refused_with_what_to_try(part):
    with pytest.raises(EventError) as raised:
        mapped({}, **{part: "missing"})
    assert f"[webhooks.own] {part} yields nothing" in raised.value.message
    assert "outboxd webhook try own FILE" in (raised.value.hint or "")


@pytest.mark.parametrize("name", ["launchdarkly", "github", "argocd", "grafana"])
@pytest.mark.parametrize("payload", [None, 5, "x", True])
def test_a_payload_that_is_neither_object_nor_list_is_refused(name, payload):
    with pytest.raises(EventError, match="neither an object nor a list"):
        events(name, payload)


def test_what_is_too_long_is_cut():
    (event,) = mapped({"x": "y" * 5000}, event_type="x", summary="x", clusters="x", dedup_key="x")
    assert len(event["eventType"]) == 60
    assert len(event["summary"]) == 1000
    assert len(event["scope"]["clusters"][0]) == len(event["dedupKey"]) == 256
