"""The way to one destination, guarded: breaker, permits, pace and evidence as one.

Pure: time and random numbers are arguments. It says how many requests may start
now, when the next one may, and what an answer means for the event and for
everybody else. It never sends, sleeps, logs or knows more of an event than its
number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from outboxd.delivery.backoff import Backoff
from outboxd.delivery.breaker import Allowance, Breaker, GateState, Ticket, View
from outboxd.delivery.evidence import BRAKE_AFTER, Evidence, RefusalEvidence
from outboxd.delivery.outcome import Effect, GateChange, Meaning
from outboxd.delivery.pace import Limiter, Rate
from outboxd.outbox.model import Outcome

# A request under way for so long hangs: another may go beside it.
HANGS_AFTER_MIN_S = 5.0
# Longer where the others take longer: this many times as long as they do.
_HANGS_AFTER_FACTOR = 2.0
# After an entry was found to be to blame the next second opinion is asked at
# once: this destination refuses single events, and a backlog may have many.
_BLAMED_LATELY_S = 60.0
# A refused event is given up after so many attempts spent on answers of the
# class hold; `attempts_max` counts the others.
HOLD_REFUSALS_MAX = 3

_REFUSES_HINT = (
    "nothing is given up: a probe goes on asking; check [komodor] endpoint, and what stands"
    " between this host and it; `outboxd release` asks at once"
)


class Permit(NamedTuple):
    """One request's leave to go: what each part of the gate wants back at its end."""

    seq: int
    ticket: Ticket
    slot: int
    token: int
    began_s: float


