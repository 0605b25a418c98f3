"""How little of an id names an entry among all others. Pure."""

from __future__ import annotations

# What two ids of different milliseconds differ in: eight digits, a dash, four digits.
SHORT_ID_MIN = 13


def short_id(id: str, before: str | None, after: str | None) -> str:
    """The shortest beginning of an id that its neighbours in the order of ids do not have;
    None is no neighbour."""
    digits = SHORT_ID_MIN
    while any(other is not None and other.startswith(id[:digits]) for other in (before, after)):
        digits += 1
    return id[: digits + 1] if id[digits - 1 : digits] == "-" else id[:digits]
