"""Announces each change once: of the destination's state, of outages, of a full disk.

It turns moments into facts for whoever listens, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from outboxd.clock import Clock
from outboxd.delivery.breaker import View
from outboxd.delivery.facts import (
    Fact,
    GateChanged,
    OutageEnded,
    SettlingFailed,
    SettlingResumed,
)
from outboxd.delivery.outcome import Meaning
from outboxd.errors import OutboxdError
from outboxd.outbox.model import Outage
from outboxd.status import DestinationState

# By so much two clocks that nobody set tell a moment differently.
ROUNDING_MS = 100


class Announcer:
    """Remembers what was announced last."""

    def __init__(self, observe: Callable[[Fact], None], clock: Clock, view: View) -> None:
        self._observe = observe
        self._clock = clock
        self._shown = view.state
        self.outage: Outage | None = None  # that lasts
        self._began_s = 0.0  # it, by the monotonic clock
        self._set_aside: dict[int, str] = {}  # by seq
        self.is_settling_failure_known = False  # told, and not over yet

    def state(self, view: View, hint: str | None) -> None:
        """Where the gate stands now; `hint` says what the operator should do."""
        if view.state == self._shown:
            return
        before, self._shown = self._shown, view.state
        wait_s = None
        if view.next_probe_s is not None:
            wait_s = max(0.0, view.next_probe_s - self._clock.monotonic_s())
        fine = view.state in (DestinationState.OK, DestinationState.UNTRIED)
        self._observe(GateChanged(before, view.state, view.reason, None if fine else hint, wait_s))

    def outage_began(self, reason: str) -> None:
        """An outage or a hold began."""
        self._began_s = self._clock.monotonic_s()
        self.outage = Outage(self._clock.wall_ms(), reason)

    def took_over(self, outage: Outage | None) -> None:
        """Another process delivered until now, and began with this outage (None: with
        none, or it has told of it)."""
        self.outage = outage
        if outage is not None:
            ago_s = (self._clock.wall_ms() - outage.began_at) / 1000
            self._began_s = self._clock.monotonic_s() - max(0.0, ago_s)

    def outage_ended(self, delayed: int, oldest_at: int) -> None:
        """Requests get through again; `delayed` entries were waiting."""
        if self.outage is not None:
            outage, self.outage = self.outage, None
            ended_at = self._clock.wall_ms()
            # Elapsed time by the monotonic clock: the other may have been set since.
            began_at = ended_at - round((self._clock.monotonic_s() - self._began_s) * 1000)
            if abs(began_at - outage.began_at) < ROUNDING_MS:
                began_at = outage.began_at
            self._observe(OutageEnded(began_at, ended_at, outage.reason, delayed, oldest_at))

    def set_aside(self, seq: int, id: str, meaning: Meaning) -> str:
        """An entry waits by itself, since it is refused while others pass; in a sentence."""
        what = meaning.status if meaning.status is not None else meaning.error
        text = f"event {id} is refused ({what}) while others pass: set aside"
        self._set_aside[seq] = text
        return text

    def of_set_aside(self, seqs: Sequence[int]) -> str | None:
        """What to say of the entries that are set aside now; None: there are none."""
        self._set_aside = {seq: self._set_aside[seq] for seq in seqs if seq in self._set_aside}
        if not self._set_aside:
            return None
        newest = next(reversed(self._set_aside.values()))
        more = len(self._set_aside) - 1
        return f"{newest}; {more} more are" if more else newest

    def settling_failed(self, error: OutboxdError, waiting: int) -> None:
        """Outcomes cannot be committed."""
        if not self.is_settling_failure_known:
            self.is_settling_failure_known = True
            self._observe(SettlingFailed(error.message, waiting))

    def settling_works(self) -> None:
        """Outcomes were committed."""
        if self.is_settling_failure_known:
            self.is_settling_failure_known = False
            self._observe(SettlingResumed())
