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
from outboxd.text import harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, NoReturn

    Member = tuple[Any, int, int]

    def scanstring(text: str, start: int, strict: bool) -> tuple[str, int]: ...
    def quoted(text: str) -> str: ...
    def _quoted_ascii(text: str) -> str: ...
    def _scan(text: str, start: int) -> tuple[Any, int]: ...


DEPTH_MAX = 100
SPACE = " \t\n\r"
_PATH_MAX = 200
_PLAIN_MAX = 1 << 63


class Number(str):
    """A JSON number as it was written; a JSON string is a plain `str`."""

    __slots__ = ()


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


def encode(value: object) -> str:
    """One value as compact JSON; ValueError or TypeError if JSON cannot say it."""
    if type(value) is str:
        return quoted(value)
    if type(value) is int and -_PLAIN_MAX < value < _PLAIN_MAX:
        return str(value)
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is float and value - value == 0:  # finite
        return repr(value)
    # What `emit` is given on a command line, lists of names and details that
    # are strings, is written without `json`.
    if type(value) is list and all(type(each) is str for each in value):
        return f"[{','.join(map(quoted, value))}]"
    if type(value) is dict and all(type(name) is str for name in value):
        members = (f"{quoted(name)}:{encode(each)}" for name, each in value.items())
        return f"{{{','.join(members)}}}"
    import json

    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def shown(text: str, length_max: int = 60) -> str:
    """Text of unknown origin, short and harmless enough for a message."""
    if len(text) > length_max:
        text = text[: length_max - 1] + "…"
    return harmless(text)


def path_to(parent: str, key: str | int) -> str:
    """`$.scope` and "clusters" make `$.scope.clusters`; and then 0, `$.scope.clusters[0]`."""
    if isinstance(key, int):
        step = f"[{key}]"
    elif key.isascii() and key.replace("-", "_").isidentifier():
        step = f".{shown(key)}"
    else:
        step = f"[{_quoted_ascii(shown(key))}]"
    return parent if len(parent) > _PATH_MAX else parent + step


def kind_of(value: Any) -> str:
    """What a value is called in JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (Number, int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


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
        from _json import encode_basestring as quoted
        from _json import encode_basestring_ascii as _quoted_ascii
        from _json import make_scanner, scanstring

        _scan = make_scanner(_Rules)
    except ImportError:  # an interpreter without it; slower, and the same otherwise
        from json import JSONDecoder
        from json.decoder import scanstring
        from json.encoder import encode_basestring as quoted
        from json.encoder import encode_basestring_ascii as _quoted_ascii

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
