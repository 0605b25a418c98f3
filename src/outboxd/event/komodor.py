"""Komodor's custom event: read, checked, and written as Komodor wants it.

The one validation for producers and the agent, so that what `emit` takes the
agent takes. Pure; it imports next to nothing, because cron jobs wait for it.
It never changes a value on the way: `details` is kept as the text that the
producer wrote, numbers and all.
"""

from __future__ import annotations

from outboxd.errors import EventError, EventTooLarge
from outboxd.event import strictjson
from outboxd.event.jsontext import Number, encode, kind_of, path_to, quoted, shown
from outboxd.times import parse_rfc3339, rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

EVENT_TYPE_MAX = 60  # code points
EVENT_BYTES_MAX = 256 * 1024
DEDUP_KEY_MAX = 256  # code points
TTL_MAX_S = 1e11

SEVERITIES = ("information", "warning", "error")
SCOPE_FIELDS = ("clusters", "servicesNames", "namespaces")
# How a table of Komodor's documentation, and so real scripts, write `servicesNames`.
SERVICE_NAMES = "serviceNames"
# Komodor's own, and behind them those that are the agent's and are not sent as they are.
FIELDS = (
    *("eventType", "summary", "severity", "scope", "details"),
    *("dedupKey", "occurredAt", "ttlSeconds"),
)

NO_SCOPE_WARNING = "no scope: it will reach every service of the account"
SERVICE_NAMES_WARNING = "scope.serviceNames was understood as scope.servicesNames"
EMPTY_NAME_WARNING = 'empty names ("") in the scope count as not given'

_FIELD_SET = frozenset(FIELDS)
_SCOPE_SET = frozenset(SCOPE_FIELDS)
_SEVERITY_WORDS = {
    "information": "information",
    "info": "information",
    "warning": "warning",
    "error": "error",
}
_MISSING = (None, 0, 0)
_DETAILS_MARK = ',"details":'


class Event:
    """A valid event. Not changed once made."""

    __slots__ = (
        "dedup_key",
        "details",
        "event_type",
        "hop",
        "occurred_at",
        "scope",
        "severity",
        "summary",
        "ttl_s",
        "warnings",
    )

    def __init__(
        self,
        event_type: str,
        summary: str,
        severity: str = "information",
        scope: dict[str, list[str]] | None = None,
        details: str | None = None,
        dedup_key: str | None = None,
        occurred_at: int | None = None,
        ttl_s: float | None = None,
        warnings: list[str] | None = None,
    ) -> None:
        self.event_type = event_type
        self.summary = summary
        self.severity = severity  # one of SEVERITIES
        self.scope = scope or {}  # of SCOPE_FIELDS those that are not empty
        self.details = details  # the object's JSON text as the producer wrote it
        self.dedup_key = dedup_key
        self.occurred_at = occurred_at
        self.ttl_s = ttl_s
        self.hop: str | None = None  # its way through other agents: the text of `event.hop`
        self.warnings = warnings or []  # for the receipt

    def __repr__(self) -> str:
        return f"Event({self.event_type!r}, {self.summary!r}, {self.severity!r}, {self.scope!r})"


class Defaults:
    """What the configuration adds where an event names none."""

    __slots__ = ("clusters", "details", "namespaces", "services")

    def __init__(
        self,
        clusters: Sequence[str] = (),
        namespaces: Sequence[str] = (),
        services: Sequence[str] = (),
        details: Mapping[str, object] | None = None,
    ) -> None:
        self.clusters = list(clusters)
        self.namespaces = list(namespaces)
        self.services = list(services)
        self.details = dict(details or {})


NO_DEFAULTS = Defaults()


def parse(
    data: bytes,
    event_type_max: int = EVENT_TYPE_MAX,
    event_bytes_max: int = EVENT_BYTES_MAX,
    explain: bool = True,
    takes_hop: bool = False,
) -> Event:
    """The event that `data` is; EventError (or EventTooLarge) says what is wrong and where.

    Without `explain` what is no strict JSON raises Unexplained, at once.
    `takes_hop`: it may come from another agent, which tells its way so far.
    """
    if len(data) > event_bytes_max:
        message = f"the event has {len(data)} bytes, {event_bytes_max} are allowed"
        raise EventTooLarge(message, None, "shorten its details, or raise [intake] event_bytes_max")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise EventError(message, None, "send the event in UTF-8") from None
    members = strictjson.read_object(text, explain)
    hop = members.pop("hop", None) if takes_hop else None
    if not members.keys() <= _FIELD_SET:
        unknown = next(name for name in members if name not in _FIELD_SET)
        raise _unknown(unknown, FIELDS, "$")

    event_type = _text(members, "eventType")
    if len(event_type) > event_type_max:
        message = f"eventType has {len(event_type)} characters, {event_type_max} are allowed"
        raise EventError(message, "$.eventType", "shorten it and say the rest in the summary")
    summary = _text(members, "summary")
    warnings: list[str] = []
    scope = members.get("scope", _MISSING)[0]
    if scope:
        scope = _scope(scope, warnings)
    elif type(scope) is not dict and scope is not None:
        raise _wrong_kind("$.scope", scope, "an object")
    details, start, end = members.get("details", _MISSING)
    if type(details) is not dict and details is not None:
        raise _wrong_kind("$.details", details, "an object")
    event = Event(
        event_type,
        summary,
        _severity(members) if "severity" in members else "information",
        scope,
        None if details is None else text[start:end],
        warnings=warnings,
    )
    if len(members) > 2:
        _take_agents_own(event, members)
    if hop is not None:
        from outboxd.event.hop import hop_text, read_hop

        event.hop = hop_text(read_hop(hop[0]))
    return event


