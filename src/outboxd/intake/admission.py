"""Whether events are taken now, and if not, for how long.

Three limits: the backlog (`[outbox] events_max`, a high and a low watermark), the
share of it that one producer may have, and the free disk (`[outbox]
disk_free_min`). The decision is arithmetic on counts that lie in memory; the disk
is asked at most once a second. It must never let the backlog exceed its limit,
however many producers come at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

from outboxd.clock import Clock
from outboxd.errors import DiskShort, OutboxFull, Refused
from outboxd.outbox.model import Counts
from outboxd.units import format_size

SAMPLE_S = 1.0
RETRY_AFTER_MAX_S = 300
DISK_RETRY_AFTER_S = 30
SHARE_RETRY_AFTER_S = 30
RATE_WINDOW_S = 30.0  # how far back the drain rate remembers, roughly
# Tokens and the like are an operator's to give out: one alone need not share.
_USER = "uid:"


class Backlog(Protocol):
    """What waits, as the outbox knows it."""

    counts: Counts
    waiting: Mapping[str, int]  # what is pending, by producer


class IntakeState(NamedTuple):
    """What `GET /v1/status` says of the intake."""

    accepting: bool
    reason: str | None


class Admission:
    """Decides for each event; `reserve`, accept, `release`."""

    def __init__(
        self,
        backlog: Backlog,
        free_bytes: Callable[[], int],
        clock: Clock,
        events_max: int,
        disk_free_min: int,
        shares: Shares | None = None,
    ) -> None:
        """`shares`: who has to share (None: nobody)."""
        self._backlog = backlog
        self._shares = shares
        self._reserved_by: dict[str, int] = {}
        self._free_bytes = free_bytes
        self._clock = clock
        self._events_max = events_max  # 0: no limit
        self._disk_free_min = disk_free_min
        self._reserved = 0
        self._accepted = 0  # since the last sample
        self._full = False
        self._disk_short = False
        self._commit_failed_until_s = 0.0
        self._trouble: Refused | None = None
        self._sampled_at_s = -math.inf
        self._pending_at_sample = 0
        self.free_disk_bytes = 0
        self.drain_rate: float | None = None  # entries a second that leave; None: not known yet
        self._sample(clock.monotonic_s())

    def reserve(self, wanted: int, producer: str = "") -> int:
        """How many of `wanted` events of a producer may be handed to the outbox now, at
        least one; give them back with `release`. Raises OutboxFull or DiskShort, and
        what `set_trouble` was told."""
        if self._trouble is not None:
            told = self._trouble
            raise type(told)(told.message, told.hint, told.retry_after_s)
        now_s = self._clock.monotonic_s()
        if now_s - self._sampled_at_s >= SAMPLE_S:
            self._sample(now_s)
        if self._disk_short or now_s < self._commit_failed_until_s:
            raise self._disk_refusal()
        if not self._events_max:
            return self._granted(wanted, producer)
        pending = self._backlog.counts.pending
        if self._full:
            self._full = pending > self._events_max * 9 // 10
        elif pending >= self._events_max:
            self._full = True
        room = self._events_max - pending - self._reserved
        if self._full or room <= 0:
            raise self._full_refusal(pending)
        own = self._own_room(producer, pending)
        if own is not None:
            if own <= 0:
                raise self._share_refusal(producer, pending)
            room = min(room, own)
        return self._granted(min(wanted, room), producer)

    def _granted(self, count: int, producer: str) -> int:
        self._reserved += count
        self._reserved_by[producer] = self._reserved_by.get(producer, 0) + count
        return count

    def _own_room(self, producer: str, pending: int) -> int | None:
        if self._shares is None:
            return None
        waiting = self._backlog.waiting
        own = waiting.get(producer, 0) + self._reserved_by.get(producer, 0)
        return self._shares.room(producer, own, waiting, pending + self._reserved, self._events_max)

    def release(self, granted: int, accepted: int, producer: str = "") -> None:
        """The outbox answered: so many of those reserved became entries."""
        self._reserved -= granted
        left = self._reserved_by.pop(producer, 0) - granted
        if left > 0:
            self._reserved_by[producer] = left
        self._accepted += accepted

    def set_trouble(self, refusal: Refused | None) -> None:
        """The outbox takes nothing now, whatever room there is; None: it does again."""
        self._trouble = refusal

    def commit_failed(self) -> None:
        """A commit found the disk full though the sample did not: wait a little."""
        self._commit_failed_until_s = self._clock.monotonic_s() + SAMPLE_S

    def refusal(self) -> Refused | None:
        """Why an event would be refused now; None where it would be taken."""
        try:
            self.release(self.reserve(1), 0)
        except Refused as refusal:
            return refusal
        return None

    def state(self) -> IntakeState:
        """For status and readiness."""
        refusal = self.refusal()
        return IntakeState(refusal is None, None if refusal is None else refusal.message)

    def set_limits(self, events_max: int, disk_free_min: int) -> None:
        """New limits, after a reload of the configuration."""
        self._events_max = events_max
        self._disk_free_min = disk_free_min
        self._full = False
        self._sampled_at_s = -math.inf

    def _sample(self, now_s: float) -> None:
        elapsed_s = now_s - self._sampled_at_s
        pending = self._backlog.counts.pending
        if math.isfinite(elapsed_s):
            left = max(0, self._pending_at_sample + self._accepted - pending)
            weight = 1 - math.exp(-elapsed_s / RATE_WINDOW_S)
            rate = left / elapsed_s
            known = self.drain_rate
            self.drain_rate = rate if known is None else known + weight * (rate - known)
        self._sampled_at_s = now_s
        self._pending_at_sample = pending
        self._accepted = 0
        self.free_disk_bytes = self._free_bytes()
        self._disk_short = self.free_disk_bytes < self._disk_free_min

    def _full_refusal(self, pending: int) -> OutboxFull:
        low = self._events_max * 9 // 10
        retry_after_s = 1
        if self._full:
            rate = self.drain_rate or 0.0
            estimate_s = (pending - low) / rate if rate > 0 else math.inf
            retry_after_s = max(1, math.ceil(min(RETRY_AFTER_MAX_S, estimate_s)))
        return OutboxFull(
            f"the outbox is full: {pending + self._reserved} events wait, {self._events_max} may",
            f"events are taken again below {low + 1} waiting; `outboxd status` tells why they wait",
            retry_after_s,
        )

    def _share_refusal(self, producer: str, pending: int) -> OutboxFull:
        own = self._backlog.waiting.get(producer, 0) + self._reserved_by.get(producer, 0)
        rate = self.drain_rate or 0.0
        estimate_s = max(1, own // 10) / rate if rate > 0 else SHARE_RETRY_AFTER_S
        return OutboxFull(
            f"{producer} has {own} events waiting, which is its share while the outbox is half"
            f" full: {pending + self._reserved} of {self._events_max} wait",
            "more are taken as these are delivered; `outboxd status` tells why they wait",
            max(1, math.ceil(min(RETRY_AFTER_MAX_S, estimate_s))),
        )

    def _disk_refusal(self) -> DiskShort:
        return DiskShort(
            f"the disk is short: {format_size(self.free_disk_bytes)} are free, "
            f"{format_size(self._disk_free_min)} must stay free",
            "make room on the outbox's file system; intake resumes by itself",
            DISK_RETRY_AFTER_S,
        )


class Shares:
    """How much of the backlog one producer may have: a pure decision.

    While there is plenty of room nobody is asked to share. Once the outbox is half
    full, no producer may have more than its part of half of it, so that one user of a
    host cannot keep the others' events out. The other half stays for whoever is below
    its part, and for the operators: root and the agent's own user, who could drop
    everything anyway.
    """

    def __init__(self, operators: Collection[str]) -> None:
        """`operators`: the names that need not share."""
        self._operators = frozenset(operators)

    def room(
        self, producer: str, own: int, waiting: Collection[str], pending: int, events_max: int
    ) -> int | None:
        """How many more events of a producer may be kept; None where it has no limit
        of its own. `own` of it and `pending` of all are there, or on their way;
        `waiting` are the producers of whom anything is."""
        if not producer or producer in self._operators:
            return None
        sharing = {name for name in waiting if name and name not in self._operators}
        sharing.add(producer)
        if len(sharing) == 1 and not producer.startswith(_USER):
            return None
        share = max(1, events_max // 2 // len(sharing))
        until_half_full = events_max // 2 - pending
        return max(0, until_half_full, share - own)
