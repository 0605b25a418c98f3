"""The filters of a listing, from the query of a URL. Pure.

Each may be given several times; within one any value matches, between them all
must. What is not known or not valid is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import msgspec

from outboxd.outbox.model import DeadReason, EntryFilter, State
from outboxd.serve.answers import Refusal
from outboxd.serve.request import Query
from outboxd.times import parse_rfc3339

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
VALUE_MAX = 1000  # characters of one value
VALUES_MAX = 100  # of one filter

STATES = tuple(State)
_SEVERITIES: Mapping[str, str] = {
    "information": "information",
    "info": "information",
    "warning": "warning",
    "error": "error",
}
NAMES = (
    *("state", "held", "type", "severity", "cluster", "namespace", "service", "q"),
    *("reason", "status", "since", "until", "limit", "cursor"),
)


_Values = str | int | bool | list[str | int | bool]


class Listing(NamedTuple):
    """What is asked for."""

    where: EntryFilter
    cursor: str | None
    limit: int


def parse_listing(query: Query) -> Listing:
    """Raises Refusal 400, its field being the filter's name."""
    _check_names(query)
    return Listing(parse_filter(query), _one(query, "cursor"), _limit(_one(query, "limit")))


def parse_order(query: Query, body: bytes) -> EntryFilter:
    """The filters of a change of many: in the query, or a JSON object of the same
    names with a value or a list of values each.

    Raises:
        Refusal: 400, its field being the filter's name.
    """
    pairs = [(name, value) for name in query for value in query.getall(name, [])]
    try:
        given = msgspec.json.decode(body, type=dict[str, _Values]) if body.strip() else {}
    except msgspec.DecodeError as error:
        hint = 'such as {"reason": "rejected", "type": ["deploy", "backup"]}, {} for all'
        raise Refusal(400, f"the filters cannot be read: {error}", None, hint) from None
    for name, values in given.items():
        several = values if isinstance(values, list) else [values]
        pairs += [(name, _text(value)) for value in several]
    whole = Query(pairs)
    _check_names(whole, [name for name in NAMES if name not in ("limit", "cursor")])
    return parse_filter(whole)


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_filter(query: Query) -> EntryFilter:
    """The filters alone; other names in the query are not looked at."""
    return EntryFilter(
        states=_words(query, "state", {state.value: state.value for state in State}),
        held=_flag(query, "held"),
        event_types=_many(query, "type"),
        severities=_words(query, "severity", _SEVERITIES),
        clusters=_many(query, "cluster"),
        namespaces=_many(query, "namespace"),
        services=_many(query, "service"),
        q=_one(query, "q") or "",
        since=_time(query, "since"),
        until=_time(query, "until"),
        dead_reasons=_words(query, "reason", {reason.value: reason.value for reason in DeadReason}),
        last_statuses=_statuses(query),
    )


def _check_names(query: Query, names: Sequence[str] = NAMES) -> None:
    for name in query:
        if name not in names:
            near = get_close_matches(name[:60], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "filters are " + ", ".join(names)
            raise Refusal(400, f"there is no filter {name[:60]!r}", name[:60], hint)


def _many(query: Query, name: str) -> tuple[str, ...]:
    values = tuple(value for value in query.getall(name, []) if value)
    if len(values) > VALUES_MAX:
        raise Refusal(400, f"{name} is given {len(values)} times", name, f"at most {VALUES_MAX}")
    for value in values:
        if len(value) > VALUE_MAX:
            raise Refusal(400, f"{name} is too long", name, f"at most {VALUE_MAX} characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refusal(400, f"{name} is not UTF-8", name, "encode it as UTF-8") from None
    return values


def _one(query: Query, name: str) -> str | None:
    values = _many(query, name)
    if len(values) > 1:
        raise Refusal(400, f"{name} is given {len(values)} times", name, "give it once")
    return values[0] if values else None


def _words(query: Query, name: str, known: Mapping[str, str]) -> tuple[str, ...]:
    words = []
    for value in _many(query, name):
        word = known.get(value.lower())
        if word is None:
            hint = "it is one of " + ", ".join(dict.fromkeys(known.values()))
            raise Refusal(400, f"{name}={value[:60]!r} is not known", name, hint)
        words.append(word)
    return tuple(words)


def _flag(query: Query, name: str) -> bool | None:
    value = _one(query, name)
    if value is None:
        return None
    if value not in ("true", "false"):
        raise Refusal(400, f"{name}={value[:60]!r} is not known", name, "it is true or false")
    return value == "true"


def _statuses(query: Query) -> tuple[int, ...]:
    values = _many(query, "status")
    for value in values:
        if not (value.isascii() and value.isdigit() and len(value) == 3):
            hint = "a status of HTTP, such as 400"
            raise Refusal(400, f"status={value[:60]!r} is not known", "status", hint)
    return tuple(int(value) for value in values)


def _time(query: Query, name: str) -> int | None:
    value = _one(query, name)
    if value is None:
        return None
    try:
        return parse_rfc3339(value)
    except ValueError as error:
        hint = "write it as 2026-11-21T23:31:36Z (in a URL, + is %2B)"
        raise Refusal(400, f"{name}={value[:60]!r}: {error}", name, hint) from None


def _limit(value: str | None) -> int:
    if value is None:
        return LIMIT_DEFAULT
    if value.isascii() and value.isdigit() and len(value) <= 4 and 1 <= int(value) <= LIMIT_MAX:
        return int(value)
    hint = f"a whole number from 1 to {LIMIT_MAX}"
    raise Refusal(400, f"limit={value[:60]!r} is not possible", "limit", hint)
