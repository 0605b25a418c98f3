"""Alertmanager's webhook as events: Komodor's own mapping, made total."""

from __future__ import annotations

import json

import pytest

from outboxd.errors import EventError
from outboxd.event.komodor import DEDUP_KEY_MAX, parse
from outboxd.gateway.alertmanager import read_group

ALERT = {
    "status": "firing",
    "labels": {
        "alertname": "KubePodCrashLooping",
        "cluster": "prod",
        "namespace": "web",
        "app": "shop",
        "severity": "critical",
    },
    "annotations": {"summary": "shop restarts", "description": "every minute"},
    "startsAt": "2026-11-21T10:00:00.123456789Z",
    "endsAt": "0001-01-01T00:00:00Z",
    "generatorURL": "http://prometheus/graph?g0.expr=up",
    "fingerprint": "c5f1e1d0a1b2c3d4",
}


def group(*alerts, **more):
    return {
        "version": "4",
        "groupKey": '{}:{alertname="KubePodCrashLooping"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "outboxd",
        "externalURL": "http://alertmanager:9093",
        "alerts": list(alerts),
        **more,
    }


def only(alert, **options):
    (found,) = read_group(group(alert), **options).events
    return json.loads(found.body), found


def test_an_alert_is_mapped_as_komodors_bridge_does():
    body, found = only(ALERT)
    assert body == {
        "eventType": "KubePodCrashLooping",
        "summary": "shop restarts",
        "severity": "error",
        "scope": {"clusters": ["prod"], "namespaces": ["web"], "servicesNames": ["shop"]},
        "details": {
            "status": "firing",
            "fingerprint": "c5f1e1d0a1b2c3d4",
            "startsAt": "2026-11-21T10:00:00.123456789Z",
            "generatorURL": "http://prometheus/graph?g0.expr=up",
            "externalURL": "http://alertmanager:9093",
            "receiver": "outboxd",
            "label_alertname": "KubePodCrashLooping",
            "label_cluster": "prod",
            "label_namespace": "web",
            "label_app": "shop",
            "label_severity": "critical",
            "annotation_summary": "shop restarts",
            "annotation_description": "every minute",
        },
        "occurredAt": "2026-11-21T10:00:00.123Z",
    }
    assert found.identity == "alert:c5f1e1d0a1b2c3d4:firing"
    assert found.began_at == 1795255200123


def test_a_resolved_alert_is_information_and_happened_when_it_ended():
    resolved = {**ALERT, "status": "resolved", "endsAt": "2026-11-21T10:05:00Z"}
    body, found = only(resolved)
    assert body["severity"] == "information"
    assert body["occurredAt"] == "2026-11-21T10:05:00.000Z"
    assert body["details"]["endsAt"] == "2026-11-21T10:05:00Z"
    assert found.identity == "alert:c5f1e1d0a1b2c3d4:resolved"
    assert found.began_at == only(ALERT)[1].began_at


@pytest.mark.parametrize(
    ("word", "severity"),
    [
        *((word, "error") for word in ("critical", "error", "page", "CRITICAL", " page ")),
        *((word, "warning") for word in ("warning", "warn", "Warn")),
        *((word, "information") for word in ("info", "none", "", "sev1")),
    ],
)
def test_every_severity_has_its_word(word, severity):
    assert only({**ALERT, "labels": {"severity": word}})[0]["severity"] == severity


@pytest.mark.parametrize(
    "label",
    [
        *("service", "service_name", "app", "app_kubernetes_io_name"),
        *("deployment", "statefulset", "daemonset"),
    ],
)
def test_the_first_label_that_names_a_service_counts(label):
    labels = {"daemonset": "last", label: "first"}
    assert only({**ALERT, "labels": labels})[0]["scope"] == {"servicesNames": ["first"]}


def test_what_is_empty_is_left_out_as_templates_write_it():
    labels = {"alertname": "A", "cluster": "", "namespace": " ", "kubernetes_namespace": "k"}
    body, _ = only({**ALERT, "labels": {**labels, "service": "", "app": "x"}})
    assert body["scope"] == {"namespaces": ["k"], "servicesNames": ["x"]}
    assert "label_cluster" not in body["details"]