def build(
    event_type: str,
    summary: str,
    severity: str | None = None,
    clusters: Sequence[str] = (),
    namespaces: Sequence[str] = (),
    services: Sequence[str] = (),
    details: Mapping[str, object] | None = None,
    dedup_key: str | None = None,
    occurred_at: int | str | None = None,
    ttl_s: float | None = None,
) -> bytes:
    """The event as JSON for the intake. `parse` then says whether it is valid."""
    fields: dict[str, object] = {"eventType": event_type, "summary": summary, "severity": severity}
    lists = zip(SCOPE_FIELDS, (clusters, services, namespaces), strict=True)
    fields["scope"] = {name: list(values) for name, values in lists if values} or None
    fields["details"] = details or None
    fields["dedupKey"] = dedup_key
    fields["occurredAt"] = rfc3339(occurred_at) if isinstance(occurred_at, int) else occurred_at
    fields["ttlSeconds"] = ttl_s
    given = {name: value for name, value in fields.items() if value is not None}
    parts = [f"{quoted(name)}:{_encoded(name, given[name])}" for name in given]
    text = "{" + ",".join(parts) + "}"
    # A lone surrogate cannot be encoded; as an escape it reaches `parse`, which names its place.
    return text.encode("utf-8", "backslashreplace")


def wire_body(event: Event, defaults: Defaults = NO_DEFAULTS, scope: str | None = None) -> bytes:
    """The JSON that Komodor gets. `scope` is `scope_text`'s answer, where it is known already."""
    if scope is None:
        scope = scope_text(event, defaults)
    details = event.details
    if defaults.details:
        details = strictjson.merge(details or "{}", defaults.details)
    return (
        f'{{"eventType":{quoted(event.event_type)}'
        f',"summary":{quoted(event.summary)},"severity":"{event.severity}"'
        + (f',"scope":{scope}' if scope else "")
        + (f"{_DETAILS_MARK}{details}}}" if details else "}")
    ).encode()


def scope_text(event: Event, defaults: Defaults = NO_DEFAULTS) -> str:
    """The scope as sent, in compact JSON; "" for none."""
    scope = event.scope
    lists = (
        ("clusters", scope.get("clusters") or defaults.clusters),
        ("servicesNames", scope.get("servicesNames") or defaults.services),
        ("namespaces", scope.get("namespaces") or defaults.namespaces),
    )
    named = [f'"{name}":[{",".join(map(quoted, values))}]' for name, values in lists if values]
    return "{" + ",".join(named) + "}" if named else ""


def merge_details(
    body: bytes, additions: Mapping[str, object], overwrite: frozenset[str] = frozenset()
) -> bytes:
    """A body that `wire_body` wrote, with keys added to its details; no other text is touched.

    Keys that are there already stay, but those named in `overwrite`.
    """
    if not additions:
        return body
    text = body.decode()
    # In a JSON string each quote has a backslash before it, and only `details` has objects with
    # names of their own: so the first such mark is the member itself, always the last one.
    start = text.find(_DETAILS_MARK)
    if start < 0:
        return f"{text[:-1]}{_DETAILS_MARK}{strictjson.merge('{}', additions)}}}".encode()
    start += len(_DETAILS_MARK)
    return f"{text[:start]}{strictjson.merge(text[start:-1], additions, overwrite)}}}".encode()


