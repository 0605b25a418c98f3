"""The kinds of settings: what may be written, and the value that the program uses.

Pure: it describes and converts, and opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from outboxd.units import (
    DURATION_ALLOWED,
    DURATION_MAX_S,
    SIZE_ALLOWED,
    parse_duration,
    parse_size,
)

_NAME = re.compile("[A-Za-z0-9._-]{1,40}")


class Kind(NamedTuple):
    """What a setting may be. `convert` gives the value that the program uses, or raises
    ValueError for what is not allowed."""

    default: object  # as one would write it; None: depends on the environment
    allowed: str
    convert: Callable[[object], object]
    unit: str = ""  # the end of the attribute's name, which no user writes: "_s"
    is_path: bool = False  # relative ones are the configuration file's neighbours
    at_start: bool = False  # read at the start alone; a reload cannot take it over


def at_start(kind: Kind) -> Kind:
    """The same, read at the start alone."""
    return kind._replace(at_start=True)


def text(default: str, allowed: str) -> Kind:
    """Any text without U+0000."""
    return Kind(default, allowed, as_text)


def name(default: str) -> Kind:
    """A short name that people choose."""

    def convert(value: object) -> str:
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise ValueError
        return value

    return Kind(default, "1 to 40 letters, digits, dots, dashes or underscores", convert)


def path() -> Kind:
    """A path that is always needed; its default depends on the environment."""
    return Kind(None, "the path of a file or directory", _as_path, is_path=True)


def optional_path(what: str) -> Kind:
    """The path of something, or nothing."""
    return Kind("", f'the path of {what}, or "" for none', _as_optional_path, is_path=True)


def whole(default: int, least: int, most: int, note: str = "") -> Kind:
    """A whole number between two others, both allowed."""

    def convert(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError
        return value

    return Kind(default, f"a whole number from {least} to {most}{note}", convert)


def share(default: float) -> Kind:
    """A part of one."""
    return Kind(default, "a number from 0 to 1", _as_share)


def duration(default: str, least_s: float = 0.0, note: str = "") -> Kind:
    """A duration, at least so many seconds; the value is in seconds."""
    above = "" if least_s == 0 else f", at least {least_s:g} s"

    def convert(value: object) -> float:
        if type(value) is not str:
            raise ValueError
        duration_s = parse_duration(value)
        if not least_s <= duration_s <= DURATION_MAX_S:
            raise ValueError
        return duration_s

    return Kind(default, f"{DURATION_ALLOWED}{above}{note}, in quotes", convert, unit="_s")


def size(default: str, least: int, most: int) -> Kind:
    """A size; the value is in bytes."""

    def convert(value: object) -> int:
        size_bytes = value if type(value) is int else parse_size(as_text(value))
        if not least <= size_bytes <= most:
            raise ValueError
        return size_bytes

    return Kind(default, f"{SIZE_ALLOWED}, from {least} to {most} bytes", convert)


def choice(default: str, *words: str) -> Kind:
    """One of some words."""

    def convert(value: object) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return Kind(default, "one of " + ", ".join(f'"{word}"' for word in words), convert)


def switch(default: bool) -> Kind:
    """On or off."""
    return Kind(default, "true or false", _as_switch)


def mode(default: str) -> Kind:
    """The permissions of a file; the value is the text."""
    return Kind(default, 'octal digits in quotes, such as "0660", up to "0777"', _as_mode)


def names() -> Kind:
    """A list of names; none is the default."""
    return Kind([], 'a list of names, such as ["production"]', _as_names)


def details() -> Kind:
    """What is added to every event's details; nothing is the default."""
    allowed = 'a table of texts, whole numbers, true and false, such as { team = "shop" }'
    return Kind({}, allowed, _as_details)


def as_text(value: object) -> str:
    """A text that a C string can hold; ValueError for anything else."""
    if type(value) is not str or "\0" in value:
        raise ValueError
    return value


def _as_path(value: object) -> str:
    if value == "":
        raise ValueError
    return as_text(value)


def _as_optional_path(value: object) -> str:
    return as_text(value)


def _as_share(value: object) -> float:
    if type(value) not in (int, float) or not 0 <= float(str(value)) <= 1:
        raise ValueError
    return float(str(value))


def _as_switch(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _as_mode(value: object) -> str:
    digits = as_text(value)
    if not (3 <= len(digits) <= 4 and digits.strip("01234567") == "" and int(digits, 8) <= 0o777):
        raise ValueError
    return digits


def _as_names(value: object) -> list[str]:
    if type(value) is not list or not all(as_text(name) for name in value):
        raise ValueError
    return list(value)


def _as_details(value: object) -> dict[str, object]:
    if type(value) is not dict:
        raise ValueError
    for name, detail in value.items():
        as_text(name)
        if type(detail) not in (bool, int):
            as_text(detail)
    return dict(value)
