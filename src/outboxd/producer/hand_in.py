"""Hand in one event: to the agent if it answers, else into the spool.

It checks the event before it stores it, gives it a dedup key so that handing
it in twice (after an answer that got lost, say) makes no second event, and
ends every wait. Its caller never waits for the network, only for a commit on
this host.
"""

from __future__ import annotations

import os
from time import time_ns

from outboxd.errors import EventError, EventTooLarge, Unavailable
from outboxd.event import jsontext, strictjson
from outboxd.event.komodor import build, parse, scope_text
from outboxd.producer import settings
from outboxd.producer.messages import say
from outboxd.producer.socket import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, post
from outboxd.producer.spool import NotStored, put
from outboxd.times import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from outboxd.event.komodor import Event
    from outboxd.producer.gateway import GatewayClient
    from outboxd.producer.settings import ProducerSettings

TARGET = "/mgmt/v1/events"
# What the agent refuses for good. Anything else it says is a matter of time,
# or not the agent at all, and the spool keeps the event until it goes.
REFUSED_FOR_GOOD = (400, 413, 415, 422)


class Stored:
    """Where an event is now: committed by the agent or a gateway, or durably in the spool."""

    __slots__ = ("id", "reason", "spool_name", "status", "warnings", "where")

    def __init__(
        self,
        where: str,
        status: str,
        id: str | None = None,
        spool_name: str | None = None,
        reason: str | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.where = where  # "agent", "gateway" or "spool"
        self.status = status  # "accepted", "duplicate" or "spooled"
        self.id = id  # the receipt's; None in the spool, where none is given yet
        self.spool_name = spool_name  # the file in the spool's new/
        self.reason = reason  # why it went into the spool
        self.warnings = list(warnings)

    def __repr__(self) -> str:
        name = self.spool_name if self.where == "spool" else self.id
        return f"Stored({self.where!r}, {self.status!r}, {name!r})"


def emit(
    event_type: str,
    summary: str,
    *,
    severity: str | None = None,
    clusters: str | Sequence[str] = (),
    namespaces: str | Sequence[str] = (),
    services: str | Sequence[str] = (),
    details: Mapping[str, object] | None = None,
    dedup_key: str | None = None,
    occurred_at: str | datetime | None = None,
    ttl_s: float | None = None,
    config: str | None = None,
    socket: str | None = None,
) -> Stored:
    """Hand in an event; returns as soon as it is stored durably on this host.

    `occurred_at` is an aware datetime or RFC 3339 text, `config` the path of a
    configuration file, `socket` that of the agent's socket. Where the configuration
    is wrong a line on stderr says so, and the event is stored all the same.
    Raises EventError where the event is not valid, NotStored where neither agent
    nor spool could take it; both are OutboxdError and say what to do.
    """
    data = build(
        event_type,
        summary,
        severity,
        _listed(clusters),
        _listed(namespaces),
        _listed(services),
        details,
        dedup_key,
        _moment(occurred_at),
        ttl_s,
    )
    return hand_in(data, find_place(config), socket)


def find_place(config: str | None) -> ProducerSettings:
    """Where a program's events go. It is told once of what is wrong with the configuration,
    however many events it hands in."""
    place = settings.load(config)
    if place.warning is not None and place.warning not in _told:
        _told.add(place.warning)
        say(f"warning: {place.warning}")
    return place


_told: set[str] = set()


def hand_in(
    data: bytes,
    place: ProducerSettings,
    socket_path: str | None = None,
    gateway: GatewayClient | None = None,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> Stored:
    """Check the event that `data` is, and store it: at the gateway if one is given, else at
    the agent, else in the spool."""
    now_at = time_ns() // 1_000_000
    event = _checked(data, place)
    if gateway is not None:
        answer = _ask_gateway(event, gateway)
    else:
        answer = ask(
            event,
            socket_path or place.socket,
            connect_timeout_s=connect_timeout_s,
            answer_timeout_s=answer_timeout_s,
        )
    return answer if isinstance(answer, Stored) else _put_aside(event, now_at, place, answer)


def ask(
    event: Event,
    socket_path: str,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> Stored | str:
    """The agent's receipt, or in a sentence why there is none and only a later try can tell.

    Raises EventError where the agent refuses it for good.
    """
    try:
        status, answer = post(
            socket_path,
            TARGET,
            compose(event),
            connect_timeout_s=connect_timeout_s,
            answer_timeout_s=answer_timeout_s,
        )
    except Unavailable as unavailable:
        return unavailable.message
    receipt = _receipt("agent", status, answer, event.warnings)
    return receipt or f"the agent answered {status}{_said(answer)}"


def _ask_gateway(event: Event, gateway: GatewayClient) -> Stored | str:
    """The same of a gateway."""
    try:
        status, answer = gateway.post(TARGET, compose(event))
    except Unavailable as unavailable:
        return unavailable.message
    receipt = _receipt("gateway", status, answer, event.warnings)
    return receipt or f"the gateway answered {status}{_said(answer)}"


def compose(event: Event) -> bytes:
    """The event as one line of JSON, with what the agent alone reads."""
    fields: dict[str, str] = {
        "eventType": jsontext.quoted(event.event_type),
        "summary": jsontext.quoted(event.summary),
        "severity": jsontext.quoted(event.severity),
    }
    if event.scope:
        fields["scope"] = scope_text(event)
    if event.details is not None:
        # A line break in valid JSON stands between its parts, never in a string.
        fields["details"] = event.details.replace("\r", " ").replace("\n", " ")
    if event.dedup_key is not None:
        fields["dedupKey"] = jsontext.quoted(event.dedup_key)
    if event.occurred_at is not None:
        fields["occurredAt"] = jsontext.quoted(rfc3339(event.occurred_at))
    if event.ttl_s is not None:
        fields["ttlSeconds"] = repr(event.ttl_s)
    return ("{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}").encode()


def _receipt(where: str, status: int, answer: bytes, warnings: Sequence[str]) -> Stored | None:
    """What the agent or gateway said, or None where only a later try can tell."""
    fields = _fields(answer)
    if status in REFUSED_FOR_GOOD and "error" in fields:
        kind = EventTooLarge if status == 413 else EventError
        raise kind(str(fields["error"]), _text(fields, "field"), _text(fields, "hint"))
    id = _text(fields, "id")
    if status not in (200, 201) or id is None:
        return None
    told = fields.get("warnings")
    every = [*warnings, *(str(each) for each in (told if isinstance(told, list) else []))]
    return Stored(
        where, _text(fields, "status") or "accepted", id, warnings=list(dict.fromkeys(every))
    )


def _fields(answer: bytes) -> dict[str, object]:
    try:
        return {name: each[0] for name, each in strictjson.read_object(answer.decode()).items()}
    except (EventError, UnicodeDecodeError):
        return {}


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None


def _said(answer: bytes) -> str:
    error = _text(_fields(answer), "error")
    return f" ({error})" if error else ""


def _checked(data: bytes, place: ProducerSettings) -> Event:
    event = parse(data, place.event_type_max, place.event_bytes_max)
    if event.dedup_key is None:
        event.dedup_key = f"outboxd-{os.urandom(16).hex()}"
    return event


def _put_aside(event: Event, now_at: int, place: ProducerSettings, reason: str) -> Stored:
    if event.occurred_at is None:
        # It may lie there for hours; without this it would seem to have
        # happened when the agent found it.
        event.occurred_at = now_at
    body = compose(event)
    if len(body) > place.event_bytes_max:
        # The spool's reader would refuse it: with the agent down, better said now.
        raise EventTooLarge(
            f"the event has {len(body)} bytes with its dedup key and time,"
            f" {place.event_bytes_max} are allowed",
            None,
            "shorten its details, or raise [intake] event_bytes_max",
        )
    try:
        name = put(place.spool, body + b"\n")
    except NotStored as error:
        raise NotStored(f"{reason}; and {error.message}", error.hint) from None
    return Stored("spool", "spooled", None, name, reason, event.warnings)


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    """A single name is a list of one, not of its letters."""
    return [names] if isinstance(names, str) else names


def _moment(at: str | datetime | None) -> str | None:
    return at if at is None or isinstance(at, str) else at.isoformat()
