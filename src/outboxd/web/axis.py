"""The time axis of the histogram. Pure."""

from __future__ import annotations

BUCKETS_DEFAULT = 90
BUCKETS_MAX = 400

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
# Steps that a person reads easily.
STEPS_MS = (
    *(n * SECOND_MS for n in (1, 2, 5, 10, 15, 30)),
    *(n * MINUTE_MS for n in (1, 2, 5, 10, 15, 30)),
    *(n * HOUR_MS for n in (1, 2, 3, 6, 12)),
    *(n * DAY_MS for n in (1, 2, 7, 14, 30, 90, 365)),
)


def axis(since: int, until: int, buckets: int) -> tuple[int, int, int]:
    """(since, until, step_ms) on whole steps, that hold at most `buckets` of them."""
    span = max(until - since, 1)
    for step_ms in STEPS_MS:
        low = since - since % step_ms
        high = until + -until % step_ms
        if (high - low) // step_ms <= buckets:
            return low, max(high, low + step_ms), step_ms
    step_ms = span // max(buckets - 1, 1) + 1
    return since, until, step_ms
