"""The destination's gate: whether requests may start now, and how many.

A state machine in h11's manner: every move is a method, the time and a random
number are arguments, an illegal move raises `IllegalMove` and changes nothing.
It never sleeps, reads a clock, logs or knows of an event.

Every request is begun here and gets a ticket; its outcome comes back with the
ticket. So the breaker knows which answers are old: a request that began before
the state did says nothing new about it, and a hundred requests that time out
together lengthen the backoff once.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import NamedTuple

from outboxd.delivery.backoff import Backoff
from outboxd.status import DestinationState

_TOLERANCE_MAX = 4
_RECENT_S = 10.0


class State(Enum):
    """Where the gate stands."""

    # No answer yet since the start or a release: one request at a time.
    # Leaves with the first answer.
    UNTRIED = auto()
    # Requests flow. Leaves when failures outrun the recent successes, or by an
    # answer that throttles or holds.
    CLOSED = auto()
    # Unavailable: one probe at a time, each after the backoff. Leaves when a
    # probe is answered.
    OPEN = auto()
    # Told to wait: nothing until the time has come, then one probe at a time.
    # Leaves when one is answered.
    THROTTLED = auto()
    # An answer that only a person can mend: a slow probe, or one at once when
    # the key changes. Leaves when a probe is answered otherwise.
    HELD = auto()
    # The operator said hold: not even a probe. Leaves by the operator's release.
    PAUSED = auto()


class Allowance(Enum):
    """How many requests may start now."""

    NONE = auto()
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
    State.UNTRIED: DestinationState.UNTRIED,
    State.CLOSED: DestinationState.OK,
    State.OPEN: DestinationState.BACKING_OFF,
    State.THROTTLED: DestinationState.THROTTLED,
    State.HELD: DestinationState.HELD,
    State.PAUSED: DestinationState.HELD,
}


class Breaker:
    """The gate of one destination."""

    def __init__(self, backoff: Backoff, hold_probe_s: float, now_s: float) -> None:
        self.deliveries = 0  # requests that were answered well; only grows
        self._backoff = backoff
        self._hold_probe_s = hold_probe_s
        self._state = State.UNTRIED
        self._reason: str | None = None
        self._since_s = now_s
        self._wait_until_s = now_s  # no probe before this
        self._failures = 0  # waits in a row, for the backoff
        self._failures_in_row = 0  # while closed
        self._successes_s: deque[float] = deque(maxlen=_TOLERANCE_MAX)
        self._serial = 0
        self._entered_serial = 0  # tickets below began before the present state
        self._trusted_serial = 0  # tickets below began with an old key or before a release
        self._open: set[int] = set()
        self._probe: int | None = None

    # -- what the sender asks -------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    @property
    def held(self) -> bool:
        """Whether a release would change anything."""
        return self._state in (State.HELD, State.PAUSED)

    def allowance(self, now_s: float) -> Allowance:
        """How many requests may start now."""
        if self._state is State.CLOSED:
            return Allowance.ALL
        if self._state is State.PAUSED or self._probe is not None or now_s < self._wait_until_s:
            return Allowance.NONE
        return Allowance.PROBE

    def next_probe_s(self) -> float | None:
        """When to look again; None if only an answer or the operator changes that."""
        if self._state in (State.CLOSED, State.PAUSED) or self._probe is not None:
            return None
        return self._wait_until_s

    def view(self) -> View:
        """For the status: the state, why, since when, and what comes next."""
        next_s = None if self._state is State.UNTRIED else self.next_probe_s()
        return View(_SHOWN[self._state], self._reason, self._since_s, next_s)

    # -- what happens to a request ---------------------------------------------

    def begin(self, now_s: float) -> Ticket:
        """A request starts."""
        allowance = self.allowance(now_s)
        if allowance is Allowance.NONE:
            raise IllegalMove(f"no request may start while {self._state.name}")
        ticket = Ticket(self._serial, allowance is Allowance.PROBE)
        self._serial += 1
        self._open.add(ticket.serial)
        if ticket.probe:
            self._probe = ticket.serial
        return ticket

    def abandon(self, ticket: Ticket) -> None:
        """The request was given up by us and says nothing of the destination."""
        self._close(ticket)

    def succeeded(self, ticket: Ticket, now_s: float) -> bool:
        """The destination took the request, or judged the event itself (rejected).

        True if this ended an outage, a throttling or a hold.
        """
        late = self._close(ticket)
        self.deliveries += 1
        self._successes_s.append(now_s)
        self._failures_in_row = 0
        # An old request's good answer does not open the gate: it may have been
        # given before the trouble began.
        if late or self._state in (State.CLOSED, State.PAUSED):
            return False
        self._enter(State.CLOSED, None, now_s)
        self._failures = 0
        return True

    def unavailable(self, ticket: Ticket, reason: str, now_s: float, random: float) -> bool:
        """No answer, or one that says that the destination cannot serve.

        True if the gate opened by it: an outage began.
        """
        late = self._close(ticket)
        if late or self._state is State.PAUSED:
            return False
        if self._state is State.CLOSED:
            self._failures_in_row += 1
            if self._failures_in_row <= self._tolerance(now_s):
                return False
        if self._state is State.HELD:
            self._wait_until_s = now_s + self._hold_probe_s
            return False
        began = self._state is not State.OPEN
        if began:
            self._enter(State.OPEN, reason, now_s)
        self._reason = reason
        self._back_off(now_s, random)
        return began

    def throttled(
        self, ticket: Ticket, wait_s: float | None, reason: str, now_s: float, random: float
    ) -> None:
        """Told to wait: `wait_s` seconds, or as after a failure if None."""
        late = self._close(ticket)
        if self._state in (State.HELD, State.PAUSED):
            if not late and self._state is State.HELD:
                self._wait_until_s = now_s + max(self._hold_probe_s, wait_s or 0.0)
            return
        if wait_s is None and late and self._state is State.THROTTLED:
            return  # the same pushback as the one that brought us here
        if self._state is not State.THROTTLED:
            earlier_s = self._wait_until_s
            self._enter(State.THROTTLED, reason, now_s)
            self._wait_until_s = max(earlier_s, now_s)
        self._reason = reason
        if wait_s is None:
            self._back_off(now_s, random)
        else:
            self._failures = 0
            self._wait_until_s = max(self._wait_until_s, now_s + wait_s)

    def must_hold(self, ticket: Ticket, reason: str, now_s: float) -> bool:
        """An answer that only a person can mend. True if the hold began by it."""
        outdated = ticket.serial < self._trusted_serial
        self._close(ticket)
        if outdated or self._state is State.PAUSED:
            return False
        began = self._state is not State.HELD
        earlier_s = self._wait_until_s  # told by a Retry-After, perhaps
        if began:
            self._enter(State.HELD, reason, now_s)
        elif ticket.serial < self._entered_serial:
            return False
        self._reason = reason
        self._wait_until_s = max(earlier_s, now_s + self._hold_probe_s)
        return began

    # -- what people do ----------------------------------------------------------

    def pause(self, reason: str, now_s: float) -> None:
        """The operator says hold; again only changes the reason."""
        if self._state is not State.PAUSED:
            self._enter(State.PAUSED, reason, now_s)
        self._reason = reason

    def release(self, now_s: float) -> None:
        """The operator ends a hold of either kind; one request looks at it afresh."""
        if not self.held:
            raise IllegalMove(f"nothing is held while {self._state.name}")
        self._enter(State.UNTRIED, None, now_s)
        self._trusted_serial = self._serial
        self._failures = 0

    def key_changed(self, now_s: float) -> bool:
        """There is a new API key. True if a probe may try it at once."""
        self._trusted_serial = self._serial
        if self._state is not State.HELD:
            return False
        self._entered_serial = self._serial
        self._probe = None  # a probe under way has the old key: it proves nothing
        self._wait_until_s = now_s
        return True

    def moved(self, now_s: float) -> None:
        """It is another destination; one request looks at it, unless the operator holds."""
        self._trusted_serial = self._serial
        self._successes_s.clear()
        self._failures = 0
        if self._state is not State.PAUSED:
            self._enter(State.UNTRIED, None, now_s)

    def configure(self, backoff: Backoff, hold_probe_s: float) -> None:
        """Other waits, from the next one on."""
        self._backoff = backoff
        self._hold_probe_s = hold_probe_s

    # -- inside --------------------------------------------------------------------

    def _tolerance(self, now_s: float) -> int:
        """How many failures in a row are no outage: as many as there were recent
        successes, so that a poisoned event or one lost connection stops nobody
        while the first failure after a silence is believed."""
        while self._successes_s and now_s - self._successes_s[0] > _RECENT_S:
            self._successes_s.popleft()
        return len(self._successes_s)

    def _back_off(self, now_s: float, random: float) -> None:
        self._failures += 1
        delay_s = self._backoff.delay_s(self._failures, random)
        self._wait_until_s = max(self._wait_until_s, now_s + delay_s)

    def _enter(self, state: State, reason: str | None, now_s: float) -> None:
        if state in (State.OPEN, State.HELD):
            self._successes_s.clear()
        self._state = state
        self._reason = reason
        self._since_s = now_s
        self._wait_until_s = now_s
        self._failures_in_row = 0
        self._entered_serial = self._serial
        self._probe = None

    def _close(self, ticket: Ticket) -> bool:
        """Takes the ticket back; whether it began before the present state."""
        if ticket.serial not in self._open:
            raise IllegalMove(f"request {ticket.serial} has been settled before")
        self._open.remove(ticket.serial)
        if self._probe == ticket.serial:
            self._probe = None
        return ticket.serial < self._entered_serial
