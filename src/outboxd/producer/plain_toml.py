"""A fast reader for the plain TOML that nearly every configuration is.

`tomllib` costs a cron job more to import than all the rest of `emit`, and
Python 3.10 has none. So a configuration of tables, and of texts, whole numbers,
true, false and one-line lists of texts, is read here line by line. What is
anything else, wrong or merely unusual, is passed over, and the answer says that
it is not the whole: then `tomllib` decides, where there is one. What is read as
a whole `tomllib` would take too, and read in the same way.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def read(text: str) -> tuple[dict[str, Any], bool]:
    """The plain tables and values of a configuration, and whether that is all of it."""
    root: dict[str, Any] = {}
    table: dict[str, Any] | None = root
    declared = set()
    is_whole = True
    for line in text.replace("\r\n", "\n").split("\n"):
        line = line.strip(" \t")
        if not line or (line[0] == "#" and _is_printable(line)):
            continue
        if line[0] == "[":
            name = _header(line) if _is_printable(line) else None
            if name is None or name in declared or name in root:
                # Whose the lines below are is not clear.
                is_whole, table = False, None
                continue
            declared.add(name)
            table = root[name] = {}
            continue
        name, value = _assignment(line) if _is_printable(line) else ("", None)
        if value is None or table is None or name in table:
            is_whole = False
            continue
        table[name] = value
    return root, is_whole


def _is_printable(line: str) -> bool:
    return line.isprintable() or line.replace("\t", "").isprintable()


def _assignment(line: str) -> tuple[str, Any | None]:
    """The name and value of a line, which is None for anything that is not plain."""
    name, equals, rest = line.partition("=")
    name = name.rstrip(" \t")
    if not equals or not name or not _BARE.issuperset(name):
        return "", None
    return name, _value(rest.strip(" \t"))


def _header(line: str) -> str | None:
    name, closed, rest = line[1:].partition("]")
    name = name.strip(" \t")
    if not closed or not name or not _BARE.issuperset(name) or not _is_end(rest):
        return None
    return name


def _value(text: str) -> Any | None:
    """One value with nothing but a comment behind it."""
    if text[:1] == "[":
        return _list(text)
    if text[:1] == '"':
        found = _string(text)
        return found[0] if found and _is_end(found[1]) else None
    word = text.partition("#")[0].rstrip(" \t")
    if word in ("true", "false"):
        return word == "true"
    if word.isascii() and word.isdigit() and len(word) < 16 and (word[0] != "0" or word == "0"):
        return int(word)
    return None


def _list(text: str) -> list[str] | None:
    values = []
    rest = text[1:].lstrip(" \t")
    while rest[:1] == '"':
        found = _string(rest)
        if found is None:
            return None
        values.append(found[0])
        rest = found[1].lstrip(" \t")
        if rest[:1] != ",":
            break
        rest = rest[1:].lstrip(" \t")
    return values if rest[:1] == "]" and _is_end(rest[1:]) else None


def _string(text: str) -> tuple[str, str] | None:
    """A text without escapes, and what is behind it."""
    value, closed, rest = text[1:].partition('"')
    # Three quotes would begin a text of several lines.
    if not closed or "\\" in value or (not value and rest[:1] == '"'):
        return None
    return value, rest


def _is_end(rest: str) -> bool:
    rest = rest.lstrip(" \t")
    return not rest or rest[0] == "#"
