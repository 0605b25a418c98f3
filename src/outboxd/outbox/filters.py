"""What a listing is asked for: the one reader of its query.

`GET /v1/events` and the page's other routes, the commands while no agent runs,
and the sandbox ask here, so that names, limits, defaults and refusals are the
same everywhere. Pure: it reads names and values and looks nothing up.

A filter may be given several times: within one any value matches, between them
all must. What is not known or not valid is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from outboxd.errors import BadQuery
from outboxd.outbox.model import DeadReason, EntryFilter, Source, State
from outboxd.producer_names import AGENT, TOKEN, USER
from outboxd.times import parse_rfc3339

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
VALUE_MAX = 1000  # characters of one value
VALUES_MAX = 100  # of one filter
ID_PREFIX_MIN = 8  # characters: an id begins with its time, 65 seconds share these

STATES = tuple(state.value for state in State)
REASONS = tuple(reason.value for reason in DeadReason)
SOURCES = tuple(source.value for source in Source)
# Komodor's words in any case, and the short form of its documentation.
SEVERITIES: Mapping[str, str] = {
    "information": "information",
    "info": "information",
    "warning": "warning",
    "error": "error",
}

# Filters whose values can be excluded too, as `notType` and so on.
LISTS = (
    *("state", "type", "severity", "cluster", "namespace", "service"),
    *("reason", "status", "source", "producer"),
)
EXCLUSIONS = {f"not{name.capitalize()}": name for name in LISTS}
FILTERS = (*LISTS, "held", "id", "key", "error", "q", "since", "until", *EXCLUSIONS)

Pairs = Sequence[tuple[str, str]]  # names and values, decoded, in order
_Given = str | int | bool | list[str | int | bool]


class Wanted(NamedTuple):
    """A page of a listing, as it is asked for."""

    where: EntryFilter
    cursor: str | None  # `next` of the page before
    limit: int


def read_listing(query: Pairs) -> Wanted:
    """The filters with `limit` and `cursor`. Raises BadQuery."""
    check_names(query, "limit", "cursor")
    values = _Values(query)
    limit = values.number("limit", LIMIT_DEFAULT, LIMIT_MAX)
    return Wanted(_filter(values), values.one("cursor"), limit)


def read_filter(query: Pairs, *others: str) -> EntryFilter:
    """The filters; `others` are names that may stand beside them. Raises BadQuery."""
    check_names(query, *others)
    return _filter(_Values(query))


def read_order(query: Pairs, body: bytes) -> EntryFilter:
    """The filters of a change of many: in the query, or a JSON object of the same
    names with a value or a list of values each. Raises BadQuery."""
    try:
        given = msgspec.json.decode(body, type=dict[str, _Given]) if body.strip() else {}
    except msgspec.DecodeError as error:
        hint = 'such as {"reason": "rejected", "type": ["deploy", "backup"]}, {} for all'
        raise BadQuery(f"the filters cannot be read: {error}", None, hint) from None
    pairs = list(query)
    for name, values in given.items():
        several = values if isinstance(values, list) else [values]
        pairs += [(name, _plain(value)) for value in several]
    return read_filter(pairs)


def _plain(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_number(query: Pairs, name: str, default: int, highest: int) -> int:
    """A whole number from 1 to `highest`. Raises BadQuery."""
    return _Values(query).number(name, default, highest)


def read_cursor(cursor: str | None) -> int | None:
    """Where a listing goes on. Raises BadQuery for what no listing gave."""
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        hint = "use the `next` of the page before, as it is"
        raise BadQuery("the cursor is none of ours", "cursor", hint)
    return int(cursor)


def check_names(query: Pairs, *others: str) -> None:
    """Refuse a name that nothing reads: a filter with a slip would show everything."""
    known = (*FILTERS, *others)
    for name, _ in query:
        if name not in known:
            # Here, because only a wrong name pays for it.
            from difflib import get_close_matches

            near = get_close_matches(name[:60], known, n=1)
            shown = [each for each in known if each not in EXCLUSIONS]
            hint = f"did you mean {near[0]!r}?" if near else "filters are " + ", ".join(shown)
            raise BadQuery(f"there is no filter {name[:60]!r}", name[:60], hint)


def _filter(values: _Values) -> EntryFilter:
    return EntryFilter(
        states=values.checked("state", _CHECKS["state"]),
        held=values.flag("held"),
        event_types=values.many("type"),
        severities=values.checked("severity", _CHECKS["severity"]),
        clusters=values.many("cluster"),
        namespaces=values.many("namespace"),
        services=values.many("service"),
        dead_reasons=values.checked("reason", _CHECKS["reason"]),
        last_statuses=tuple(int(text) for text in values.checked("status", _status)),
        sources=values.checked("source", _CHECKS["source"]),
        producers=values.checked("producer", _CHECKS["producer"]),
        dedup_key=values.one("key"),
        id=values.id_prefix(),
        error=values.one("error") or "",
        q=values.one("q") or "",
        since=values.time("since"),
        until=values.time("until"),
        excluded=tuple(
            (name, value)
            for given, name in EXCLUSIONS.items()
            for value in values.checked(given, _CHECKS.get(name, str))
        ),
    )


class _Values:
    """The values of a query by name; each way to read one refuses what it cannot be."""

    def __init__(self, query: Pairs) -> None:
        self._found: dict[str, list[str]] = {}
        for name, value in query:
            self._found.setdefault(name, []).append(value)

    def many(self, name: str) -> tuple[str, ...]:
        """Every value once; empty ones count as not given."""
        values = tuple(dict.fromkeys(value for value in self._found.get(name, ()) if value))
        if len(values) > VALUES_MAX:
            hint = f"at most {VALUES_MAX}"
            raise BadQuery(f"{name} is given {len(values)} times", name, hint)
        for value in values:
            if len(value) > VALUE_MAX:
                raise BadQuery(f"{name} is too long", name, f"at most {VALUE_MAX} characters")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise BadQuery(f"{name} is not UTF-8", name, "encode it as UTF-8") from None
        return values

    def one(self, name: str) -> str | None:
        values = self.many(name)
        if len(values) > 1:
            raise BadQuery(f"{name} is given {len(values)} times", name, "give it once")
        return values[0] if values else None

    def checked(self, name: str, check: Callable[[str], str]) -> tuple[str, ...]:
        """Every value as `check` has it; what it raises ValueError for is refused."""
        found = []
        for value in self.many(name):
            try:
                found.append(check(value))
            except ValueError as error:
                raise BadQuery(f"{name}={value[:60]!r} is not known", name, str(error)) from None
        return tuple(found)

    def flag(self, name: str) -> bool | None:
        value = self.one(name)
        if value is None:
            return None
        if value not in ("true", "false"):
            raise BadQuery(f"{name}={value[:60]!r} is not known", name, "it is true or false")
        return value == "true"

    def time(self, name: str) -> int | None:
        value = self.one(name)
        if value is None:
            return None
        try:
            return parse_rfc3339(value)
        except ValueError as error:
            hint = "write it as 2026-11-21T23:31:36Z (in a URL, + is %2B)"
            raise BadQuery(f"{name}={value[:60]!r}: {error}", name, hint) from None

    def number(self, name: str, default: int, highest: int) -> int:
        value = self.one(name)
        if value is None:
            return default
        if value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= highest:
            return int(value)
        hint = f"a whole number from 1 to {highest}"
        raise BadQuery(f"{name}={value[:60]!r} is not possible", name, hint)

    def id_prefix(self) -> str | None:
        value = self.one("id")
        if value is None:
            return None
        if not may_begin_an_id(value):
            hint = f"give an id, or at least the first {ID_PREFIX_MIN} characters of one"
            raise BadQuery(f"id={value[:60]!r} cannot begin an id", "id", hint)
        return value.lower()


def may_begin_an_id(text: str) -> bool:
    """Whether an id, or enough of its beginning to look it up."""
    return ID_PREFIX_MIN <= len(text) <= 36 and all(c in "0123456789abcdefABCDEF-" for c in text)


def _word(known: Iterable[str]) -> Callable[[str], str]:
    words = known if isinstance(known, Mapping) else {word: word for word in known}

    def check(value: str) -> str:
        word = words.get(value.lower())
        if word is None:
            raise ValueError("it is one of " + ", ".join(dict.fromkeys(words.values())))
        return word

    return check


def _status(value: str) -> str:
    if len(value) == 3 and value.isascii() and value.isdigit():
        return value
    raise ValueError("an HTTP status has three digits, such as 422")


def _producer(value: str) -> str:
    uid = value.removeprefix(USER)
    is_user = uid != value and uid.isascii() and uid.isdigit()
    if is_user or value == AGENT or value.removeprefix(TOKEN) not in ("", value):
        return value
    raise ValueError("it is uid:1000, token:web-hosts, or agent")


_CHECKS: dict[str, Callable[[str], str]] = {
    "state": _word(STATES),
    "severity": _word(SEVERITIES),
    "reason": _word(REASONS),
    "status": _status,
    "source": _word(SOURCES),
    "producer": _producer,
}
