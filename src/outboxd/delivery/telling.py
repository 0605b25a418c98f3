"""Tells each change once: of the destination's state, of outages, of a full disk.

It turns moments into facts for whoever listens, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from outboxd.clock import Clock
from outboxd.delivery.breaker import View
from outboxd.delivery.facts import (
    Fact,
    GateChanged,
    OutageEnded,
    SettlingFailed,
    SettlingResumed,
)
from outboxd.errors import DiskShort
from outboxd.status import DestinationState


class Teller:
    """Remembers what was told last."""

    def __init__(self, observe: Callable[[Fact], None], clock: Clock, view: View) -> None:
        self._observe = observe
        self._clock = clock
        self._shown = view.state
        self._outage: tuple[int, str] | None = None  # when it began, and why
        self._settling_failed = False

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
        self._outage = (self._clock.wall_ms(), reason)

    def outage_ended(self, delayed: int, oldest_at: int) -> None:
        """Requests get through again; `delayed` entries were waiting."""
        if self._outage is not None:
            (began_at, reason), self._outage = self._outage, None
            ended_at = self._clock.wall_ms()
            self._observe(OutageEnded(began_at, ended_at, reason, delayed, oldest_at))

    def settling_failed(self, error: DiskShort, waiting: int) -> None:
        """Outcomes cannot be committed."""
        if not self._settling_failed:
            self._settling_failed = True
            self._observe(SettlingFailed(error.message, waiting))

    def settling_works(self) -> None:
        """Outcomes were committed."""
        if self._settling_failed:
            self._settling_failed = False
            self._observe(SettlingResumed())
