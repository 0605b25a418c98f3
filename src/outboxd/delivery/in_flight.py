"""The requests under way: each is started, ends, and becomes a settlement.

It tells the gate, the claims and whoever listens what came of each. It never
decides whether one may start, and never writes to the outbox.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from outboxd.clock import Clock
from outboxd.delivery.announcer import Announcer
from outboxd.delivery.claims import Claims, ClockSteps
from outboxd.delivery.facts import AttemptMade, BrakePulled, EntryExpired, EntrySetAside, Fact
from outboxd.delivery.gate import Gate, Permit
from outboxd.delivery.next_hop import HOP_WANTED, NextHop
from outboxd.delivery.outcome import (
    Answer,
    Effect,
    Fault,
    GateChange,
    Meaning,
    abandoned,
    decide,
    expired,
    revived,
    settlement,
)
from outboxd.delivery.settings import DeliverySettings
from outboxd.delivery.through import ask_through
from outboxd.outbox.model import Attempt, Claimed, Entry, Outcome, Settlement, State
from outboxd.outbox.outbox import Outbox
from outboxd.status import Through

DOUBTS_MAX = 100_000  # remembered; of more it is not known since when they are in doubt


class Sending(Protocol):
    """What the sender needs of the transport."""

    async def send(self, id: str, body: bytes, offers_hop: bool = False) -> Answer:
        """One POST; never raises for what the network does. `offers_hop` asks whoever
        answers whether it is a gateway."""

    async def ask(self, id: str) -> Answer:
        """Asks a gateway what became of an event; takes and makes none."""

    async def validate(self) -> Answer:
        """Asks whether the key is good; a gateway says that it is one."""

    def refresh(self) -> None:
        """The next request uses a fresh connection; those under way go on."""


class RequestInFlight(NamedTuple):
    """One request under way."""

    entry: Claimed
    permit: Permit
    started_s: float
    started_at: int


class InFlight:
    """All requests that are not settled yet."""

    def __init__(
        self,
        outbox: Outbox,
        transport: Sending,
        settings: DeliverySettings,
        gate: Gate,
        claims: Claims,
        announcer: Announcer,
        clock: Clock,
        clock_steps: ClockSteps,
        random: Callable[[], float],
        observe: Callable[[Fact], None],
        ended: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._gate = gate
        self._claims = claims
        self._announcer = announcer
        self._clock = clock
        self._clock_steps = clock_steps
        self._random = random
        self._observe = observe
        self._ended = ended
        self._host = socket.gethostname()
        self.next_hop = NextHop()
        self._tasks: dict[int, asyncio.Task[None]] = {}  # until they are settled
        self._finished: dict[int, Settlement] = {}  # to be settled in the next commit
        # When entries were sent first of which an answer was lost, by CLOCK_BOOTTIME;
        # a gateway forgets them so long after.
        self._doubted_s: dict[int, float] = {}
        self.configure(settings, transport)

    def configure(self, settings: DeliverySettings, transport: Sending) -> None:
        """Other settings, for what is started from now on."""
        self._settings = settings
        if transport is not getattr(self, "_transport", None):
            self.next_hop = NextHop()
        self._transport = transport

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def finished(self) -> bool:
        """Whether there is something to settle."""
        return bool(self._finished)

    def taken(self) -> set[int]:
        """The entries that must not be claimed now."""
        return self._tasks.keys() | self._finished.keys()

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
            if seq not in self._finished:
                self._tasks.pop(seq, None)

    def without(self, finished: dict[int, Settlement]) -> list[int]:
        """What is in flight once these are settled."""
        return [seq for seq in self._tasks if seq not in finished]

    def expire(self, seq: int, id: str) -> None:
        """It will not be sent any more: its ttl ran out."""
        self._finished[seq] = expired(seq)
        self._doubted_s.pop(seq, None)
        self._gate.gone(seq)
        self._observe(EntryExpired(id))

    def cancel(self) -> set[asyncio.Task[None]]:
        """Cut off all that have not ended; the tasks to wait for."""
        tasks = set(self._tasks.values())
        for task in tasks:
            task.cancel()
        return tasks

    # --- one request ---

    def launch(self, entry: Claimed) -> None:
        """Start a request, now."""
        now_s = self._clock.monotonic_s()
        self._clock_steps.look()
        entry = self._clock_steps.correct(entry)
        permit = self._gate.begin(entry.seq, now_s)
        request = RequestInFlight(entry, permit, now_s, self._clock.wall_ms())
        self._tasks[entry.seq] = asyncio.get_running_loop().create_task(self._send(request))

    async def _send(self, request: RequestInFlight) -> None:
        settings, entry = self._settings, request.entry
        sent = False
        try:
            transport, next_hop = self._transport, self.next_hop
            offers_hop = not next_hop.is_known
            body = self._body(request, settings, next_hop)
            sent = True
            answer = await transport.send(entry.id, body, offers_hop)
            next_hop.learn(answer.status, answer.headers)
            if offers_hop and answer.status == HOP_WANTED and next_hop.gateway is not None:
                # It took nothing yet, and says who it is: the same exchange, as a hop.
                answer = await transport.send(entry.id, self._body(request, settings, next_hop))
        except asyncio.CancelledError:
            self._abandon(request)
            return
        except Exception as error:  # a defect of ours: the other events do not wait for it
            answer = Answer(fault=Fault.INTERNAL, fault_text=repr(error), sent=sent)
        effect = None
        try:
            now_s = self._clock.monotonic_s()
            meaning = decide(
                answer, self._clock.wall_ms(), self._settings.komodor.retry_after_max_s
            )
            effect = self._gate.ended(request.permit, meaning, now_s, self._random())
            self._end(request, meaning, effect, now_s)
        except Exception as error:
            if effect is None:
                self._gate.abandon(request.permit)
            self._lose_sight_of(request, error)

    async def ask_through(self, id: str) -> Through:
        """What became of a delivered entry behind a gateway."""
        return await ask_through(self._transport, self.next_hop, id)

    def shown_body(self, entry: Entry) -> bytes:
        """What was sent last, or would be sent now."""
        settings = self._settings
        return self.next_hop.shown_body(
            entry,
            self._clock.wall_ms(),
            settings.delivery.stamp,
            settings.delivery.late_after_s,
            self._host,
        )

    def _body(
        self, request: RequestInFlight, settings: DeliverySettings, next_hop: NextHop
    ) -> bytes:
        since_s = self._doubted_s.get(request.entry.seq)
        return next_hop.body(
            request.entry,
            request.started_at,
            settings.delivery.stamp,
            settings.delivery.late_after_s,
            self._host,
            None if since_s is None else self._clock.since_boot_s() - since_s,
        )

    def _doubt(self, request: RequestInFlight) -> None:
        """It may have arrived, and will be sent again."""
        if request.entry.possible_duplicate and request.entry.seq not in self._doubted_s:
            return  # there was a doubt before, of which nobody knows when it was
        if len(self._doubted_s) < DOUBTS_MAX:
            ago_s = self._clock.monotonic_s() - request.started_s
            self._doubted_s.setdefault(request.entry.seq, self._clock.since_boot_s() - ago_s)

    def _end(
        self, request: RequestInFlight, meaning: Meaning, effect: Effect, now_s: float
    ) -> None:
        """What an answer means for the entry and for everybody who listens."""
        entry = request.entry
        attempt = Attempt(
            request.started_at,
            round((now_s - request.started_s) * 1000),
            meaning.outcome.value,
            meaning.status,
            meaning.error,
        )
        settled = settlement(
            entry,
            attempt,
            meaning,
            effect,
            attempts_max=self._settings.delivery.attempts_max,
            due_at=0 if effect.rests_s is None else self._rest(entry.seq, effect.rests_s),
        )
        self._finished[entry.seq] = settled
        if settled.state != State.PENDING:
            self._doubted_s.pop(entry.seq, None)
        elif meaning.may_have_arrived:
            self._doubt(request)
        if settled.state == State.DEAD:
            self._gate.gone(entry.seq)
        self._observe(
            AttemptMade(
                entry.id,
                meaning,
                now_s - request.started_s,
                (self._clock.wall_ms() - entry.received_at) / 1000,
                entry.attempt_count + 1,
                settled.dead_reason,
            )
        )
        self._follow(request, meaning, effect, now_s)
        self._ended()

    def _follow(
        self, request: RequestInFlight, meaning: Meaning, effect: Effect, now_s: float
    ) -> None:
        """What an answer means for everything else."""
        entry = request.entry
        if effect.fresh_connections and meaning.status is not None:
            self._transport.refresh()  # after a fault it has done so by itself
        for seq, rests_until_s in effect.resting:
            self._claims.rests(seq, rests_until_s - now_s)
        if effect.is_news:
            what = self._announcer.set_aside(entry.seq, entry.id, meaning)
            self._observe(EntrySetAside(entry.id, meaning.outcome.value, what))
        if effect.revived:
            self._revive(effect.revived)
        if effect.change is GateChange.LOST:
            self._announcer.outage_began(meaning.error or meaning.outcome.value)
        elif effect.change is not GateChange.NONE:
            self._claims.look_again()
        if effect.change is GateChange.RECOVERED:
            waiting_at = self._outbox.oldest_due_at
            oldest_at = entry.received_at
            if waiting_at is not None:
                oldest_at = min(oldest_at, self._clock_steps.corrected(waiting_at))
            counts = self._outbox.counts
            self._announcer.outage_ended(counts.pending - counts.held, oldest_at)
        if meaning.outcome is not Outcome.DELIVERED or effect.change is not GateChange.NONE:
            self._announcer.state(self._gate.view(), effect.hint or meaning.hint)

    def _revive(self, seqs: tuple[int, ...]) -> None:
        """Dead letters wait again: not they are wrong, the destination refuses everything."""
        for seq in seqs:
            waiting = self._finished.get(seq)
            self._finished[seq] = revived(seq, waiting)
        self._observe(BrakePulled(len(seqs) + 1, self._gate.view().reason or ""))

    def _rest(self, seq: int, delay_s: float) -> int:
        """The entry waits by itself; when that ends."""
        self._claims.rests(seq, delay_s)
        return self._clock.wall_ms() + round(delay_s * 1000)

    def _abandon(self, request: RequestInFlight) -> None:
        """Cancelled at the stop."""
        self._gate.abandon(request.permit)
        self._finished[request.entry.seq] = self._unseen(request)

    def _lose_sight_of(self, request: RequestInFlight, error: Exception) -> None:
        """A defect of ours while it ended: it may have arrived, and is tried again."""
        why = f"internal error: {error!r}: the event may have arrived"
        due_at = self._rest(request.entry.seq, self._settings.delivery.backoff_initial_s)
        self._doubt(request)
        self._finished.setdefault(request.entry.seq, self._unseen(request, why=why, due_at=due_at))
        self._ended()

    def _unseen(self, request: RequestInFlight, **more: Any) -> Settlement:
        """The settlement of a request whose end was not seen."""
        duration_ms = round((self._clock.monotonic_s() - request.started_s) * 1000)
        return abandoned(request.entry, request.started_at, duration_ms, **more)
