"""What a request's query asks for, checked.

Pure: reads the query's names and values and nothing else. The names are those
of the listing's contract, and the page's own address uses the same ones.
"""

from __future__ import annotations

import difflib

from outboxd.outbox.model import EntryFilter, State
from outboxd.serve.request import Query
from outboxd.times import parse_rfc3339

LIMIT_DEFAULT = 50
LIMIT_MAX = 500
BUCKETS_DEFAULT = 90
BUCKETS_MAX = 400
VALUE_LENGTH_MAX = 1000
VALUES_MAX = 100  # of one name

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
# Steps that a person reads easily.
STEPS_MS = (
    *(n * SECOND_MS for n in (1, 2, 5, 10, 15, 30)),
    *(n * MINUTE_MS for n in (1, 2, 5, 10, 15, 30)),
    *(n * HOUR_MS for n in (1, 2, 3, 6, 12)),
    *(n * DAY_MS for n in (1, 2, 7, 14, 30, 90, 365)),
)

_NAMES = "state", "held", "type", "severity", "cluster", "namespace", "service", "q"
FILTER_NAMES = frozenset((*_NAMES, "since", "until"))
_SEVERITIES = ("information", "warning", "error")


class BadQuery(Exception):
    """The query cannot be understood."""

    def __init__(self, message: str, field: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint


def check_names(query: Query, *also: str) -> None:
    """Refuse a name that nothing reads: a filter with a slip would show everything."""
    known = FILTER_NAMES | set(also)
    for name in query:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise BadQuery(f"there is no filter {name!r}", name, hint)


def entry_filter(query: Query) -> EntryFilter:
    """The filter that a query describes; values of one name are alternatives."""
    return EntryFilter(
        states=_words(query, "state", tuple(State)),
        held=_held(query),
        event_types=_all(query, "type"),
        severities=_words(query, "severity", _SEVERITIES),
        clusters=_all(query, "cluster"),
        namespaces=_all(query, "namespace"),
        services=_all(query, "service"),
        q=_one(query, "q") or "",
        since=time_of(query, "since"),
        until=time_of(query, "until"),
    )


def time_of(query: Query, name: str) -> int | None:
    """A time in ms since 1970, None where it is not given."""
    text = _one(query, name)
    if not text:
        return None
    try:
        return parse_rfc3339(text)
    except ValueError as error:
        raise BadQuery(
            f"{name} is not a time: {error}", name, "write it as 2026-11-21T23:31:36Z"
        ) from None


def whole_number(query: Query, name: str, default: int, highest: int) -> int:
    """A whole number from 1 on; more than the highest counts as the highest."""
    text = _one(query, name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise BadQuery(f"{name} is not a whole number from 1 on: {text!r}", name)
    return min(int(text), highest)


def text_of(query: Query, name: str) -> str | None:
    """A single text, None where it is not given."""
    return _one(query, name)


def axis(since: int, until: int, buckets: int) -> tuple[int, int, int]:
    """(since, until, step_ms) on whole steps, that hold at most `buckets` of them."""
    span = max(until - since, 1)
    for step_ms in STEPS_MS:
        low = since - since % step_ms
        high = until + -until % step_ms
        if (high - low) // step_ms <= buckets:
            return low, max(high, low + step_ms), step_ms
    step_ms = span // max(buckets - 1, 1) + 1
    return since, until, step_ms


def _all(query: Query, name: str) -> tuple[str, ...]:
    values = tuple(dict.fromkeys(value for value in query.getall(name, []) if value))
    if len(values) > VALUES_MAX:
        raise BadQuery(f"{name} is given more than {VALUES_MAX} times", name)
    for value in values:
        if len(value) > VALUE_LENGTH_MAX:
            raise BadQuery(f"{name} is longer than {VALUE_LENGTH_MAX} characters", name)
    return values


def _one(query: Query, name: str) -> str | None:
    values = _all(query, name)
    if len(values) > 1:
        raise BadQuery(f"{name} is given more than once", name)
    return values[0] if values else None


def _words(query: Query, name: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    values = _all(query, name)
    for value in values:
        if value not in allowed:
            raise BadQuery(
                f"{name} cannot be {value!r}", name, f"allowed are {', '.join(map(str, allowed))}"
            )
    return values


def _held(query: Query) -> bool | None:
    value = _one(query, "held")
    if value is None:
        return None
    if value not in ("true", "false"):
        raise BadQuery(f"held cannot be {value!r}", "held", "allowed are true, false")
    return value == "true"
