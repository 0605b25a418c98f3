"""Free text search: whether an entry has a text where a reader would see it. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from outboxd.outbox.filters import may_begin_an_id
from outboxd.outbox.model import EntryFilter


class Text(NamedTuple):
    """What of an entry a text is looked for in."""

    id: str
    dedup_key: str | None
    attempts: str
    body: str


class Texts(NamedTuple):
    """What a filter asks for that no count by value can tell."""

    q: str = ""
    error: str = ""
    dedup_key: str | None = None
    id: str | None = None

    @classmethod
    def of(cls, where: EntryFilter) -> Texts:
        """Of a filter; its texts case-folded."""
        return cls(where.q.casefold(), where.error.casefold(), where.dedup_key, where.id)

    def match(self, text: Text) -> bool:
        """Whether an entry has all of them."""
        return (
            (self.dedup_key is None or self.dedup_key == text.dedup_key)
            and (self.id is None or text.id.startswith(self.id))
            and (not self.error or in_last_error(text.attempts, self.error))
            and (not self.q or mentions(text, self.q))
        )


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


def like_pattern(text: str) -> str:
    """What an engine's LIKE takes to find the text anywhere, with "!" as its escape."""
    for special in "!%_":
        text = text.replace(special, "!" + special)
    return f"%{text}%"


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
