"""How entries and figures look to people: plain tables and aligned fields.

Pure text. Whatever came with an event is shown so that it cannot steer a
terminal; a table is cut to the terminal's width, and never where it is piped.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence

from outboxd.cli.rows import EntryRow
from outboxd.producer.messages import printable as printable  # used with this room's name
from outboxd.times import parse_rfc3339
from outboxd.units import format_duration

NARROWEST = 8  # columns of a cell that was cut


def width(text: str) -> int:
    """How many columns a terminal gives the text."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def cut(text: str, columns: int) -> str:
    """The text in at most so many columns, with an ellipsis where it was cut."""
    if width(text) <= columns:
        return text
    kept = ""
    used = 1
    for each in text:
        used += width(each)
        if used > columns:
            break
        kept += each
    return kept + "…"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], columns: int | None) -> list[str]:
    """Lines of a table; the last column takes what is left of `columns` (None: all it needs)."""
    cells = [list(heads), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(width(row[index]) for row in cells) for index in range(len(heads))]
    if columns is not None:
        left = columns - sum(widths[:-1]) - 2 * (len(heads) - 1)
        widths[-1] = min(widths[-1], max(NARROWEST, left))
    return ["  ".join(_cells(row, widths)).rstrip() for row in cells]


def fields(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of aligned `name: value`; a value of several lines is indented under itself."""
    pairs = list(pairs)
    indent = max(len(name) for name, _ in pairs) + 2
    lines = []
    for name, value in pairs:
        first, *others = value.split("\n")
        lines.append(f"{name + ':':<{indent}}{first}".rstrip())
        lines += [" " * indent + other for other in others]
    return lines


def terminal_columns() -> int | None:
    """The width to keep to; None where the output goes elsewhere."""
    if not sys.stdout.isatty():
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns or None


def local_time(text: str | None, with_zone: bool = False) -> str:
    """A time of the agent's as the reader's own clock has it."""
    if text is None:
        return "-"
    moment = time.localtime(parse_rfc3339(text) / 1000)
    return time.strftime("%Y-%m-%d %H:%M:%S" + (" %Z" if with_zone else ""), moment)


def distance(text: str | None, now_ms: int) -> str:
    """How far off a time is: "3m 10s ago" or "in 42s"."""
    if text is None:
        return "-"
    seconds = (now_ms - parse_rfc3339(text)) / 1000
    if seconds < 0:
        return f"in {format_duration(-seconds)}"
    return f"{format_duration(seconds)} ago"


def time_and_distance(text: str | None, now_ms: int) -> str:
    """Both, for a field of its own."""
    return "-" if text is None else f"{local_time(text, True)} ({distance(text, now_ms)})"


def state_text(entry: EntryRow, now_ms: int) -> str:
    """An entry's state in a word or three."""
    if entry.state == "dead":
        return f"dead: {entry.dead_reason}"
    if entry.state == "pending" and entry.held:
        return "held"
    if entry.state == "pending" and entry.due_at and parse_rfc3339(entry.due_at) > now_ms:
        return f"pending, {distance(entry.due_at, now_ms)}"
    return entry.state


def scope_text(scope: dict[str, list[str]] | None) -> str:
    """Where an event is seen: "cluster=prod namespace=shop,pay"."""
    parts = []
    for key, word in (
        ("clusters", "cluster"),
        ("namespaces", "namespace"),
        ("servicesNames", "service"),
    ):
        names = (scope or {}).get(key)
        if names:
            parts.append(f"{word}={','.join(names)}")
    return " ".join(parts)


def entries_table(entries: Iterable[EntryRow], now_ms: int, columns: int | None) -> list[str]:
    """The listing of `events` and `dead-letters list`."""
    heads = ("ID", "RECEIVED", "STATE", "SEVERITY", "TYPE", "SCOPE", "SUMMARY")
    rows = [
        (
            entry.id,
            local_time(entry.received_at),
            state_text(entry, now_ms),
            entry.severity,
            cut(printable(entry.event_type), 30) if columns else entry.event_type,
            cut(printable(scope_text(entry.scope)), 30) if columns else scope_text(entry.scope),
            entry.summary,
        )
        for entry in entries
    ]
    return table(heads, rows, columns)


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    shown = [cut(cell, columns) for cell, columns in zip(row, widths, strict=True)]
    return [
        cell + " " * (columns - width(cell)) for cell, columns in zip(shown, widths, strict=True)
    ]


COLOUR_CODES = {"green": "32", "yellow": "33", "red": "31", "bold": "1", "dim": "2"}


def colours() -> bool:
    """Whether the output may be coloured."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def colour(text: str, name: str, coloured: bool) -> str:
    """The text in a colour, where colours are wanted."""
    code = COLOUR_CODES.get(name)
    return f"\x1b[{code}m{text}\x1b[0m" if coloured and code else text
