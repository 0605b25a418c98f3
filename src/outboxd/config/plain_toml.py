"""A fast reader for the plain TOML that nearly every configuration is.

`tomllib` costs a cron job more to import than all the rest of `emit`. So a
configuration of tables, and of texts, whole numbers, true, false and one-line
lists of texts, is read here; for anything else, wrong or merely unusual, the
answer is None and `tomllib` decides. This reader must never take what
`tomllib` would refuse, nor read it differently.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def read(text: str) -> dict[str, Any] | None:
    """The tables of a plain configuration, or None if `tomllib` must read it."""
    root: dict[str, Any] = {}
    table = root
    declared = set()
    text = text.replace("\r\n", "\n")
    for line in text.split("\n"):
        line = line.strip(" \t")
        if not line.isprintable() and not line.replace("\t", "").isprintable():
            return None
        if not line or line[0] == "#":
            continue
        if line[0] == "[":
            name = _header(line)
            if name is None or name in declared or name in root:
                return None
            declared.add(name)
            table = root[name] = {}
            continue
        name, equals, rest = line.partition("=")
        name = name.rstrip(" \t")
        if not equals or not name or not _BARE.issuperset(name) or name in table:
            return None
        value = _value(rest.strip(" \t"))
        if value is None:
            return None
        table[name] = value
    return root


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
