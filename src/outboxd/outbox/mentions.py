"""Free text search: whether an entry has a text where a reader would see it. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from outboxd.outbox.filters import may_begin_an_id


class Text(NamedTuple):
    """What of an entry a text is looked for in."""

    id: str
    dedup_key: str | None
    attempts: str
    body: str


def mentions(text: Text, needle: str) -> bool:
    """Whether an entry has the (case-folded) text where a reader would see it.

    The names of fields and the keys of details are no such place. A number of three
    digits is an HTTP status as well.
    """
    if text.dedup_key is not None and needle in text.dedup_key.casefold():
        return True
    if text.attempts != "[]" and _in_attempts(text.attempts, needle):
        return True
    if may_begin_an_id(needle) and text.id.startswith(needle):
        return True
    body = text.body
    # Most bodies do not have it anywhere: only those that may are taken apart.
    if needle not in body.casefold() and "\\" not in body:
        return False
    return any(needle in value.casefold() for value in _values(_decode_body(body)))


def in_last_error(attempts: str, needle: str) -> bool:
    """Whether the last attempt's error has the text."""
    rows = msgspec.json.decode(attempts)
    return bool(rows) and needle in (rows[-1][4] or "").casefold()


def _in_attempts(attempts: str, needle: str) -> bool:
    rows = msgspec.json.decode(attempts)
    return any(
        needle == str(status) or needle in (error or "").casefold()
        for _, _, _, status, error in rows
    )


# A number is looked for as its producer wrote it.
_decode_body = msgspec.json.Decoder(float_hook=str).decode


def _values(value: Any) -> list[str]:
    """The texts in a JSON value, without its keys; iterative, for it may nest deeply."""
    found: list[str] = []
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, str):
            found.append(each)
        elif isinstance(each, dict):
            todo.extend(each.values())
        elif isinstance(each, list):
            todo.extend(each)
        elif each is not None:
            found.append(str(each).lower() if isinstance(each, bool) else str(each))
    return found
