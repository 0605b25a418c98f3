"""The one event by which the agent itself tells of an outage that has ended.

Pure: it builds the text and never decides whether to send it. The sender makes
no report of an outage that delayed nothing but such reports, so that the agent
never talks of itself in a loop.
"""

from __future__ import annotations

from outboxd.event.komodor import build
from outboxd.times import rfc3339
from outboxd.units import format_duration

EVENT_TYPE = "outboxd outage ended"


def outage_report(
    *,
    delayed: int,
    longest_delay_s: float,
    began_at: int,
    ended_at: int,
    reason: str,
    host: str,
    clusters: tuple[str, ...] = (),
) -> bytes:
    """The event's JSON, for the outbox's own door; times in ms since 1970."""
    noun = "event" if delayed == 1 else "events"
    return build(
        EVENT_TYPE,
        f"outboxd: {delayed} {noun} delayed up to {format_duration(longest_delay_s)}",
        severity="information",
        clusters=clusters,
        details={
            "host": host,
            "delayedEvents": delayed,
            "longestDelay": format_duration(longest_delay_s),
            "outageBegan": rfc3339(began_at),
            "outageEnded": rfc3339(ended_at),
            "outageLasted": format_duration(max(0, ended_at - began_at) / 1000),
            "reason": reason,
        },
        # Gateways that share an outbox may find the same one ended, one after the other.
        dedup_key=f"outage {began_at}",
    )
