"""What follows from the agent's figures: rates, time to drain, outage it can hold.

Pure: reads what the status and the last hour's activity say, and computes.
Never guesses: where a figure has no ground it is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

RATE_WINDOW_MS = 5 * 60_000


class Rates(NamedTuple):
    """Events a second over the last minutes."""

    arriving: float
    delivered: float


def rates(activity: Mapping[str, Any]) -> Rates | None:
    """From the columns of `GET /v1/activity`; None where they cover too little."""
    at: Sequence[int] = activity["at"]
    pending: Sequence[int] = activity["pending"]
    if len(at) < 2:
        return None
    start = next(index for index, moment in enumerate(at) if moment >= at[-1] - RATE_WINDOW_MS)
    elapsed_s = (at[-1] - at[start]) / 1000
    if elapsed_s < 1:
        return None
    delivered = sum(
        rate * (at[index] - at[index - 1]) / 1000
        for index, rate in enumerate(activity["rate"])
        if index > start
    )
    arrived = max(0.0, delivered + pending[-1] - pending[start])
    return Rates(arrived / elapsed_s, delivered / elapsed_s)


def arriving_rate(received_at: Sequence[int], complete: bool, now_ms: int, window_ms: int) -> float:
    """Events a second from the times of the newest ones, newest first.

    `complete` tells that these are all of the window; else they are its newest.
    """
    if not received_at:
        return 0.0
    span_ms = window_ms if complete else max(1, now_ms - received_at[-1])
    return len(received_at) * 1000 / span_ms


def drain_s(pending: int, speed: Rates | None) -> float | None:
    """Until the backlog is gone at the present rates; None where it does not shrink."""
    if pending == 0:
        return 0.0
    if speed is None or speed.delivered <= speed.arriving:
        return None
    return pending / (speed.delivered - speed.arriving)


def outage_s(
    status: Mapping[str, Any], arriving: float, events_max: int, disk_free_min: int
) -> float | None:
    """How long an outage the outbox can still take in at the present rate."""
    if arriving <= 0:
        return None
    outbox = status["outbox"]
    entries = outbox["pending"] + outbox["delivered"] + outbox["dead"]
    entry_bytes = max(512.0, outbox["bytes"] / entries) if entries else 1024.0
    room = [events_max - outbox["pending"]] if events_max else []
    free_bytes = status["disk"]["freeBytes"]
    if free_bytes is not None:
        room.append(int((free_bytes - disk_free_min) / entry_bytes))
    return max(0, min(room)) / arriving if room else None
