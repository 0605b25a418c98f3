"""What Komodor says to an event: valid, or a list of messages.

Strict on purpose: whatever the agent should have mapped or taken out
("Warning", `dedupKey`) is an error here, so that it is seen. A scope's services
may be called `serviceNames` or `servicesNames`: Komodor's documentation has both.
It must never accept what the documentation forbids.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec

EVENT_TYPE_MAX = 60
SEVERITIES = ("information", "warning", "error")
_FIELDS = ("eventType", "summary", "scope", "severity", "details")
_SCOPE_FIELDS = ("clusters", "servicesNames", "serviceNames", "namespaces")


class ReceivedEvent(NamedTuple):
    """The parts of a valid event that the sandbox looks at."""

    event_type: str
    summary: str
    severity: str
    clusters: tuple[str, ...]
    namespaces: tuple[str, ...]
    services: tuple[str, ...]


class InvalidEvent(Exception):
    """The event is refused; `messages` say why, one a fault."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


def validate(body: bytes) -> ReceivedEvent:
    """Read a request's body as Komodor does; raises InvalidEvent."""
    try:
        # The decoder passes over details without a look at their bytes.
        event = _decode(body.decode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # The quick decoder stops at the first fault; the caller wants them all.
        raise InvalidEvent(_messages(body) or [f"the body is not valid: {error}"]) from None
    scope = event.scope
    if (
        not event.eventType
        or len(event.eventType) > EVENT_TYPE_MAX
        or not event.summary
        or (event.severity is not None and event.severity not in SEVERITIES)
        or not _is_object_or_null(event.details)
        or (scope and scope.servicesNames is not None and scope.serviceNames is not None)
    ):
        raise InvalidEvent(_messages(body))
    if scope is None:
        scope = _EVERYWHERE
    return ReceivedEvent(
        event.eventType,
        event.summary,
        event.severity or "information",
        scope.clusters or (),
        scope.namespaces or (),
        scope.servicesNames or scope.serviceNames or (),
    )


class _Scope(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    clusters: tuple[str, ...] | None = None
    servicesNames: tuple[str, ...] | None = None
    serviceNames: tuple[str, ...] | None = None
    namespaces: tuple[str, ...] | None = None


class _Event(msgspec.Struct, forbid_unknown_fields=True):
    eventType: str
    summary: str
    scope: _Scope | None = None
    severity: str | None = None
    details: msgspec.Raw = msgspec.Raw(b"null")


_EVERYWHERE = _Scope()
_decode = msgspec.json.Decoder(_Event).decode


def _is_object_or_null(raw: msgspec.Raw) -> bool:
    text = bytes(raw)
    return text.startswith(b"{") or text == b"null"


def _messages(body: bytes) -> list[str]:
    try:
        value: Any = json.loads(
            body.decode(), parse_int=_Number, parse_float=_Number, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        return [f"the body is not valid JSON: {error}"]
    if not isinstance(value, dict):
        return ["the body must be a JSON object"]
    messages = [f"property {name} should not exist" for name in value if name not in _FIELDS]
    messages += _text_messages(value, "eventType")
    if isinstance(value.get("eventType"), str) and len(value["eventType"]) > EVENT_TYPE_MAX:
        messages.append(f"eventType must be shorter than or equal to {EVENT_TYPE_MAX} characters")
    messages += _text_messages(value, "summary")
    severity = value.get("severity")
    if severity is not None and severity not in SEVERITIES:
        messages.append(f"severity must be one of the following values: {', '.join(SEVERITIES)}")
    details = value.get("details")
    if details is not None and not isinstance(details, dict):
        messages.append("details must be an object")
    return messages + _scope_messages(value.get("scope"))


class _Number:
    """A number that is not looked at: none is too large for that."""

    def __init__(self, text: str) -> None: ...


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _text_messages(value: dict[str, Any], name: str) -> list[str]:
    if not isinstance(value.get(name), str):
        return [f"{name} must be a string"]
    return [] if value[name] else [f"{name} should not be empty"]


def _scope_messages(scope: Any) -> list[str]:
    if scope is None:
        return []
    if not isinstance(scope, dict):
        return ["scope must be an object"]
    messages = [
        f"scope.property {name} should not exist" for name in scope if name not in _SCOPE_FIELDS
    ]
    if scope.get("servicesNames") is not None and scope.get("serviceNames") is not None:
        messages.append("scope must not have both servicesNames and serviceNames")
    for name in _SCOPE_FIELDS:
        names = scope.get(name)
        if names is None:
            continue
        if not isinstance(names, list):
            messages.append(f"scope.{name} must be an array")
        elif not all(isinstance(item, str) for item in names):
            messages.append(f"each value in scope.{name} must be a string")
    return messages
