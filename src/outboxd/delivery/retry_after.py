"""Reads the header Retry-After: how long a throttled destination must wait.

Pure: the time is an argument. It never believes more than the cap, and it never
takes a wait that is not positive, since that would make a busy loop of it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_TEXT_MAX = 64  # the longest HTTP date has 33 characters; the rest is garbage


def wait_s(value: str | None, date: str | None, now_ms: int, cap_s: float) -> float | None:
    """The seconds to wait, at most `cap_s`, or None if the header is of no use.

    Seconds are taken as they are. A date is compared with the answer's own
    `date`, because the two come from one clock and ours may be wrong.
    """
    text = (value or "").strip()
    if not text or not text.isascii():
        return None
    if text.isdigit():
        # A number of so many digits is beyond any cap, and may be too long for int().
        seconds = float(text) if len(text) <= 18 else cap_s
    else:
        until = _http_date_s(text)
        if until is None:
            return None
        server_now = _http_date_s((date or "").strip())
        seconds = until - (now_ms / 1000 if server_now is None else server_now)
    return min(seconds, cap_s) if seconds > 0 else None


def _http_date_s(text: str) -> float | None:
    """All three forms that RFC 9110 has a client accept; seconds since 1970."""
    if not text or len(text) > _TEXT_MAX or not text[0].isalpha():
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    if moment.tzinfo is None:  # asctime's form names no zone and means UTC
        moment = moment.replace(tzinfo=UTC)
    try:
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    except OverflowError:
        return None
