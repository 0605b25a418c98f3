"""Alertmanager's webhook (version 4) as events: one for each alert.

Pure. The mapping is that of Komodor's own bridge, so that who comes from there
sees the same events; but it is total: whatever Alertmanager sends becomes an
event. What is too long is cut, what is empty is left out, and an alert without a
name or a cluster is taken all the same.

The payload is described at https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from outboxd.errors import EventError
from outboxd.event.komodor import build
from outboxd.gateway.keys import fitting_key
from outboxd.text import cut, storable
from outboxd.times import parse_rfc3339

ALERTS_MAX = 10_000  # of one request
SUMMARY_MAX = 1_000  # characters
NAME_MAX = 256  # characters of a name in the scope
_VALUE_MAX = 4_096  # characters of one detail
_DETAILS_MAX = 64 * 1024  # characters of all details of an alert
_COUNT_MAX = 1_000_000_000  # of what is only told
UNNAMED = "AlertmanagerAlert"  # as Komodor's bridge calls it

_NAMESPACE_LABELS = ("namespace", "kubernetes_namespace")
_SERVICE_LABELS = (
    *("service", "service_name", "app", "app_kubernetes_io_name"),
    *("deployment", "statefulset", "daemonset"),
)
_SEVERITIES = {
    **dict.fromkeys(("critical", "error", "page"), "error"),
    **dict.fromkeys(("warning", "warn"), "warning"),
}


class AlertEvent(NamedTuple):
    """An alert as an event."""

    body: bytes  # for the intake
    # The alert itself, whoever sends it and however often. None where it cannot be told.
    identity: str | None
    # When this firing of it began, in ms since 1970. A resend, a grown group, the
    # twin of a pair and a Prometheus that saw it earlier come with none that is later.
    began_at: int


class AlertGroup(NamedTuple):
    """What one request brought."""

    events: list[AlertEvent]
    truncated: int  # alerts that Alertmanager left out of the request (max_alerts)


def read_group(
    payload: Any,
    cluster: str | None = None,
    event_type_max: int = 60,
    event_bytes_max: int = 256 * 1024,
) -> AlertGroup:
    """The events of a request's JSON. `cluster` is for alerts that name none.

    Raises:
        EventError: it is no webhook of Alertmanager.
    """
    alerts = payload.get("alerts") if isinstance(payload, dict) else None
    if not isinstance(alerts, list):
        hint = "send Alertmanager's own webhook here (`webhook_configs`), without `payload`"
        raise EventError("this is no webhook of Alertmanager: it has no alerts", "$.alerts", hint)
    if len(alerts) > ALERTS_MAX:
        message = f"{len(alerts)} alerts in one request, {ALERTS_MAX} are allowed"
        raise EventError(message, "$.alerts", "set max_alerts in Alertmanager's webhook_configs")
    truncated = payload.get("truncatedAlerts")
    return AlertGroup(
        [
            _event(_object(alert), payload, cluster, event_type_max, event_bytes_max)
            for alert in alerts
        ],
        min(truncated, _COUNT_MAX) if type(truncated) is int and truncated > 0 else 0,
    )


def identity_of(fingerprint: str, status: str) -> str:
    """What an alert in this state is known again by."""
    return fitting_key(f"alert:{fingerprint}:{status}")


def _event(
    alert: Mapping[str, Any],
    payload: Mapping[str, Any],
    cluster: str | None,
    event_type_max: int,
    event_bytes_max: int,
) -> AlertEvent:
    labels, annotations = _object(alert.get("labels")), _object(alert.get("annotations"))
    status = _first(alert, "status") or _first(payload, "status") or "firing"
    name = _first(labels, "alertname") or UNNAMED
    resolved = status == "resolved"
    summary = _first(annotations, "summary", "description") or f"{status.upper()}: {name}"
    severity = _SEVERITIES.get((_first(labels, "severity") or "").lower(), "information")
    began_at = _moment(alert.get("startsAt"))
    happened_at = _moment(alert.get("endsAt")) if resolved else began_at
    build_with = partial(
        build,
        cut(name, event_type_max),
        cut(summary, SUMMARY_MAX),
        severity="information" if resolved else severity,
        clusters=_names(_first(labels, "cluster") or _first({"": cluster}, "")),
        namespaces=_names(_first(labels, *_NAMESPACE_LABELS)),
        services=_names(_first(labels, *_SERVICE_LABELS)),
        occurred_at=happened_at,
    )
    room = _DETAILS_MAX
    body = build_with(details=_details(alert, payload, labels, annotations, status, room))
    while len(body) > event_bytes_max and room:
        room //= 2
        body = build_with(details=_details(alert, payload, labels, annotations, status, room))
    fingerprint = _first(alert, "fingerprint") or _fingerprint(labels)
    # One whose beginning is not told could be the next one, and must not be kept back.
    identity = identity_of(fingerprint, status) if fingerprint and began_at else None
    return AlertEvent(body, identity, began_at or 0)


def _fingerprint(labels: Mapping[str, Any]) -> str | None:
    """What tells an alert from others where its sender (Alertmanager before 0.20, another
    program) does not say: its labels, as Alertmanager itself has it."""
    told = sorted((name, text) for name, value in labels.items() if (text := _text(value)))
    if not told:
        return None
    return f"labels-{hashlib.sha256(json.dumps(told).encode()).hexdigest()}"


def _details(
    alert: Mapping[str, Any],
    payload: Mapping[str, Any],
    labels: Mapping[str, Any],
    annotations: Mapping[str, Any],
    status: str,
    room: int,
) -> dict[str, str]:
    """The alert's own words, as Komodor's bridge names them; `room` characters of them."""
    told = {
        "status": status,
        "fingerprint": alert.get("fingerprint"),
        "startsAt": alert.get("startsAt"),
        # Alertmanager writes the year 1 where an alert has not ended.
        "endsAt": alert.get("endsAt") if status == "resolved" else None,
        "generatorURL": alert.get("generatorURL"),
        "externalURL": payload.get("externalURL"),
        "receiver": payload.get("receiver"),
        **{f"label_{name}": value for name, value in labels.items()},
        **{f"annotation_{name}": value for name, value in annotations.items()},
    }
    details: dict[str, str] = {}
    for name, value in told.items():
        text = _text(value)
        if not text:
            continue
        name, text = cut(_text(name), NAME_MAX), cut(text, _VALUE_MAX)
        room -= len(name) + len(text)
        if room < 0:
            details["cut"] = "there were more labels and annotations than an event can hold"
            break
        details[name] = text
    return details


def _first(values: Mapping[str, Any], *names: str) -> str | None:
    """The first of these that says something. Templates write "" for a label that is missing."""
    texts = (_text(values.get(name)).strip() for name in names)
    return next((text for text in texts if text), None)


def _text(value: object) -> str:
    """A value as text that an event may hold; "" for none."""
    if value is None or isinstance(value, (dict, list)):
        return ""
    text = value if isinstance(value, str) else str(value)
    return storable(text)


def _names(name: str | None) -> tuple[str, ...]:
    return (cut(name, NAME_MAX),) if name else ()


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _moment(value: object) -> int | None:
    """Milliseconds since 1970; None where it is no time, or the year 1 that means none."""
    if not isinstance(value, str):
        return None
    try:
        at = parse_rfc3339(value)
    except ValueError:
        return None
    return at if at > 0 else None
