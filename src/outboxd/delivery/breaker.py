"""The destination's gate: whether requests may start now, and how many.

A state machine in h11's manner: every move is a method, the time and a random
number are arguments, an illegal move raises `IllegalMove` and changes nothing.
It never sleeps, reads a clock, logs or knows of an event; whose fault a refusal
is, is the evidence's. What an answer to a request of the present state does:

    state       delivered   unavailable       throttled    hold
    UNTRIED     CLOSED      OPEN              THROTTLED    HELD
    CLOSED      CLOSED      OPEN (tolerance)  THROTTLED    HELD
    OPEN        CLOSED      OPEN              THROTTLED    HELD
    THROTTLED   CLOSED      OPEN              THROTTLED    HELD
    HELD        CLOSED      HELD, in doubt    HELD, in     HELD
                            OPEN              doubt
                                              THROTTLED
    PAUSED      PAUSED      PAUSED            PAUSED       PAUSED

In doubt: only one entry was refused so far. Then the next probe is the second
opinion, and goes to another entry soon, or at once if one comes in.

Every request is begun here and gets a ticket; its outcome comes back with the
ticket. So the breaker knows which answers are old: a request that began before
the state did says nothing new about it, and a hundred requests that time out
together lengthen the backoff once.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum, auto
from typing import NamedTuple

from outboxd.delivery.backoff import Backoff
from outboxd.status import DestinationState

_TOLERANCE_MAX = 4
_RECENT_S = 10.0
# Requests that hang while the gate is not closed: the probe, and one more beside it.
_HUNG_PROBES_MAX = 2


class GateState(Enum):
    """Where the gate stands."""

    # No answer yet since the start or a release: one request at a time.
    # Leaves with the first answer.
    UNTRIED = auto()
    # Requests flow. Leaves when failures outrun the recent successes, or by an
    # answer that throttles or holds.
    CLOSED = auto()
    # Unavailable: one probe at a time, each after the backoff. Leaves when a
    # probe is answered, or by the operator's release.
    OPEN = auto()
    # Told to wait: nothing until the time has come, then one probe at a time.
    # Leaves when one is answered, or by the operator's release.
    THROTTLED = auto()
    # An answer that only a person can mend: a slow probe, or one at once when
    # the key changes. Leaves when a probe is answered otherwise, or by a release.
    HELD = auto()
    # The operator said hold: not even a probe. Leaves by the operator's release.
    PAUSED = auto()


class Allowance(Enum):
    """How many requests may start now."""

    NONE = auto()
    OTHER = auto()  # exactly one, of an entry that was not refused: the second opinion
    PROBE = auto()  # exactly one
    ALL = auto()  # as many as permits and pace allow


class Ticket(NamedTuple):
    """One request's place in the order of things."""

    serial: int
    probe: bool


class View(NamedTuple):
    """The gate as an operator sees it; times are monotonic seconds."""

    state: DestinationState
    reason: str | None
    since_s: float
    next_probe_s: float | None


class IllegalMove(Exception):
    """Our own mistake: this move does not exist here. Nothing was changed."""


_SHOWN = {
    GateState.UNTRIED: DestinationState.UNTRIED,
    GateState.CLOSED: DestinationState.OK,
    GateState.OPEN: DestinationState.BACKING_OFF,
    GateState.THROTTLED: DestinationState.THROTTLED,
    GateState.HELD: DestinationState.HELD,
    GateState.PAUSED: DestinationState.HELD,
}


