"""Durations and sizes as people write them: "30s", "5m", "256KiB".

Pure text to number and back. It must stay light (no `re`): what a cron job
calls imports it.
"""

from __future__ import annotations

DURATION_ALLOWED = (
    'a number and a unit of ms, s, m, h or d, such as "80ms", "30s", "5m", "24h" or "7d"'
)
SIZE_ALLOWED = 'a number and a unit of B, KiB, MiB or GiB, such as "512B", "256KiB" or "64MiB"'

# A century. What is longer is a slip of the keyboard, and would leave the range of dates.
DURATION_MAX_S = 36_500 * 86_400.0
SIZE_MAX_BYTES = 1 << 60

_DURATION_UNITS = (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0))
_SIZE_UNITS = (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1))


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "80ms", "1.5h" or "7d"; ValueError says what is allowed."""
    for unit, seconds in _DURATION_UNITS:
        # "ms" is tried before "s" and "m", which end or begin it.
        if text.endswith(unit):
            duration_s = _number(text[: -len(unit)]) * seconds
            if 0 <= duration_s <= DURATION_MAX_S:
                return duration_s
            break
    raise ValueError(f"a duration is {DURATION_ALLOWED}, up to 36500d")


def format_duration(seconds: float) -> str:
    """The two largest units: "42s", "3m 10s", "2h 13m", "4d 6h"."""
    minutes, whole_s = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    if minutes:
        return f"{minutes}m {whole_s}s"
    return f"{whole_s}s"


def parse_size(text: str) -> int:
    """Bytes of a size such as "256KiB"; ValueError says what is allowed."""
    for unit, unit_bytes in _SIZE_UNITS:
        if text.endswith(unit):
            size_bytes = _number(text[: -len(unit)]) * unit_bytes
            if 0 <= size_bytes <= SIZE_MAX_BYTES and size_bytes == int(size_bytes):
                return int(size_bytes)
            break
    raise ValueError(f"a size is {SIZE_ALLOWED}")


def format_size(size_bytes: int) -> str:
    """In the largest unit of which it is at least one: "512B", "256KiB", "1.5GiB"."""
    for unit, unit_bytes in (
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ):
        if size_bytes >= unit_bytes:
            tenths = f"{size_bytes / unit_bytes:.1f}"
            return tenths.removesuffix(".0") + unit
    return f"{size_bytes}B"


def _number(text: str) -> float:
    """A plain decimal such as "5" or "1.5"; -1 for anything else, which no caller allows."""
    whole, dot, fraction = text.strip(" ").partition(".")
    if not (whole.isascii() and whole.isdigit() and len(whole) <= 20):
        return -1
    if dot and not (fraction.isascii() and fraction.isdigit() and len(fraction) <= 20):
        return -1
    return float(f"{whole}.{fraction or 0}")
