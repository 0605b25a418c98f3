"""Moments as RFC 3339 text and as milliseconds since 1970 (UTC).

Pure, and light enough for what a cron job calls: no `datetime`, no `re`. It
never asks what time it is; that is `outboxd.clock`'s alone.
"""

from __future__ import annotations

from time import gmtime

ALLOWED = 'a time as RFC 3339 writes it, with its offset: "2026-11-21T23:31:36Z"'

_DAY_MS = 86_400_000
_MONTH_DAYS = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
# 0001-01-01 and the end of 9999: what four digits of a year can say.
_MS_MIN = -62_135_596_800_000
_MS_MAX = 253_402_300_799_999


def rfc3339(at: int) -> str:
    """The moment in UTC with milliseconds: "2026-11-21T23:31:36.123Z"."""
    seconds, ms = divmod(min(max(at, _MS_MIN), _MS_MAX), 1000)
    return "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ" % (*gmtime(seconds)[:6], ms)  # noqa: UP031 (faster)


def parse_rfc3339(text: str) -> int:
    """Milliseconds since 1970; finer fractions are cut off. ValueError says what is wrong."""
    if not (20 <= len(text) <= 64) or text[10] not in "Tt":
        raise _wrong(text)
    if text[4] + text[7] != "--" or text[13] + text[16] != "::":
        raise _wrong(text)
    year, month, day = _digits(text, 0, 4), _digits(text, 5, 7), _digits(text, 8, 10)
    hour, minute, second = _digits(text, 11, 13), _digits(text, 14, 16), _digits(text, 17, 19)
    ms, offset_at = _fraction(text)
    offset_minutes = _offset(text, offset_at)
    if not (year >= 1 and 1 <= month <= 12 and 1 <= day <= _MONTH_DAYS[month]):
        raise _wrong(text, "there is no such day")
    if month == 2 and day == 29 and (year % 4 or (year % 100 == 0 and year % 400)):
        raise _wrong(text, "there is no such day")
    # 60 is a leap second; it becomes the first moment of the next minute.
    if hour > 23 or minute > 59 or second > 60:
        raise _wrong(text, "there is no such time of day")
    minutes = hour * 60 + minute - offset_minutes
    at = _days(year, month, day) * _DAY_MS + minutes * 60_000 + second * 1000 + ms
    if not _MS_MIN <= at <= _MS_MAX:
        raise _wrong(text, "the year in UTC has more than four digits or none")
    return at


def _wrong(text: str, why: str = "") -> ValueError:
    shown = text if len(text) <= 64 else text[:64] + "…"
    return ValueError(f"{shown!a} is not {ALLOWED}" + (f" ({why})" if why else ""))


def _digits(text: str, start: int, end: int) -> int:
    part = text[start:end]
    if not (part.isascii() and part.isdigit()):
        raise _wrong(text)
    return int(part)


def _fraction(text: str) -> tuple[int, int]:
    """Milliseconds behind the seconds, and where the offset begins."""
    if text[19] != ".":
        return 0, 19
    end = 20
    while end < len(text) and text[end] in "0123456789":
        end += 1
    if end == 20:
        raise _wrong(text)
    return int((text[20:end] + "00")[:3]), end


def _offset(text: str, start: int) -> int:
    """Minutes that the local time is ahead of UTC."""
    offset = text[start:]
    if offset in ("Z", "z"):
        return 0
    if len(offset) != 6 or offset[0] not in "+-" or offset[3] != ":":
        raise _wrong(text, "the offset from UTC, Z or +01:00, is missing or wrong")
    hours, minutes = _digits(text, start + 1, start + 3), _digits(text, start + 4, start + 6)
    if hours > 23 or minutes > 59:
        raise _wrong(text, "there is no such offset")
    return (hours * 60 + minutes) * (-1 if offset[0] == "-" else 1)


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the Gregorian calendar, counted in years that begin in March
    so that the leap day is the last one."""
    if month <= 2:
        year -= 1
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return 365 * year + year // 4 - year // 100 + year // 400 + day_of_year - 719_468
