"""Turns the sender's facts into log lines and counters.

At info there is one line for a change of the destination's state, none for an
event that was delivered. Never changes what the sender does.
"""

from __future__ import annotations

from collections.abc import Callable

from outboxd.delivery.facts import (
    AttemptMade,
    BrakePulled,
    EntryExpired,
    EntrySetAside,
    Fact,
    GateChanged,
    OutageEnded,
    SettlingFailed,
    SettlingResumed,
)
from outboxd.observe.logs import get_logger
from outboxd.observe.metrics import Metrics
from outboxd.outbox.model import DeadReason, Outcome
from outboxd.status import DestinationState
from outboxd.times import rfc3339
from outboxd.units import format_duration

_FINE = (DestinationState.OK, DestinationState.UNTRIED)
_LINES = {
    DestinationState.OK: "destination.recovered",
    DestinationState.UNTRIED: "destination.released",
    DestinationState.BACKING_OFF: "destination.lost",
    DestinationState.THROTTLED: "destination.throttled",
    DestinationState.HELD: "destination.held",
}


class DeliveryObserver:
    """Hears every fact that the sender tells."""

    def __init__(self, metrics: Metrics, hear: Callable[[Fact], None] = lambda _: None) -> None:
        """`hear` is told what was told here, but for each attempt."""
        self._metrics = metrics
        self._hear = hear
        self._log = get_logger("sender")

    def __call__(self, fact: Fact) -> None:
        if isinstance(fact, AttemptMade):
            self._attempt(fact)
            return
        self._tell(fact)
        self._hear(fact)

    def _tell(self, fact: Fact) -> None:
        if isinstance(fact, GateChanged):
            self._gate(fact)
        elif isinstance(fact, EntryExpired):
            self._metrics.dead(DeadReason.EXPIRED)
            self._log.warning("entry.expired", id=fact.id, hint="its ttl ran out")
        elif isinstance(fact, EntrySetAside):
            self._metrics.set_aside(fact.outcome)
            hint = f"the others go on; outboxd events show {fact.id}"
            self._log.warning("entry.set_aside", id=fact.id, reason=fact.text, hint=hint)
        elif isinstance(fact, BrakePulled):
            self._metrics.revived(fact.pending_again)
            self._log.warning("brake.pulled", pending_again=fact.pending_again, reason=fact.reason)
        elif isinstance(fact, OutageEnded):
            self._outage(fact)
        elif isinstance(fact, SettlingFailed):
            self._log.error(
                "settling.failed",
                error=fact.error,
                waiting=fact.waiting,
                hint="nothing is sent until outcomes can be committed; mend what it says",
            )
        elif isinstance(fact, SettlingResumed):
            self._log.warning("settling.resumed")

    def _attempt(self, fact: AttemptMade) -> None:
        meaning = fact.meaning
        self._metrics.attempt(meaning.outcome.value, fact.duration_s)
        self._metrics.progress("sender")
        if meaning.outcome is Outcome.DELIVERED:
            self._metrics.delivered()
            self._metrics.delivery_age(fact.age_s)
            return
        if meaning.may_have_arrived:
            self._metrics.possible_duplicates()
        if fact.dead_reason is not None:
            self._metrics.dead(fact.dead_reason)
            self._log.warning(
                "entry.died",
                id=fact.id,
                reason=str(fact.dead_reason),
                attempts=fact.attempt_count,
                error=meaning.error,
                hint=f"outboxd dead-letters show {fact.id}",
            )
        else:
            self._log.debug(
                "attempt.failed", id=fact.id, outcome=meaning.outcome.value, error=meaning.error
            )

    def _gate(self, fact: GateChanged) -> None:
        line = _LINES[DestinationState(fact.after)]
        if fact.after in _FINE:
            # The first answer after the start is no news.
            if fact.before != DestinationState.UNTRIED:
                self._log.info(line, before=str(fact.before))
            return
        values: dict[str, object] = {"reason": fact.reason, "hint": fact.hint}
        if fact.next_probe_in_s is not None:
            values["next_probe_in"] = format_duration(fact.next_probe_in_s)
        self._log.warning(line, **values)

    def _outage(self, fact: OutageEnded) -> None:
        self._log.warning(
            "outage.ended",
            lasted=format_duration((fact.ended_at - fact.began_at) / 1000),
            began_at=rfc3339(fact.began_at),
            reason=fact.reason,
            delayed=fact.delayed,
        )
