"""Free text search: whether a body holds a text. Pure."""

from __future__ import annotations

import msgspec


def mentions(body: str, needle: str) -> bool:
    """Whether a body holds the (case-folded) text, however JSON has escaped it."""
    if needle in body.casefold():
        return True
    if "\\" not in body:
        return False
    plain = msgspec.json.encode(msgspec.json.decode(body)).decode()
    unescaped = plain.replace('\\"', '"').replace("\\\\", "\\").replace("\\n", "\n")
    return needle in unescaped.casefold()
