"""What an answer means for its entry, as the outbox will write it down.

Pure: times are arguments. It never decides what an answer means for the
destination.
"""

from __future__ import annotations

from outboxd.delivery.gate import Effect
from outboxd.delivery.outcome import Meaning
from outboxd.outbox.model import Attempt, Claimed, DeadReason, Outcome, Settlement, State

_AT_STOP = "the agent was stopped before the answer came: the event may have arrived"


def settlement(
    entry: Claimed,
    attempt: Attempt,
    meaning: Meaning,
    effect: Effect,
    *,
    attempts_max: int,
    due_at: int,
) -> Settlement:
    """The entry's next state; `due_at` is for one that has to wait by itself."""
    if meaning.outcome is Outcome.DELIVERED:
        return Settlement(entry.seq, State.DELIVERED, attempt, first_of=_first_of(entry))
    reason = _dead_reason(entry, meaning, effect, attempts_max)
    return Settlement(
        entry.seq,
        State.PENDING if reason is None else State.DEAD,
        attempt,
        due_at=due_at if reason is None else 0,
        spent=int(effect.spent),
        possible_duplicate=meaning.may_have_arrived,
        dead_reason=reason,
        first_of=_first_of(entry),
    )


def _first_of(entry: Claimed) -> str | None:
    """Of an entry of which nothing was settled before, whose it is."""
    return entry.producer if entry.attempt_count == 0 else None


def _dead_reason(
    entry: Claimed, meaning: Meaning, effect: Effect, attempts_max: int
) -> DeadReason | None:
    """Why the entry is given up; None while it is not."""
    if meaning.outcome is Outcome.REJECTED:
        return DeadReason.REJECTED if effect.is_final else None
    if effect.given_up:
        return DeadReason.REJECTED
    if effect.spent and meaning.outcome is not Outcome.HOLD:
        return DeadReason.EXHAUSTED if 0 < attempts_max <= entry.spent + 1 else None
    return None


def revived(seq: int, waiting: Settlement | None) -> Settlement:
    """A dead letter waits again; perhaps its settlement was not written yet."""
    if waiting is None:
        return Settlement(seq, State.PENDING, None, revives=True)
    return waiting._replace(state=State.PENDING, dead_reason=None)


def abandoned(
    entry: Claimed, began_at: int, duration_ms: int, why: str = _AT_STOP, due_at: int = 0
) -> Settlement:
    """Its end was never seen: whether it arrived is not known."""
    attempt = Attempt(began_at, duration_ms, Outcome.UNAVAILABLE.value, None, why)
    return Settlement(entry.seq, State.PENDING, attempt, due_at=due_at, possible_duplicate=True)


def expired(seq: int) -> Settlement:
    """Its ttl ran out; no request was made."""
    return Settlement(seq, State.DEAD, None, dead_reason=DeadReason.EXPIRED)