def checked_dedup_key(key: str, field: str | None = "$.dedupKey") -> str:
    """The dedup key if it is one that can be kept, from the body or from a header."""
    if not key:
        raise EventError("the dedup key is empty", field, "leave it out, or give it a value")
    if len(key) > DEDUP_KEY_MAX:
        message = f"the dedup key has {len(key)} characters, {DEDUP_KEY_MAX} are allowed"
        raise EventError(message, field, "send a hash of it instead")
    return key


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that was probably meant."""
    from difflib import get_close_matches

    folded = {candidate.lower(): candidate for candidate in known}
    match = get_close_matches(name[:60].lower(), folded, n=1, cutoff=0.5)
    return folded[match[0]] if match else None


def _text(members: dict[str, Any], name: str) -> str:
    """A string that must be there and not be empty."""
    value = members.get(name, _MISSING)[0]
    if type(value) is str and value:
        return value
    path = f"$.{name}"
    if value is None:
        raise EventError(f"{name} is missing", path, f"every event has {name}, a string")
    if value == "":
        raise EventError(f"{name} is empty", path, "say something in it")
    raise _wrong_kind(path, value, "a string")


def _severity(members: dict[str, Any]) -> str:
    value = members["severity"][0]
    if value is None:
        return "information"
    if type(value) is not str:
        raise _wrong_kind("$.severity", value, "a string")
    word = _SEVERITY_WORDS.get(value) or _SEVERITY_WORDS.get(value.lower())
    if word is None:
        hint = "it is one of information (or info), warning, error"
        raise EventError(f'severity "{shown(value)}" is not known', "$.severity", hint)
    return word


def _scope(scope: Any, warnings: list[str]) -> dict[str, list[str]]:
    if type(scope) is not dict:
        raise _wrong_kind("$.scope", scope, "an object")
    found: dict[str, list[str]] = {}
    for name, values in scope.items():
        if name not in _SCOPE_SET and name != SERVICE_NAMES:
            raise _unknown(name, SCOPE_FIELDS, "$.scope")
        if values is None:
            continue
        if type(values) is not list:
            hint = 'write ["…"], even for one' if type(values) is str else None
            raise _wrong_kind(f"$.scope.{name}", values, "a list of strings", hint)
        for position, value in enumerate(values):
            if type(value) is not str:
                raise _wrong_kind(f"$.scope.{name}[{position}]", value, "a string")
        if "" in values:
            # What templates write for a label that is missing, Alertmanager's among them.
            values = [value for value in values if value]
            if EMPTY_NAME_WARNING not in warnings:
                warnings.append(EMPTY_NAME_WARNING)
        found[name] = values
    if SERVICE_NAMES in found:
        if "servicesNames" in found:
            message = "scope has both serviceNames and servicesNames"
            raise EventError(message, f"$.scope.{SERVICE_NAMES}", "name them all in servicesNames")
        found["servicesNames"] = found.pop(SERVICE_NAMES)
        warnings.append(SERVICE_NAMES_WARNING)
    # Real clients send empty lists and mean 'not given'.
    return {name: values for name, values in found.items() if values}


def _take_agents_own(event: Event, members: dict[str, Any]) -> None:
    """dedupKey, occurredAt and ttlSeconds, which are not sent as they are."""
    key = members.get("dedupKey", _MISSING)[0]
    if key is not None:
        if type(key) is not str:
            raise _wrong_kind("$.dedupKey", key, "a string")
        event.dedup_key = checked_dedup_key(key)
    occurred = members.get("occurredAt", _MISSING)[0]
    if occurred is not None:
        if type(occurred) is not str:
            raise _wrong_kind("$.occurredAt", occurred, "a string")
        try:
            event.occurred_at = parse_rfc3339(occurred)
        except ValueError as error:
            hint = "write it as 2026-11-21T23:31:36Z or 2026-11-22T00:31:36.5+01:00"
            raise EventError(f"occurredAt {error}", "$.occurredAt", hint) from None
    ttl = members.get("ttlSeconds", _MISSING)[0]
    if ttl is not None:
        if type(ttl) is not Number:
            raise _wrong_kind("$.ttlSeconds", ttl, "a number")
        ttl_s = float(ttl)
        if not 0 < ttl_s <= TTL_MAX_S:
            message = f"ttlSeconds {shown(ttl)} is not allowed"
            raise EventError(message, "$.ttlSeconds", "a number of seconds above 0, at most 1e11")
        event.ttl_s = ttl_s


def _encoded(name: str, value: object) -> str:
    try:
        return encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{name} cannot be written as JSON: {error}"
        raise EventError(message, f"$.{name}", "use strings, numbers, lists and dicts") from None


def _unknown(name: str, known: Sequence[str], path: str) -> EventError:
    message = f'unknown field "{shown(name)}"'
    if path == "$" and (name in _SCOPE_SET or name == SERVICE_NAMES):
        return EventError(message, path_to(path, name), f'did you mean "scope.{name}"?')
    meant = nearest(name, known)
    hint = f'did you mean "{meant}"? ' if meant else ""
    return EventError(message, path_to(path, name), f"{hint}known are {', '.join(known)}")


def _wrong_kind(path: str, value: object, wanted: str, hint: str | None = None) -> EventError:
    name = path.removeprefix("$.")
    return EventError(f"{name} is {kind_of(value)}, not {wanted}", path, hint or f"give {wanted}")