class Gate:
    """The gate of one destination."""

    def __init__(
        self,
        backoff: Backoff,
        hold_probe_s: float,
        concurrency_max: int,
        rate_max: int,
        now_s: float,
        *,
        in_order: bool = False,
    ) -> None:
        """With `in_order` requests go one after the other."""
        self._backoff = backoff
        self._hold_probe_s = hold_probe_s
        self._breaker = Breaker(backoff, hold_probe_s, now_s, tolerant=not in_order)
        self._limiter = Limiter(1 if in_order else concurrency_max)
        self._rate = Rate(rate_max)
        self._evidence = Evidence(in_order=in_order)
        self._open_s: dict[int, float] = {}  # slots, and when their requests began
        self._set_aside_slots: set[int] = set()  # of entries that are to blame
        self._away = False  # lost, and not recovered yet
        # Whether more speaks against the destination than the refusal of one event.
        self._is_trouble = False
        self._blamed_s = -_BLAMED_LATELY_S + now_s
        self._braked_s = now_s  # when everything was refused last
        self._holds_certificate = False

    # --- what the sender asks ---

    def allowance(self, now_s: float) -> Allowance:
        """Which kind of request may start now, if any."""
        return self._breaker.allowance(now_s, self._hangs_after_s())

    def start_at_most(self, now_s: float) -> int:
        """How many requests may start now."""
        allowance = self.allowance(now_s)
        if allowance is Allowance.NONE:
            return 0
        aside = self._aside(now_s)
        if allowance is Allowance.ALL:
            free = self._limiter.free(aside)
        else:
            free = min(1, self._limiter.room(aside))
        return min(free, self._rate.available(now_s))

    def next_start_s(self, now_s: float, *, other: bool) -> float | None:
        """When one may start though nothing happens before; None: that needs an
        answer or the operator. With `other` there may be an entry to send that was
        not refused yet."""
        start_s: float | None = now_s
        aside = self._aside(now_s)
        free = self._limiter.free(aside)
        if self._breaker.state is not GateState.CLOSED:
            start_s = self._breaker.next_probe_s(self._hangs_after_s(), other=other)
            free = min(1, self._limiter.room(aside))
        if start_s is None:
            return None
        if not free:
            start_s = max(start_s, self._next_hung_s(now_s))
        return None if math.isinf(start_s) else max(start_s, self._rate.ready_s(now_s, free or 1))

    def refused_before(self) -> list[int]:
        """The entries that a probe passes over while there are others, those first
        that were refused longest ago."""
        return self._evidence.refused_before()

    def set_aside(self) -> list[int]:
        """The entries that wait by themselves, refused while others pass."""
        return self._evidence.set_aside()

    @property
    def flowing(self) -> bool:
        """Whether more than single probes may start."""
        return self._breaker.state is GateState.CLOSED

    @property
    def watches_clock(self) -> bool:
        """Whether it may be over as soon as the clock is set: a certificate is
        not valid yet, or no longer."""
        return self._breaker.state is GateState.HELD and self._holds_certificate

    @property
    def permits(self) -> int:
        return self._limiter.permits

    @property
    def latency_s(self) -> float | None:
        """Seconds that answers have taken lately; None: not known."""
        return self._limiter.latency_s

    def view(self) -> View:
        """For the status."""
        return self._breaker.view()

    def _hangs_after_s(self) -> float:
        usual_s = self._limiter.latency_s or 0.0
        return max(HANGS_AFTER_MIN_S, usual_s * _HANGS_AFTER_FACTOR)

    def _aside(self, now_s: float) -> int:
        """How many of those under way are beside the permits: they hang, or are of
        entries that wait by themselves. None of them may keep the others."""
        hung, since_s = 0, now_s - self._hangs_after_s()
        for began_s in self._open_s.values():  # the oldest first
            if began_s > since_s:
                break
            hung += 1
        if not self._set_aside_slots:
            return hung
        return hung + sum(self._open_s[slot] > since_s for slot in self._set_aside_slots)

    def _next_hung_s(self, now_s: float) -> float:
        """When the next of those under way will be one that hangs."""
        hangs_after_s = self._hangs_after_s()
        times = (began_s + hangs_after_s for began_s in self._open_s.values())
        return next((at_s for at_s in times if at_s > now_s), math.inf)

    def _close(self, permit: Permit) -> None:
        self._open_s.pop(permit.slot, None)
        self._set_aside_slots.discard(permit.slot)

    # --- what happens to a request ---

    def begin(self, seq: int, now_s: float) -> Permit:
        """A request starts."""
        permit = Permit(
            seq,
            self._breaker.begin(now_s, self._hangs_after_s()),
            self._limiter.started(),
            self._rate.take(now_s),
            now_s,
        )
        self._open_s[permit.slot] = now_s
        if self._evidence.is_to_blame(seq):
            self._set_aside_slots.add(permit.slot)
        return permit

    def abandon(self, permit: Permit) -> None:
        """The request was given up by us and says nothing of the destination."""
        self._close(permit)
        self._breaker.abandon(permit.ticket)
        self._limiter.failed(permit.slot)

    def ended(self, permit: Permit, meaning: Meaning, now_s: float, random: float) -> Effect:
        """A request's answer, or its fault."""
        self._close(permit)
        if meaning.outcome is Outcome.DELIVERED:
            return self._delivered(permit, now_s)
        if meaning.outcome is Outcome.REJECTED:
            return self._rejected(permit, meaning, now_s)
        return self._refused(permit, meaning, now_s, random)

    def _delivered(self, permit: Permit, now_s: float) -> Effect:
        refutes_brake = self._evidence.refuses_everything and permit.began_s > self._braked_s
        if self._breaker.is_late(permit.ticket) and not refutes_brake:
            # Sent before the trouble began: it says little of the present.
            self._evidence.gone(permit.seq)
            return Effect(self._taken(permit, False, now_s))
        blamed, resting = self._evidence.delivered(permit.seq)
        was_trouble, self._is_trouble = self._is_trouble or blamed is None, False
        change = self._taken(permit, was_trouble, now_s)
        if blamed is not None:
            self._blamed_s = now_s
        return Effect(change, resting=resting)

    def _rejected(self, permit: Permit, meaning: Meaning, now_s: float) -> Effect:
        rejected = self._evidence.rejected(permit.seq, meaning.status)
        if rejected.final:
            return Effect(self._taken(permit, True, now_s))
        if rejected.braked:
            self._braked_s = now_s
        self._limiter.failed(permit.slot)
        self._is_trouble = True
        reason = f"refuses everything: {BRAKE_AFTER} events in a row, the last with {meaning.error}"
        self._holds_certificate = False
        began = self._breaker.must_hold(
            permit.ticket, reason, now_s, doubt=rejected.braked, soon_s=self._backoff.initial_s
        )
        change = self._lost() if began else GateChange.NONE
        return Effect(change, is_final=False, revived=rejected.revived, hint=_REFUSES_HINT)

    def _taken(self, permit: Permit, was_trouble: bool, now_s: float) -> GateChange:
        """The destination answers as it should."""
        self._rate.accepted(permit.seq, now_s)
        self._limiter.succeeded(permit.slot, now_s - permit.began_s)
        if not self._breaker.succeeded(permit.ticket, now_s):
            return GateChange.NONE
        away, self._away = self._away, False
        if not (away and was_trouble):
            return GateChange.OPENED
        self._limiter.restart()
        return GateChange.RECOVERED

    def _refused(self, permit: Permit, meaning: Meaning, now_s: float, random: float) -> Effect:
        outcome, holds = meaning.outcome, meaning.outcome is Outcome.HOLD
        if self._breaker.is_outdated(permit.ticket) and holds:
            self.abandon(permit)  # with the old key: it says nothing of the new one
            return Effect()
        rests_s = self._backoff.delay_s(1, random)
        if meaning.concerns_event:
            lately = now_s - self._blamed_s < _BLAMED_LATELY_S
            refused = self._evidence.refused(permit.seq, holds=holds, asks_another=lately)
            rests_s = self._own_wait_s(meaning, refused, random)
            told = outcome is Outcome.THROTTLED and meaning.retry_after_s is not None
            self._evidence.rests(permit.seq, now_s + rests_s, told=told)
            if refused.own_fault:
                self._rate.was_own_fault(permit.seq)
                self._breaker.abandon(permit.ticket)
                self._limiter.ignored(permit.slot)
                given_up = refused.spent and holds and refused.holds >= HOLD_REFUSALS_MAX
                return Effect(
                    own_fault=True,
                    spent=refused.spent,
                    rests_s=rests_s,
                    given_up=given_up,
                    is_news=refused.is_news,
                )
            self._is_trouble |= not self._evidence.only_one
        else:
            self._is_trouble = True
        reason = meaning.error or outcome.value
        if outcome is Outcome.THROTTLED:
            if not self._evidence.is_to_blame(permit.seq):
                self._rate.throttled(permit.token, permit.seq, now_s)
            self._limiter.pushed_back(permit.slot)
            self._breaker.throttled(permit.ticket, meaning.retry_after_s, reason, now_s, random)
            return Effect()
        self._limiter.failed(permit.slot)
        if holds:
            return self._holds(permit, meaning, reason, now_s)
        doubt = meaning.concerns_event and self._evidence.asks_another
        lost = self._breaker.unavailable(permit.ticket, reason, now_s, random, doubt=doubt)
        return Effect(
            self._lost() if lost else GateChange.NONE,
            # While requests flow nothing else keeps it from being tried at once.
            rests_s=rests_s if self.flowing else None,
            fresh_connections=True,
        )

    def _holds(self, permit: Permit, meaning: Meaning, reason: str, now_s: float) -> Effect:
        lately = now_s - self._blamed_s < _BLAMED_LATELY_S
        self._holds_certificate = meaning.is_certificate
        lost = self._breaker.must_hold(
            permit.ticket,
            reason,
            now_s,
            doubt=meaning.concerns_event and self._evidence.only_one_holds,
            soon_s=0.0 if lately else self._backoff.initial_s,
        )
        return Effect(self._lost() if lost else GateChange.NONE, fresh_connections=True)

    def _own_wait_s(self, meaning: Meaning, refused: RefusalEvidence, random: float) -> float:
        """How long an event waits by itself: as it was told, or its own backoff; the
        longer of both once that is its own fault, or it would be asked for ever."""
        if meaning.outcome is Outcome.THROTTLED and meaning.retry_after_s is not None:
            own_s = self._backoff.delay_s(max(1, refused.own_refusals), random)
            return max(meaning.retry_after_s, own_s if refused.own_fault else 0.0)
        if meaning.outcome is Outcome.HOLD and refused.own_fault and not refused.others_passed:
            # It may be the destination after all: the whole wait, without jitter.
            return min(self._hold_probe_s, self._backoff.bound_s(refused.own_refusals))
        return self._backoff.delay_s(max(1, refused.own_refusals), random)

    def _lost(self) -> GateChange:
        if self._away:
            return GateChange.NONE
        self._away = True
        return GateChange.LOST

    def gone(self, seq: int) -> None:
        """An entry does not wait any more."""
        self._evidence.gone(seq)

    # --- what people do ---

    def arrived(self, now_s: float) -> None:
        """Another entry came in: it may be the second opinion."""
        self._breaker.arrived(now_s)

    def pause(self, reason: str, now_s: float) -> None:
        """The operator says hold."""
        self._breaker.pause(reason, now_s)

    def release(self, now_s: float) -> bool:
        """The operator ends every wait. False where nothing waits."""
        if not self._breaker.release(now_s):
            return False
        self._evidence.forget()
        return True

    def key_changed(self, now_s: float) -> bool:
        """There is a new API key. True if a probe may try it at once."""
        if not self._breaker.key_changed(now_s):
            return False
        self._evidence.forget(order=self._evidence.in_order)
        return True

    def look_again(self, now_s: float) -> bool:
        """The clock was set, or certificates were replaced. True if a probe may go."""
        return self._breaker.look_again(now_s)

    def configure(
        self,
        backoff: Backoff,
        hold_probe_s: float,
        concurrency_max: int,
        rate_max: int,
        *,
        in_order: bool = False,
    ) -> None:
        """Other settings, from the next request on."""
        self._backoff = backoff
        self._hold_probe_s = hold_probe_s
        self._breaker.configure(backoff, hold_probe_s, tolerant=not in_order)
        self._limiter.configure(1 if in_order else concurrency_max)
        self._evidence.in_order = in_order
        self._rate.configure(rate_max)

    def took_over(self, now_s: float, *, in_outage: bool) -> None:
        """Another process delivered until now, and perhaps in an outage."""
        self._away = in_outage
        if in_outage:
            self._is_trouble = True
            self._breaker.look_first(now_s)

    def moved(self, now_s: float) -> None:
        """It is another destination: what was learned of the one before is void."""
        self._evidence = Evidence(in_order=self._evidence.in_order)
        self._breaker.moved(now_s)
        self._limiter.restart()
        self._rate.forget()
