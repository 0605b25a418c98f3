"""What an answer means for its entry, as the outbox will write it down.

Pure: times are arguments. It never decides what an answer means for the
destination.
"""

from __future__ import annotations

from outboxd.delivery.outcome import Verdict
from outboxd.outbox.model import Attempt, Claimed, DeadReason, Outcome, Settlement, State

_AT_STOP = "the agent was stopped before the answer came: the event may have arrived"


def settlement(
    entry: Claimed,
    attempt: Attempt,
    verdict: Verdict,
    *,
    own_fault: bool,
    attempts_max: int,
    due_at: int,
) -> Settlement:
    """The entry's next state; `due_at` is for one that has to wait by itself."""
    outcome = verdict.outcome
    if outcome is Outcome.DELIVERED:
        return Settlement(entry.seq, State.DELIVERED, attempt)
    if outcome is Outcome.REJECTED:
        return Settlement(entry.seq, State.DEAD, attempt, dead_reason=DeadReason.REJECTED)
    exhausted = own_fault and 0 < attempts_max <= entry.spent + 1
    return Settlement(
        entry.seq,
        State.DEAD if exhausted else State.PENDING,
        attempt,
        due_at=0 if exhausted else due_at,
        spent=int(own_fault),
        possible_duplicate=verdict.may_have_arrived,
        dead_reason=DeadReason.EXHAUSTED if exhausted else None,
    )


def abandoned(
    entry: Claimed, began_at: int, duration_ms: int, why: str = _AT_STOP, due_at: int = 0
) -> Settlement:
    """Its end was never seen: whether it arrived is not known."""
    attempt = Attempt(began_at, duration_ms, Outcome.UNAVAILABLE.value, None, why)
    return Settlement(entry.seq, State.PENDING, attempt, due_at=due_at, possible_duplicate=True)


def expired(seq: int) -> Settlement:
    """Its ttl ran out; no request was made."""
    return Settlement(seq, State.DEAD, None, dead_reason=DeadReason.EXPIRED)
