"""What the agent adds to an event's details when it is sent late or in doubt.

Pure: the time is an argument. It never changes what the producer wrote: a key
that is there stays. The one exception is `possibleDuplicate`, which is a fact
about this delivery that only the agent can know.
"""

from __future__ import annotations

from msgspec.json import decode

from outboxd.event.hop import NO_HOP, Hop, further, read_hop_text
from outboxd.event.komodor import merge_details
from outboxd.outbox.model import Claimed, Entry
from outboxd.times import rfc3339
from outboxd.units import format_duration

POSSIBLE_DUPLICATE = "possibleDuplicate"
_OURS = frozenset({POSSIBLE_DUPLICATE})


def is_late(claimed: Claimed, now_ms: int, late_after_s: float) -> bool:
    """Whether more time than `late_after_s` has passed since it occurred."""
    return _age_ms(claimed, now_ms) > late_after_s * 1000


def stamps(claimed: Claimed, now_ms: int, stamp: str, late_after_s: float) -> dict[str, object]:
    """The details to add, empty for an ordinary delivery in time.

    `stamp` is the setting: late, always or never.
    """
    added: dict[str, object] = {}
    hop = further(
        _hop(claimed),
        age_ms=0,
        attempts=claimed.attempt_count + 1,
        repeats=claimed.repeats,
        last_occurred_at=claimed.last_occurred_at,
        possible_duplicate=claimed.possible_duplicate,
        host="",
    )
    if stamp == "always" or (stamp == "late" and is_late(claimed, now_ms, late_after_s)):
        age_ms = _age_ms(claimed, now_ms)
        occurred_at = now_ms - age_ms if claimed.occurred_at is None else claimed.occurred_at
        added["occurredAt"] = rfc3339(occurred_at)
        # The wall clock may have been set back since: no delay is negative.
        added["deliveryDelay"] = format_duration(max(0.0, age_ms / 1000))
        added["deliveryAttempts"] = hop.attempts
    if hop.repeats:
        added["repeats"] = hop.repeats
        if hop.last_occurred_at is not None:
            added["lastOccurredAt"] = rfc3339(hop.last_occurred_at)
    if hop.possible_duplicate:
        added[POSSIBLE_DUPLICATE] = True
    return added


def stamped(claimed: Claimed, now_ms: int, stamp: str, late_after_s: float) -> bytes:
    """The body to send: the stored one, with the stamps that are due."""
    added = stamps(claimed, now_ms, stamp, late_after_s)
    return merge_details(claimed.body, added, overwrite=_OURS) if added else claimed.body


def as_sent(entry: Entry, now_ms: int) -> tuple[Claimed, int] | None:
    """The entry as it was when it was sent last (while it is pending: as it is now), and
    when that was; None for what died without an attempt."""
    attempts = decode(entry.attempts)
    if entry.ended_at is not None and not attempts:
        return None
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
        hop=entry.hop,
    )
    return claimed, int(attempts[-1][0]) if sent else now_ms


def _hop(claimed: Claimed) -> Hop:
    return NO_HOP if claimed.hop is None else read_hop_text(claimed.hop)


def _age_ms(claimed: Claimed, now_ms: int) -> int:
    """Since it occurred. Where another agent had it before, that one told its age
    when it sent it, which no wrong clock of its host can spoil."""
    if claimed.hop is not None:
        return _hop(claimed).age_ms + now_ms - claimed.received_at
    return now_ms - (claimed.received_at if claimed.occurred_at is None else claimed.occurred_at)
