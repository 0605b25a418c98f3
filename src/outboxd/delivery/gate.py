"""The way to one destination, guarded: breaker, permits, pace and blame as one.

Pure: time and random numbers are arguments. It says how many requests may start
now, when the next one may, and what an answer means for all of that. It never
sends, sleeps, logs or knows more of an event than its number.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from outboxd.delivery.backoff import Backoff
from outboxd.delivery.blame import Blame
from outboxd.delivery.breaker import Allowance, Breaker, State, Ticket, View
from outboxd.delivery.limiter import Limiter
from outboxd.delivery.outcome import Verdict
from outboxd.delivery.rate import Rate
from outboxd.outbox.model import Outcome


class Pass(NamedTuple):
    """One request's way through: what each of the four wants back at its end."""

    seq: int
    ticket: Ticket
    permit: int
    token: int
    begun: int
    outages: int
    began_s: float


class Change(Enum):
    """What an answer did to the gate."""

    NONE = auto()
    LOST = auto()  # an outage or a hold began
    OPENED = auto()  # requests flow, and had only been untried or throttled
    RECOVERED = auto()  # requests flow again after an outage or a hold


class Landing(NamedTuple):
    """What an answer meant, beyond its verdict."""

    change: Change
    own_fault: bool  # the event failed while others were delivered


class Gate:
    """The gate of one destination."""

    def __init__(
        self,
        backoff: Backoff,
        hold_probe_s: float,
        concurrency_max: int,
        rate_max: int,
        now_s: float,
    ) -> None:
        self._breaker = Breaker(backoff, hold_probe_s, now_s)
        self._limiter = Limiter(concurrency_max)
        self._rate = Rate(rate_max)
        self._blame = Blame()
        self._outages = 0
        self._away = False  # lost, and not recovered yet

    # --- what the sender asks ---

    def start_at_most(self, now_s: float) -> int:
        """How many requests may start now."""
        allowance = self._breaker.allowance(now_s)
        if allowance is Allowance.NONE:
            return 0
        if allowance is Allowance.PROBE:
            return min(1, self._limiter.room(), self._rate.available(now_s))
        return min(self._limiter.free(), self._rate.available(now_s))

    def next_start_s(self, now_s: float) -> float | None:
        """When one may start though nothing happens before; None: that needs an
        answer or the operator."""
        if self._breaker.state is State.CLOSED:
            free = self._limiter.free()
            return self._rate.ready_s(now_s, free) if free else None
        probe_s = self._breaker.next_probe_s()
        if probe_s is None or not self._limiter.room():
            return None
        return max(probe_s, self._rate.ready_s(now_s))

    @property
    def flowing(self) -> bool:
        """Whether more than single probes may start."""
        return self._breaker.state is State.CLOSED

    @property
    def held(self) -> bool:
        """Whether a release would change anything."""
        return self._breaker.held

    @property
    def permits(self) -> int:
        return self._limiter.permits

    def view(self) -> View:
        """For the status."""
        return self._breaker.view()

    # --- what happens to a request ---

    def begin(self, seq: int, now_s: float) -> Pass:
        """A request starts."""
        return Pass(
            seq,
            self._breaker.begin(now_s),
            self._limiter.started(),
            self._rate.take(now_s),
            self._blame.begun(),
            self._outages,
            now_s,
        )

    def abandon(self, passed: Pass) -> None:
        """The request was given up by us and says nothing of the destination."""
        self._breaker.abandon(passed.ticket)
        self._limiter.failed(passed.permit)

    def landed(self, passed: Pass, verdict: Verdict, now_s: float, random: float) -> Landing:
        """A request's answer, or its fault."""
        reason = verdict.error or verdict.outcome.value
        if verdict.outcome in (Outcome.DELIVERED, Outcome.REJECTED):
            return Landing(self._taken(passed, now_s), False)
        if verdict.outcome is Outcome.THROTTLED:
            self._rate.throttled(passed.token, now_s)
            self._limiter.pushed_back(passed.permit)
            self._breaker.throttled(passed.ticket, verdict.retry_after_s, reason, now_s, random)
            return Landing(Change.NONE, False)
        self._limiter.failed(passed.permit)
        if verdict.outcome is Outcome.HOLD:
            lost = self._breaker.must_hold(passed.ticket, reason, now_s)
            return Landing(self._lost() if lost else Change.NONE, False)
        own_fault = self._blame.failed(passed.seq, passed.begun)
        # What was under way when an outage began was cut off by it.
        own_fault = own_fault and passed.outages == self._outages
        lost = self._breaker.unavailable(passed.ticket, reason, now_s, random)
        return Landing(self._lost() if lost else Change.NONE, own_fault)

    def _taken(self, passed: Pass, now_s: float) -> Change:
        self._rate.accepted(now_s)
        self._limiter.succeeded(passed.permit, now_s - passed.began_s)
        self._blame.delivered(passed.seq)
        if not self._breaker.succeeded(passed.ticket, now_s):
            return Change.NONE
        if not self._away:
            return Change.OPENED
        self._away = False
        self._limiter.restart()
        return Change.RECOVERED

    def _lost(self) -> Change:
        self._outages += 1
        if self._away:
            return Change.NONE
        self._away = True
        return Change.LOST

    # --- what people do ---

    def pause(self, reason: str, now_s: float) -> None:
        """The operator says hold."""
        self._breaker.pause(reason, now_s)

    def release(self, now_s: float) -> None:
        """The operator ends a hold of either kind."""
        self._breaker.release(now_s)

    def key_changed(self, now_s: float) -> bool:
        """There is a new API key. True if a probe may try it at once."""
        return self._breaker.key_changed(now_s)

    def configure(
        self, backoff: Backoff, hold_probe_s: float, concurrency_max: int, rate_max: int
    ) -> None:
        """Other settings, from the next request on."""
        self._breaker.configure(backoff, hold_probe_s)
        self._limiter.configure(concurrency_max)
        self._rate.configure(rate_max)

    def moved(self, now_s: float) -> None:
        """It is another destination: what was learned of the one before is void."""
        self._breaker.moved(now_s)
        self._limiter.restart()
        self._rate.forget()
