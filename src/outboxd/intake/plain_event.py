"""The fast way to read an event: for what is certainly plain, and nothing else.

Nearly every event is a few strings, lists of names and details that are not
nested. Such a one is read by msgspec in a fraction of the time that the careful
reader (`event.komodor.parse`) takes, and comes out the same. Whatever is unusual,
be it right or wrong, is left to that one: this room refuses nothing and explains
nothing. It must never take what the careful reader would refuse, nor read it
otherwise; a fuzz test holds the two side by side.

What msgspec does not see itself, and how it is seen here:

- a name given twice: there must be as many `":` in the text as names were read.
  Only names have those, and quotes escaped within a string, so more of them mean a
  second one, or a doubt. (A colon with space before it is a doubt of its own.)
- names, surrogates and U+0000 written as escapes: outside of `details` there may
  be no backslash, within them no `\\u`.
"""

from __future__ import annotations

import msgspec

from outboxd.event.komodor import DEDUP_KEY_MAX, SEVERITIES, TTL_MAX_S, Event
from outboxd.times import parse_rfc3339

_UNSET = msgspec.UNSET
_Names = list[str] | msgspec.UnsetType


class _Scope(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    clusters: _Names = _UNSET
    servicesNames: _Names = _UNSET
    namespaces: _Names = _UNSET


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    eventType: str
    summary: str
    severity: str | msgspec.UnsetType = _UNSET
    scope: _Scope | msgspec.UnsetType = _UNSET
    details: msgspec.Raw | msgspec.UnsetType = _UNSET
    dedupKey: str | msgspec.UnsetType = _UNSET
    occurredAt: str | msgspec.UnsetType = _UNSET
    ttlSeconds: int | msgspec.UnsetType = _UNSET


_decode = msgspec.json.Decoder(_Plain).decode
_decode_details = msgspec.json.Decoder(dict[str, str | int | float | bool | None]).decode


def read(data: bytes, event_type_max: int, event_bytes_max: int) -> Event | None:
    """The event that `data` is; None where it is not certainly plain."""
    if len(data) > event_bytes_max:
        return None
    if b" :" in data or b"\t:" in data or b"\n:" in data or b"\r:" in data:
        return None
    try:
        return _event(data, _decode(data), event_type_max)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _event(data: bytes, plain: _Plain, event_type_max: int) -> Event | None:
    if not 0 < len(plain.eventType) <= event_type_max or not plain.summary:
        return None
    event, names = Event(plain.eventType, plain.summary), 2
    raw = b""
    if plain.severity is not _UNSET:
        if plain.severity not in SEVERITIES:
            return None
        event.severity, names = plain.severity, names + 1
    if plain.scope is not _UNSET:
        names += 1 + _take_scope(event, plain.scope)
    if plain.details is not _UNSET:
        raw = bytes(plain.details)
        if raw[:1] != b"{" or b"\\u" in raw:
            return None
        names += 1 + len(_decode_details(raw))
        event.details = raw.decode()
    if plain.dedupKey is not _UNSET:
        if not 0 < len(plain.dedupKey) <= DEDUP_KEY_MAX:
            return None
        event.dedup_key, names = plain.dedupKey, names + 1
    if plain.occurredAt is not _UNSET:
        event.occurred_at, names = parse_rfc3339(plain.occurredAt), names + 1
    if plain.ttlSeconds is not _UNSET:
        if not 0 < plain.ttlSeconds <= TTL_MAX_S:
            return None
        event.ttl_s, names = float(plain.ttlSeconds), names + 1
    if data.count(b'":') != names:
        return None
    if b"\\" in data and data.count(b"\\") != raw.count(b"\\"):
        return None
    return event


def _take_scope(event: Event, scope: _Scope) -> int:
    """Set the event's scope; how many names were given. ValueError for an empty one."""
    given = 0
    for name, values in (
        ("clusters", scope.clusters),
        ("servicesNames", scope.servicesNames),
        ("namespaces", scope.namespaces),
    ):
        if values is _UNSET:
            continue
        given += 1
        if "" in values:
            raise ValueError
        if values:
            event.scope[name] = values
    return given
