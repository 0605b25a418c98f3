"""How entries and figures look to people: plain tables and aligned fields.

Pure text. Whatever came with an event is shown so that it cannot steer a
terminal; a table is cut to the terminal's width, and never where it is piped.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from outboxd.cli.rows import ListedEntry
from outboxd.text import harmless
from outboxd.times import parse_rfc3339
from outboxd.units import format_duration

NARROWEST = 6  # columns of a cell that was cut
_NO_WIDTH = ("Mn", "Me", "Cf")  # what is put upon, around or between characters
WIDE = 120  # columns from which on a listing has its scope

# (entries, now in ms, columns of the terminal or None, coloured): lines
EntriesTable = Callable[[Iterable[ListedEntry], int, int | None, bool], list[str]]


def width(text: str) -> int:
    """How many columns a terminal gives the text."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(each) in _NO_WIDTH
        else 2
        if unicodedata.east_asian_width(each) in "WF"
        else 1
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


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    columns: int | None,
    cut_first: Sequence[int] = (),
    paint: Callable[[int, int], str] = lambda row, column: "",
    leave_out: Sequence[int] = (),
) -> list[str]:
    """Lines of a table that fit into `columns` (None: as wide as they need).

    Where they do not fit the columns of `cut_first` are cut, in that order, and the
    last one at last; where that is too little those of `leave_out` are left out, in
    that order. `paint(row, column)` names the colour of a cell.
    """
    cells = [list(heads), *([harmless(cell) for cell in row] for row in rows)]
    widths = [max(width(row[index]) for row in cells) for index in range(len(heads))]
    there = list(range(len(heads)))
    if columns is not None:
        cuts = (*cut_first, len(heads) - 1)
        _narrow(widths, there, [width(head) for head in heads], columns, cuts, leave_out)
    lines = []
    for number, row in enumerate(cells):
        shown = [_cell(row[index], widths[index]) for index in there]
        shown[-1] = shown[-1].rstrip()
        if number:
            names = [paint(number - 1, index) for index in there]
            shown = [
                colour(cell, name, True) if name else cell
                for cell, name in zip(shown, names, strict=True)
            ]
        lines.append("  ".join(shown).rstrip())
    return lines


def _narrow(
    widths: list[int],
    there: list[int],
    heads: Sequence[int],
    columns: int,
    cuts: Sequence[int],
    leave_out: Sequence[int],
) -> None:
    """Make `widths`, and the columns that are `there`, fit."""
    least = [
        min(own, max(NARROWEST, heads[index])) if index in cuts else own
        for index, own in enumerate(widths)
    ]

    def over(by: Sequence[int]) -> int:
        return sum(by[index] for index in there) + 2 * (len(there) - 1) - columns

    for index in leave_out:
        if over(least) <= 0:
            break
        there.remove(index)
    for index in cuts:
        if index in there:
            widths[index] -= max(0, min(over(widths), widths[index] - least[index]))
    # Narrower than any terminal should be: then the last column has what is left.
    widths[there[-1]] = max(1, widths[there[-1]] - max(0, over(widths)))


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


def state_text(entry: ListedEntry, now_ms: int) -> str:
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


SEVERITY_COLOURS = {"warning": "yellow", "error": "red"}


def entries_table(
    entries: Iterable[ListedEntry], now_ms: int, columns: int | None, coloured: bool = False
) -> list[str]:
    """The listing of `events`; on a terminal an entry has one line."""
    entries = list(entries)
    wide = columns is None or columns >= WIDE
    severity = "SEVERITY" if wide else "SEV"
    heads = ["ID", "RECEIVED", "STATE", severity, "TYPE", *(["SCOPE"] * wide), "SUMMARY"]
    rows = [
        (
            _id(entry, columns),
            _received(entry, now_ms, columns),
            state_text(entry, now_ms) if wide else short_state(entry),
            entry.severity if wide else entry.severity[:4],
            entry.event_type,
            *([scope_text(entry.scope)] * wide),
            entry.summary,
        )
        for entry in entries
    ]

    def paint(row: int, column: int) -> str:
        if not coloured:
            return ""
        if heads[column] == "STATE":
            return _state_colour(entries[row])
        is_severity = heads[column] == severity
        return SEVERITY_COLOURS.get(entries[row].severity, "") if is_severity else ""

    cut_first = (4, 5) if wide else (4,)
    return table(heads, rows, columns, cut_first, paint, leave_out=(1, 3, 4, len(heads) - 1))


NO_ERROR = {"expired": "its time to live ran out"}


def dead_letters_table(
    entries: Iterable[ListedEntry], now_ms: int, columns: int | None, coloured: bool = False
) -> list[str]:
    """The listing of `dead-letters`: why each was given up, and what it was told, stands
    before what it says. Where there is no room status and error say the reason."""
    entries = list(entries)
    heads = ("ID", "RECEIVED", "REASON", "STATUS", "TYPE", "ERROR", "SUMMARY")
    rows = [
        (
            _id(entry, columns),
            _received(entry, now_ms, columns),
            entry.dead_reason or "",
            "-" if entry.last_status is None else str(entry.last_status),
            entry.event_type,
            entry.last_error or NO_ERROR.get(entry.dead_reason or "", "-"),
            entry.summary,
        )
        for entry in entries
    ]
    wide = columns is None or columns >= WIDE
    return table(
        heads,
        rows,
        columns,
        cut_first=(4, 5) if wide else (4, 6, 5),
        paint=lambda _, column: "red" if coloured and column == 2 else "",
        leave_out=(2, 1, 6, 4),
    )


def _id(entry: ListedEntry, columns: int | None) -> str:
    """What `show` takes: short for eyes, whole for programs."""
    return entry.id if columns is None or not entry.short_id else entry.short_id


def _received(entry: ListedEntry, now_ms: int, columns: int | None) -> str:
    if columns is None:
        return local_time(entry.received_at)
    moment, now = (time.localtime(at / 1000) for at in (parse_rfc3339(entry.received_at), now_ms))
    if moment[:3] == now[:3]:
        return time.strftime("%H:%M:%S", moment)
    return time.strftime("%m-%d %H:%M" if moment[0] == now[0] else "%Y-%m-%d", moment)


def short_state(entry: ListedEntry) -> str:
    """An entry's state in a word."""
    if entry.state == "dead":
        return "dead" if entry.last_status is None else f"dead {entry.last_status}"
    return "held" if entry.held and entry.state == "pending" else entry.state


def _state_colour(entry: ListedEntry) -> str:
    if entry.state == "pending":
        return "yellow" if entry.held else "bold"
    return "red" if entry.state == "dead" else "green"


def _cell(text: str, columns: int) -> str:
    shown = cut(text, columns)
    return shown + " " * (columns - width(shown))


COLOUR_CODES = {"green": "32", "yellow": "33", "red": "31", "bold": "1", "dim": "2"}


def colours() -> bool:
    """Whether the output may be coloured."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def colour(text: str, name: str, coloured: bool) -> str:
    """The text in a colour, where colours are wanted."""
    code = COLOUR_CODES.get(name)
    return f"\x1b[{code}m{text}\x1b[0m" if coloured and code else text
