"""The requests under way: each is started, lands, and becomes a settlement.

It tells the gate, the claims and whoever listens what came of each. It never
decides whether one may start, and never writes to the outbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from outboxd.clock import Clock
from outboxd.delivery.backoff import Backoff
from outboxd.delivery.claims import Claims
from outboxd.delivery.facts import AttemptMade, EntryExpired, Fact
from outboxd.delivery.gate import Change, Gate, Landing, Pass
from outboxd.delivery.late import stamped
from outboxd.delivery.outcome import Answer, Fault, Verdict, decide
from outboxd.delivery.settings import Settings
from outboxd.delivery.settling import abandoned, expired, settlement
from outboxd.delivery.telling import Teller
from outboxd.outbox.model import Attempt, Claimed, Outcome, Settlement
from outboxd.outbox.outbox import Outbox


class Sending(Protocol):
    """What the sender needs of the transport."""

    async def send(self, id: str, body: bytes) -> Answer: ...


class Flight(NamedTuple):
    """One request under way."""

    entry: Claimed
    passed: Pass
    started_s: float
    started_at: int


class Flights:
    """All requests that are not settled yet."""

    def __init__(
        self,
        outbox: Outbox,
        transport: Sending,
        settings: Settings,
        gate: Gate,
        claims: Claims,
        teller: Teller,
        clock: Clock,
        random: Callable[[], float],
        observe: Callable[[Fact], None],
        landed: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._gate = gate
        self._claims = claims
        self._teller = teller
        self._clock = clock
        self._random = random
        self._observe = observe
        self._landed = landed
        self._flying: dict[int, asyncio.Task[None]] = {}  # until they are settled
        self._finished: dict[int, Settlement] = {}  # to be settled in the next commit
        self.configure(settings, transport)

    def configure(self, settings: Settings, transport: Sending) -> None:
        """Other settings, for what is started from now on."""
        self._settings = settings
        self._transport = transport
        self._backoff = Backoff(settings.backoff_initial_s, settings.backoff_max_s)

    def __len__(self) -> int:
        return len(self._flying)

    @property
    def finished(self) -> bool:
        """Whether there is something to settle."""
        return bool(self._finished)

    def taken(self) -> set[int]:
        """The entries that must not be claimed now."""
        return self._flying.keys() | self._finished.keys()

    # --- settling ---

    def take_finished(self) -> dict[int, Settlement]:
        """What is to be settled next."""
        finished, self._finished = self._finished, {}
        return finished

    def put_back(self, finished: dict[int, Settlement]) -> None:
        """These could not be settled."""
        self._finished = finished | self._finished

    def settled(self, finished: dict[int, Settlement]) -> None:
        """These are in the outbox."""
        for seq in finished:
            self._flying.pop(seq, None)

    def without(self, finished: dict[int, Settlement]) -> list[int]:
        """What is in flight once these are settled."""
        return [seq for seq in self._flying if seq not in finished]

    def expire(self, seq: int, id: str) -> None:
        """It will not be sent any more: its ttl ran out."""
        self._finished[seq] = expired(seq)
        self._observe(EntryExpired(id))

    def cancel(self) -> set[asyncio.Task[None]]:
        """Cut off all that have not landed; the tasks to wait for."""
        tasks = set(self._flying.values())
        for task in tasks:
            task.cancel()
        return tasks

    # --- one request ---

    def launch(self, entry: Claimed) -> None:
        """Start a request, now."""
        now_s = self._clock.monotonic_s()
        passed = self._gate.begin(entry.seq, now_s)
        flight = Flight(entry, passed, now_s, self._clock.wall_ms())
        task = asyncio.get_running_loop().create_task(self._fly(flight))
        self._flying[entry.seq] = task

    async def _fly(self, flight: Flight) -> None:
        settings, entry = self._settings, flight.entry
        sent = False
        try:
            body = stamped(entry, flight.started_at, settings.stamp, settings.late_after_s)
            sent = True
            answer = await self._transport.send(entry.id, body)
        except asyncio.CancelledError:
            self._abandon(flight)
            return
        except Exception as error:  # a defect of ours: the other events do not wait for it
            answer = Answer(fault=Fault.INTERNAL, fault_text=repr(error), sent=sent)
        landing = None
        try:
            now_s = self._clock.monotonic_s()
            verdict = decide(answer, self._clock.wall_ms(), self._settings.retry_after_max_s)
            landing = self._gate.landed(flight.passed, verdict, now_s, self._random())
            self._land(flight, verdict, landing, now_s)
        except Exception as error:
            if landing is None:
                self._gate.abandon(flight.passed)
            self._lose_sight_of(flight, error)

    def _land(self, flight: Flight, verdict: Verdict, landing: Landing, now_s: float) -> None:
        """What an answer means for the entry and for everybody who listens."""
        entry = flight.entry
        self._follow(landing, flight, verdict)
        attempt = Attempt(
            flight.started_at,
            round((now_s - flight.started_s) * 1000),
            verdict.outcome.value,
            verdict.status,
            verdict.error,
        )
        settled = settlement(
            entry,
            attempt,
            verdict,
            own_fault=landing.own_fault,
            attempts_max=self._settings.attempts_max,
            due_at=self._due_at(entry, verdict, landing.own_fault),
        )
        self._finished[entry.seq] = settled
        self._observe(
            AttemptMade(
                entry.id,
                verdict,
                now_s - flight.started_s,
                (self._clock.wall_ms() - entry.received_at) / 1000,
                entry.attempt_count + 1,
                settled.dead_reason,
            )
        )
        self._landed()

    def _due_at(self, entry: Claimed, verdict: Verdict, own_fault: bool) -> int:
        """When an entry may be tried again that waits by itself; 0: as the gate says."""
        if verdict.outcome is not Outcome.UNAVAILABLE:
            return 0
        if not own_fault:
            self._claims.failed(entry.seq)
            if not self._gate.flowing:
                return 0
        # With the gate open nothing else keeps it from being tried at once.
        return self._rest(entry)

    def _rest(self, entry: Claimed) -> int:
        """The entry's own backoff begins; when it ends."""
        delay_s = self._backoff.delay_s(entry.spent + 1, self._random())
        self._claims.rests(entry.seq, delay_s)
        return self._clock.wall_ms() + round(delay_s * 1000)

    def _abandon(self, flight: Flight) -> None:
        """Cancelled at the stop."""
        self._gate.abandon(flight.passed)
        self._finished[flight.entry.seq] = self._unseen(flight)

    def _lose_sight_of(self, flight: Flight, error: Exception) -> None:
        """A defect of ours while it landed: it may have arrived, and is tried again."""
        why = f"internal error: {error!r}: the event may have arrived"
        self._finished.setdefault(
            flight.entry.seq, self._unseen(flight, why=why, due_at=self._rest(flight.entry))
        )
        self._landed()

    def _unseen(self, flight: Flight, **more: Any) -> Settlement:
        """The settlement of a request whose end was not seen."""
        duration_ms = round((self._clock.monotonic_s() - flight.started_s) * 1000)
        return abandoned(flight.entry, flight.started_at, duration_ms, **more)

    def _follow(self, landing: Landing, flight: Flight, verdict: Verdict) -> None:
        """What a change of the gate means for everything else."""
        if landing.change is Change.LOST:
            self._teller.outage_began(verdict.error or verdict.outcome.value)
        elif landing.change is not Change.NONE:
            self._claims.start_over()
        if landing.change is Change.RECOVERED:
            received_at = flight.entry.received_at
            oldest_at = min(self._outbox.oldest_pending_at or received_at, received_at)
            self._teller.outage_ended(self._outbox.counts.pending, oldest_at)
        self._teller.state(self._gate.view(), verdict.hint)
