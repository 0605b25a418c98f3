"""JSON read strictly: what two readers could understand differently is refused.

Duplicate keys at any level, a BOM, NaN and Infinity, lone surrogates, U+0000
and nesting deeper than `DEPTH_MAX` all end in an EventError that names the
place. Numbers are never converted, so that none is rounded and a huge one
costs nothing; every member of the outermost object comes with the span of its
text. This is the hot path: a good text is read once by the interpreter's C
scanner; only a bad one is read again, by `jsonfaults`, to say where it is bad.

It must stay light: `json` itself (which brings `re`) is imported only to
explain an error or to encode nested values.
"""

from __future__ import annotations

from outboxd.errors import EventError
from outboxd.event.jsontext import DEPTH_MAX, SPACE, Number, encode, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, NoReturn

    Member = tuple[Any, int, int]

    def scanstring(text: str, start: int, strict: bool) -> tuple[str, int]: ...
    def _scan(text: str, start: int) -> tuple[Any, int]: ...


class Unexplained(EventError):
    """The text is bad, and to say why would take time that the caller has not got now."""


def read_object(text: str, explained: bool = True) -> dict[str, Member]:
    """The members of the JSON object that `text` is: name to (value, start, end of its text).

    Raises EventError, which says what is wrong and where; Unexplained where it need
    not be `explained`.
    """
    try:
        members, end = _members(text)
        if end != len(text) and text[end:].strip(SPACE):
            raise _Fault
        if _has_suspicious_escape(text):
            strings = "".join(_strings(members))
            strings.encode()  # fails for lone surrogates
            if "\0" in strings:
                raise _Fault
        if text.count("{") + text.count("[") > DEPTH_MAX and _is_too_deep(members):
            raise _Fault
    except _FAULTS:
        if not explained:
            raise Unexplained("the text is no strict JSON object") from None
        from outboxd.event.jsonfaults import explain

        raise explain(text) from None
    return members


def merge(object_text: str, additions: Mapping[str, object], overwrite: Iterable[str] = ()) -> str:
    """The JSON object with members added, all other text left as it is.

    Names that are there already keep their value, but those in `overwrite`.
    """
    members = read_object(object_text)
    added = [
        f"{quoted(name)}:{encode(value)}"
        for name, value in additions.items()
        if name not in members
    ]
    replaced = [name for name in additions if name in members and name in overwrite]
    # From the back, so that the spans before stay true.
    for name in sorted(replaced, key=lambda name: -members[name][1]):
        _, start, end = members[name]
        object_text = object_text[:start] + encode(additions[name]) + object_text[end:]
    if not added:
        return object_text
    opened = object_text.rstrip(SPACE)[:-1]
    return f"{opened}{',' if members else ''}{','.join(added)}}}"


class _Fault(Exception):
    """The text is bad; `jsonfaults` finds out why."""


# SystemError: CPython 3.11 raises it for bad JSON while `json.decoder` was never imported.
_FAULTS = (_Fault, ValueError, StopIteration, IndexError, RecursionError, SystemError)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise _Fault
    return unique


def _no_constant(name: str) -> NoReturn:
    raise _Fault


class _Rules:
    """What the scanner asks for; see `json.JSONDecoder`."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_unique)
    parse_float = Number
    parse_int = Number
    parse_constant = staticmethod(_no_constant)


if not TYPE_CHECKING:
    try:
        # The C core of the standard `json`, without the regular expressions around it: importing
        # those costs a cron job more than all the rest of `emit`.
        from _json import make_scanner, scanstring

        _scan = make_scanner(_Rules)
    except ImportError:  # an interpreter without it; slower, and the same otherwise
        from json import JSONDecoder
        from json.decoder import scanstring

        _scan = JSONDecoder(
            object_pairs_hook=_unique,
            parse_float=Number,
            parse_int=Number,
            parse_constant=_no_constant,
        ).scan_once


def _members(text: str) -> tuple[dict[str, Member], int]:
    """The outermost object's members, and the index behind it."""
    members: dict[str, Member] = {}
    index = _skip(text, 0)
    if text[index] != "{":
        raise _Fault
    index = _skip(text, index + 1)
    if text[index] == "}":
        return members, index + 1
    # Spelled out rather than split in functions: each call here costs every receipt.
    while True:
        if text[index] != '"':
            raise _Fault
        name, index = scanstring(text, index + 1, True)
        if text[index] != ":":
            index = _skip(text, index)
            if text[index] != ":":
                raise _Fault
        index += 1
        if text[index] in SPACE:
            index = _skip(text, index + 1)
        if name in members:
            raise _Fault
        if text[index] == '"':
            value, end = scanstring(text, index + 1, True)
        else:
            value, end = _scan(text, index)
        members[name] = (value, index, end)
        mark = text[end]
        if mark != ",":
            if mark in SPACE:
                end = _skip(text, end + 1)
                mark = text[end]
            if mark == "}":
                return members, end + 1
            if mark != ",":
                raise _Fault
        index = end + 1
        if text[index] in SPACE:
            index = _skip(text, index + 1)


def _skip(text: str, index: int) -> int:
    """Past white space; IndexError at the end of the text, where more is always due."""
    while text[index] in SPACE:
        index += 1
    return index


def _has_suspicious_escape(text: str) -> bool:
    """Whether an escape may stand for a surrogate or U+0000. May be wrong only towards yes."""
    return "\\u" in text and ("\\ud" in text or "\\uD" in text or "\\u0000" in text)


def _levels(members: dict[str, Member]) -> Iterable[list[Any]]:
    """The containers of each level below the outermost object."""
    level = [value for value, _, _ in members.values() if type(value) in (dict, list)]
    while level:
        yield level
        level = [
            value
            for container in level
            for value in (container.values() if type(container) is dict else container)
            if type(value) in (dict, list)
        ]


def _is_too_deep(members: dict[str, Member]) -> bool:
    return any(depth > DEPTH_MAX for depth, _ in enumerate(_levels(members), 2))


def _strings(members: dict[str, Member]) -> list[str]:
    """Every key and every string in it."""
    found = list(members)
    found += [value for value, _, _ in members.values() if type(value) is str]
    for level in _levels(members):
        for container in level:
            values = container
            if type(container) is dict:
                found += container
                values = container.values()
            found += [value for value in values if type(value) is str]
    return found