def test_a_missing_cluster_comes_from_whoever_asks_and_a_named_one_stays():
    unnamed = {**ALERT, "labels": {"alertname": "A"}}
    assert only(unnamed, cluster="edge")[0]["scope"] == {"clusters": ["edge"]}
    assert only(ALERT, cluster="edge")[0]["scope"]["clusters"] == ["prod"]


def test_a_cluster_of_the_query_is_made_fit_as_one_of_a_label_is():
    unnamed = {**ALERT, "labels": {"alertname": "A"}}
    assert only(unnamed, cluster=" ed\0ge\udcff ")[0]["scope"] == {"clusters": ["edge?"]}
    assert only(unnamed, cluster="c" * 5000)[0]["scope"]["clusters"] == ["c" * 255 + "…"]
    assert "scope" not in only(unnamed, cluster=" ")[0]


def test_an_alert_without_a_fingerprint_is_known_by_its_labels():
    unknown = {name: value for name, value in ALERT.items() if name != "fingerprint"}
    labels = dict(reversed(ALERT["labels"].items()))
    found = [
        only(alert)[1].identity
        for alert in (
            unknown,
            {**unknown, "labels": labels, "fingerprint": "", "annotations": {}},
            {**unknown, "labels": {**labels, "pod": "2"}},
            {**unknown, "status": "resolved"},
        )
    ]
    assert found[0] is not None
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_long_fingerprints_that_begin_alike_are_not_one_alert():
    long = "f" * 5000
    first, again, other, resolved = (
        only({**ALERT, "fingerprint": fingerprint, "status": status})[1].identity
        for fingerprint, status in (
            *((long, "firing"), (long, "firing")),
            *((long + "2", "firing"), (long, "resolved")),
        )
    )
    assert first is not None
    assert first == again
    assert len({first, other, resolved}) == 3
    assert len(first) <= DEDUP_KEY_MAX


@pytest.mark.parametrize("starts_at", [None, "", "yesterday", 5, "0001-01-01T00:00:00Z"])
def test_an_alert_whose_beginning_is_not_told_is_never_kept_back(starts_at):
    assert only({**ALERT, "startsAt": starts_at})[1].identity is None


NOTHING = [{}, None, 7, "x", [], {"labels": None, "annotations": [], "startsAt": 5}]


@pytest.mark.parametrize("alert", NOTHING, ids=repr)
def test_whatever_stands_in_the_list_becomes_an_event(alert):
    body, found = only(alert)
    assert body["eventType"] == "AlertmanagerAlert"
    assert body["summary"] == "FIRING: AlertmanagerAlert"
    assert found.identity is None
    parse(found.body)


def test_what_is_too_long_is_cut_and_the_event_stays_small():
    labels = {"alertname": "A" * 500, "cluster": "c" * 5000, "n\0x": "\ud800 \0"}
    labels |= {f"l{number}": "v" * 9000 for number in range(100)}
    alert = {**ALERT, "labels": labels, "annotations": {"summary": "s" * 100_000}}
    body, found = only(alert, event_type_max=30)
    assert len(body["eventType"]) == 30
    assert len(body["summary"]) == 1000
    assert len(body["scope"]["clusters"][0]) == 256
    assert body["details"]["label_nx"] == "? "
    assert "cut" in body["details"]
    assert parse(found.body, event_type_max=30).event_type.startswith("AAA")


def test_alerts_that_were_left_out_are_counted():
    assert read_group(group(ALERT, truncatedAlerts=3)).truncated == 3
    for odd in (None, -1, "3", 2.5):
        assert read_group(group(truncatedAlerts=odd)).truncated == 0
    assert read_group(group(truncatedAlerts=10**30)).truncated == 10**9


@pytest.mark.parametrize("payload", [None, [], "x", {}, {"alerts": None}, {"alerts": {}}], ids=repr)
def test_what_is_no_webhook_of_alertmanager_is_refused_with_what_to_send(payload):
    with pytest.raises(EventError) as raised:
        read_group(payload)
    assert "webhook_configs" in (raised.value.hint or "")


def test_a_group_without_end_is_refused():
    with pytest.raises(EventError, match="10000 are allowed"):
        read_group(group(*[ALERT] * 10_001))