class Breaker:
    """The gate of one destination."""

    def __init__(
        self, backoff: Backoff, hold_probe_s: float, now_s: float, *, tolerant: bool = True
    ) -> None:
        """`tolerant`: a failure among recent successes stops nobody."""
        self._tolerant = tolerant
        self._backoff = backoff
        self._hold_probe_s = hold_probe_s
        self._state = GateState.UNTRIED
        self._reason: str | None = None
        self._since_s = now_s
        self._wait_until_s = now_s  # no probe before this
        self._other_from_s: float | None = None  # but one of another entry; None: neither
        self._told_until_s = -math.inf  # the destination said: nothing at all before this
        self._told_serial = 0  # tickets below began before it said so
        self._is_confirmed = True  # whether more than one entry speaks for the hold
        self._failures = 0  # waits in a row, for the backoff
        self._failures_in_row = 0  # while closed
        self._successes_s: deque[float] = deque(maxlen=_TOLERANCE_MAX)
        self._serial = 0
        self._entered_serial = 0  # tickets below began before the present state
        self._trusted_serial = 0  # tickets below began with an old key or before a release
        self._open: set[int] = set()
        self._probes_s: dict[int, float] = {}  # of the open ones, when they began

    # -- what the sender asks -------------------------------------------------

    @property
    def state(self) -> GateState:
        return self._state

    def allowance(self, now_s: float, hangs_after_s: float = math.inf) -> Allowance:
        """How many requests may start now; a probe that has been under way for
        longer than `hangs_after_s` keeps nobody else from being asked."""
        if self._state is GateState.CLOSED:
            return Allowance.ALL
        if self._state is GateState.PAUSED:
            return Allowance.NONE
        if self._probes_s:
            hedge_s = self._hedge_s(hangs_after_s)
            if hedge_s is None or now_s < hedge_s:
                return Allowance.NONE
        if now_s < self._told_until_s:
            return Allowance.NONE
        if now_s >= self._wait_until_s:
            return Allowance.PROBE
        if self._other_from_s is not None and now_s >= self._other_from_s:
            return Allowance.OTHER
        return Allowance.NONE

    def next_probe_s(self, hangs_after_s: float = math.inf, *, other: bool = False) -> float | None:
        """When to look again; None if only an answer or the operator changes that.

        With `other`, there may be an entry that was not refused yet.
        """
        if self._state in (GateState.CLOSED, GateState.PAUSED):
            return None
        next_s = self._wait_until_s
        if other and self._other_from_s is not None:
            next_s = min(self._other_from_s, next_s)
        next_s = max(next_s, self._told_until_s)
        if self._probes_s:
            hedge_s = self._hedge_s(hangs_after_s)
            return None if hedge_s is None else max(hedge_s, next_s)
        return next_s

    def view(self) -> View:
        """For the status: the state, why, since when, and what comes next."""
        waits = self._state in (GateState.OPEN, GateState.THROTTLED, GateState.HELD)
        # A probe that went when the wait was over leaves none; a second opinion does.
        waits &= all(began_s < self._wait_until_s for began_s in self._probes_s.values())
        next_s = max(self._wait_until_s, self._told_until_s) if waits else None
        return View(_SHOWN[self._state], self._reason, self._since_s, next_s)

    def _hedge_s(self, hangs_after_s: float) -> float | None:
        """When another request may go beside the probes under way."""
        if self._state is not GateState.UNTRIED and len(self._probes_s) >= _HUNG_PROBES_MAX:
            return None
        hedge_s = max(self._probes_s.values()) + hangs_after_s
        return None if math.isinf(hedge_s) else hedge_s

    # -- what happens to a request ---------------------------------------------

    def begin(self, now_s: float, hangs_after_s: float = math.inf) -> Ticket:
        """A request starts."""
        allowance = self.allowance(now_s, hangs_after_s)
        if allowance is Allowance.NONE:
            raise IllegalMove(f"no request may start while {self._state.name}")
        ticket = Ticket(self._serial, allowance is not Allowance.ALL)
        self._serial += 1
        self._open.add(ticket.serial)
        if ticket.probe:
            self._probes_s[ticket.serial] = now_s
        return ticket

    def abandon(self, ticket: Ticket) -> None:
        """The request says nothing of the destination: given up by us, or refused
        by the fault of its own event."""
        self._close(ticket)

    def is_late(self, ticket: Ticket) -> bool:
        """Whether its request began before the present state, and that is not CLOSED;
        or before the destination said for how long to wait."""
        since = max(self._entered_serial, self._told_serial)
        return self._state is not GateState.CLOSED and ticket.serial < since

    def is_outdated(self, ticket: Ticket) -> bool:
        """Whether its request went out with an old key, or before a release."""
        return ticket.serial < self._trusted_serial

    def succeeded(self, ticket: Ticket, now_s: float) -> bool:
        """The destination took the request, or judged the event itself (rejected).

        True if this ended an outage, a throttling or a hold.
        """
        late = self.is_late(ticket)
        if not self._close(ticket) and late:
            self._wait_until_s = now_s  # good, but for the wait that was told meanwhile
        self._successes_s.append(now_s)
        self._failures_in_row = 0
        # An old request's good answer does not open the gate: it may have been
        # given before the trouble began. It is a reason to ask again, though.
        if late or self._state in (GateState.CLOSED, GateState.PAUSED):
            self.arrived(now_s)
            return False
        self._enter(GateState.CLOSED, None, now_s)
        self._failures = 0
        return True

    def unavailable(
        self, ticket: Ticket, reason: str, now_s: float, random: float, *, doubt: bool = False
    ) -> bool:
        """No answer, or one that says that the destination cannot serve.

        `doubt`: only one entry has had such an answer. True if an outage began.
        """
        late = self._close(ticket)
        if not doubt and self._state is GateState.OPEN:
            self._other_from_s = None
        if late or self._state is GateState.PAUSED:
            return False
        if self._state is GateState.CLOSED:
            self._failures_in_row += 1
            if self._failures_in_row <= self._tolerance(now_s):
                return False
        if self._state is GateState.HELD and self._is_confirmed:
            self._wait_until_s = now_s + self._hold_probe_s
            return False
        began = self._state is not GateState.OPEN
        told_s = self._wait_until_s if self._state is GateState.THROTTLED else now_s
        if began:
            self._enter(GateState.OPEN, reason, now_s)
            self._wait_until_s = max(told_s, now_s)
        self._reason = reason
        self._back_off(now_s, random)
        if doubt:
            self._other_from_s = min(self._wait_until_s, now_s + self._backoff.initial_s)
        return began

    def throttled(
        self, ticket: Ticket, wait_s: float | None, reason: str, now_s: float, random: float
    ) -> None:
        """Told to wait: `wait_s` seconds, or as after a failure if None."""
        late = self._close(ticket)
        if self._state is GateState.PAUSED:
            return
        if wait_s is not None:
            self._told_until_s = max(self._told_until_s, now_s + wait_s)
            self._told_serial = self._serial
        if self._state is GateState.HELD and (late or self._is_confirmed):
            if not late:
                self._wait_until_s = now_s + self._hold_probe_s
            return
        if wait_s is None and late and self._state is GateState.THROTTLED:
            return  # the same pushback as the one that brought us here
        if self._state is not GateState.THROTTLED:
            earlier_s = self._wait_until_s if self._state is not GateState.HELD else now_s
            self._enter(GateState.THROTTLED, reason, now_s)
            self._wait_until_s = max(earlier_s, now_s)
        self._reason = reason
        if wait_s is None:
            self._back_off(now_s, random)
        else:
            self._failures = 0
            self._wait_until_s = max(self._wait_until_s, now_s + wait_s)

    def must_hold(
        self, ticket: Ticket, reason: str, now_s: float, *, doubt: bool = False, soon_s: float = 0.0
    ) -> bool:
        """An answer that only a person can mend. True if the hold began by it.

        `doubt`: only one entry has had such an answer; another is asked in `soon_s`.
        """
        outdated = self.is_outdated(ticket)
        self._close(ticket)
        if outdated or self._state is GateState.PAUSED:
            return False
        began = self._state is not GateState.HELD
        told_s = self._wait_until_s if self._state is GateState.THROTTLED else now_s
        if began:
            self._enter(GateState.HELD, reason, now_s)
        elif ticket.serial < self._entered_serial and self._is_confirmed:
            return False
        self._is_confirmed = not doubt
        self._reason = reason
        self._wait_until_s = max(self._wait_until_s, told_s, now_s + self._hold_probe_s)
        self._other_from_s = max(told_s, now_s + soon_s) if doubt else None
        return began

    def arrived(self, now_s: float) -> None:
        """There is another entry to ask: if only one was refused it is the second
        opinion, at once; but never before a wait is over that the destination told."""
        if self._other_from_s is not None:
            self._other_from_s = min(self._other_from_s, now_s)

    # -- what people do ----------------------------------------------------------

    def pause(self, reason: str, now_s: float) -> None:
        """The operator says hold; again only changes the reason."""
        if self._state is not GateState.PAUSED:
            self._enter(GateState.PAUSED, reason, now_s)
        self._reason = reason

    def release(self, now_s: float) -> bool:
        """The operator ends every wait: one request looks at it afresh. False where
        nothing waits."""
        self._trusted_serial = self._serial
        self._failures = 0
        if self._state is GateState.CLOSED:
            return False
        self._enter(GateState.UNTRIED, None, now_s)
        return True

    def key_changed(self, now_s: float) -> bool:
        """There is a new API key. True if a probe may try it at once."""
        self._trusted_serial = self._serial
        return self.look_again(now_s)

    def look_again(self, now_s: float) -> bool:
        """What an answer's hold was for may be over. True if a probe may try at once."""
        if self._state is not GateState.HELD:
            return False
        self._entered_serial = self._serial
        self._probes_s.clear()  # a probe under way proves nothing
        self._wait_until_s = now_s
        self._told_until_s = -math.inf
        return True

    def look_first(self, now_s: float) -> None:
        """Requests flowed when this process last delivered, and do so no longer."""
        if self._state is GateState.CLOSED:
            self._enter(GateState.UNTRIED, None, now_s)

    def moved(self, now_s: float) -> None:
        """It is another destination; one request looks at it, unless the operator holds."""
        self._trusted_serial = self._serial
        self._successes_s.clear()
        self._failures = 0
        if self._state is not GateState.PAUSED:
            self._enter(GateState.UNTRIED, None, now_s)

    def configure(self, backoff: Backoff, hold_probe_s: float, *, tolerant: bool = True) -> None:
        """Other waits, from the next one on."""
        self._tolerant = tolerant
        self._backoff = backoff
        self._hold_probe_s = hold_probe_s

    # -- inside --------------------------------------------------------------------

    def _tolerance(self, now_s: float) -> int:
        """How many failures in a row are no outage: as many as there were recent
        successes, so that a poisoned event or one lost connection stops nobody
        while the first failure after a silence is believed."""
        while self._successes_s and now_s - self._successes_s[0] > _RECENT_S:
            self._successes_s.popleft()
        return len(self._successes_s) if self._tolerant else 0

    def _back_off(self, now_s: float, random: float) -> None:
        self._failures += 1
        delay_s = self._backoff.delay_s(self._failures, random)
        self._wait_until_s = max(self._wait_until_s, now_s + delay_s)

    def _enter(self, state: GateState, reason: str | None, now_s: float) -> None:
        if state in (GateState.OPEN, GateState.HELD):
            self._successes_s.clear()
        if state in (GateState.CLOSED, GateState.UNTRIED):
            self._told_until_s = -math.inf
        self._state = state
        self._reason = reason
        self._since_s = now_s
        self._wait_until_s = now_s
        self._other_from_s = None
        self._is_confirmed = True
        self._failures_in_row = 0
        self._entered_serial = self._serial
        self._probes_s.clear()

    def _close(self, ticket: Ticket) -> bool:
        """Takes the ticket back; whether it began before the present state."""
        if ticket.serial not in self._open:
            raise IllegalMove(f"request {ticket.serial} has been settled before")
        self._open.remove(ticket.serial)
        self._probes_s.pop(ticket.serial, None)
        return ticket.serial < self._entered_serial
