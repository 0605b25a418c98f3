"""What the agent adds to an event's details when it is sent late or in doubt.

Pure: the time is an argument. It never changes what the producer wrote: a key
that is there stays. The one exception is `possibleDuplicate`, which is a fact
about this delivery that only the agent can know.
"""

from __future__ import annotations

from msgspec.json import decode

from outboxd.event.komodor import merge_details
from outboxd.outbox.model import Claimed, Entry
from outboxd.times import rfc3339
from outboxd.units import format_duration

POSSIBLE_DUPLICATE = "possibleDuplicate"
_OURS = frozenset({POSSIBLE_DUPLICATE})


def is_late(claimed: Claimed, now_ms: int, late_after_s: float) -> bool:
    """Whether more time than `late_after_s` has passed since it occurred."""
    return now_ms - _occurred_at(claimed) > late_after_s * 1000


def stamps(claimed: Claimed, now_ms: int, stamp: str, late_after_s: float) -> dict[str, object]:
    """The details to add, empty for an ordinary delivery in time.

    `stamp` is the setting: late, always or never.
    """
    added: dict[str, object] = {}
    if stamp == "always" or (stamp == "late" and is_late(claimed, now_ms, late_after_s)):
        occurred_at = _occurred_at(claimed)
        added["occurredAt"] = rfc3339(occurred_at)
        # The wall clock may have been set back since: no delay is negative.
        added["deliveryDelay"] = format_duration(max(0.0, (now_ms - occurred_at) / 1000))
        added["deliveryAttempts"] = claimed.attempt_count + 1
    if claimed.repeats:
        added["repeats"] = claimed.repeats
        if claimed.last_occurred_at is not None:
            added["lastOccurredAt"] = rfc3339(claimed.last_occurred_at)
    if claimed.possible_duplicate:
        added[POSSIBLE_DUPLICATE] = True
    return added


def stamped(claimed: Claimed, now_ms: int, stamp: str, late_after_s: float) -> bytes:
    """The body to send: the stored one, with the stamps that are due."""
    added = stamps(claimed, now_ms, stamp, late_after_s)
    return merge_details(claimed.body, added, overwrite=_OURS) if added else claimed.body


def shown_body(entry: Entry, now_ms: int, stamp: str, late_after_s: float) -> bytes:
    """The body as it was sent last, or for what is pending as it would be sent now.

    What was never sent has no stamps: an entry that died without an attempt shows
    what its producer wrote.
    """
    attempts = decode(entry.attempts)
    if entry.ended_at is not None and not attempts:
        return entry.body
    sent = entry.ended_at is not None
    claimed = Claimed(
        seq=entry.seq,
        id=entry.id,
        body=entry.body,
        received_at=entry.received_at,
        occurred_at=entry.occurred_at,
        expires_at=entry.expires_at,
        attempt_count=entry.attempt_count - sent,
        spent=entry.spent,
        possible_duplicate=entry.possible_duplicate,
        repeats=entry.repeats,
        last_occurred_at=entry.last_occurred_at,
        source=entry.source,
    )
    return stamped(claimed, int(attempts[-1][0]) if sent else now_ms, stamp, late_after_s)


def _occurred_at(claimed: Claimed) -> int:
    return claimed.received_at if claimed.occurred_at is None else claimed.occurred_at
