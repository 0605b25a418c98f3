"""The sender: drives the policy, the transport and the outbox.

One coroutine decides (`_turn`): it settles what has ended, claims what may
start, writes both in one commit, and only then lets the requests go. So the
outbox always knows what is in flight, and after a crash exactly those are
possible duplicates. While outcomes cannot be committed nothing is sent.
With nothing to send it leaves an offer with the outbox: what comes in next is
claimed by the commit that accepts it.

It decides nothing by itself: when and how many may start is the gate's, which
come next is the claims', what an answer means is the outcome table's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from outboxd.clock import Clock
from outboxd.delivery.announcer import Announcer
from outboxd.delivery.backoff import Backoff
from outboxd.delivery.breaker import Allowance
from outboxd.delivery.claims import Claims, ClockSteps, Expiry
from outboxd.delivery.facts import Fact
from outboxd.delivery.gate import Gate
from outboxd.delivery.in_flight import InFlight, Sending
from outboxd.delivery.settings import DeliverySettings
from outboxd.errors import (
    CommitUnknown,
    DiskShort,
    LeaseLost,
    OutboxdError,
    OutboxUnreachable,
)
from outboxd.outbox.model import Claimed, DestinationHold, Entry, Outage, Settlement, State
from outboxd.outbox.outbox import Outbox
from outboxd.status import DestinationStatus, Through

GATHER_S = 0.001
# Answers that take longer leave the processor idle: there each permit is let go
# again at once. (64 permits at 10 ms pass as many as the processor does; at 50 ms
# gathering cost a twentieth of the rate, at none a commit for each few events
# a sixth of the processor's time.)
GATHER_BELOW_S = 0.01
# So many requests leave together. Whatever leaves together is answered together
# and keeps the loop from everything else while it is worked off: with 64 permits
# and answers after 50 ms that cost two fifths of the rate.
LAUNCHED_AT_ONCE = 8
# While outcomes cannot be committed (a full disk) it is tried again so often.
SETTLE_RETRY_S = 2.0
# What may end by itself, and with it the wait: nothing was written, or nobody knows.
_NOT_NOW = (DiskShort, OutboxUnreachable, CommitUnknown)
# A hold for a certificate that is not valid yet may be over when the clock is
# set, of which nobody tells: it is looked at so often.
CLOCK_LOOK_S = 5.0


class Sender:
    """Delivers what the outbox holds; the API sees it as the Destination."""

    def __init__(
        self,
        outbox: Outbox,
        transport: Sending,
        settings: DeliverySettings,
        clock: Clock,
        random: Callable[[], float],
        observe: Callable[[Fact], None],
        may_launch: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_launch`: whether this process delivers now; another may instead."""
        self._outbox = outbox
        self._may_launch = may_launch
        self._settings = settings
        self._in_order = settings.fifo
        self._clock = clock
        now_s = clock.monotonic_s()
        self._gate = Gate(
            Backoff(settings.delivery.backoff_initial_s, settings.delivery.backoff_max_s),
            settings.delivery.hold_probe_s,
            settings.delivery.concurrency_max,
            settings.delivery.rate_max,
            now_s,
            in_order=self._in_order,
        )
        self._claims = Claims(
            outbox,
            clock,
            settings.delivery.order,
            settings.delivery.fresh_share,
            _due_horizon_s(settings),
            settings.read_ahead,
        )
        self._clock_steps = ClockSteps(clock)
        self._times_set = 0
        self._expiry = Expiry(outbox, clock, self._clock_steps)
        if outbox.destination_hold is not None:
            self._gate.pause(_held_by(outbox.destination_hold), now_s)
        self._announcer = Announcer(observe, clock, self._gate.view())
        self._wake = asyncio.Event()
        self._in_flight = InFlight(
            outbox,
            transport,
            settings,
            self._gate,
            self._claims,
            self._announcer,
            clock,
            self._clock_steps,
            random,
            observe,
            self._wake.set,
        )

        self._arrived = False  # entries came in since the turn before
        self._unclaimed = False  # and some of them no offer has taken
        self._overstated = False  # the outbox has more as in flight than are
        self._settling_failed = False
        self._stopping = False
        self._drain_until_s = now_s
        self.turned_s = now_s  # the last turn, for the watchdog

    # --- what the API and the daemon see ---

    def status(self) -> DestinationStatus:
        """The destination at this moment."""
        view = self._gate.view()
        wall_ms, now_s = self._clock.wall_ms(), self._clock.monotonic_s()

        def wall(at_s: float) -> int:
            return wall_ms + round((at_s - now_s) * 1000)

        return DestinationStatus(
            endpoint=self._settings.komodor.endpoint,
            state=view.state,
            reason=view.reason or self._announcer.of_set_aside(self._gate.set_aside()),
            since_at=wall(view.since_s),
            next_probe_at=None if view.next_probe_s is None else wall(view.next_probe_s),
            permits=self._gate.permits,
            in_flight=len(self._in_flight),
            is_gateway=self._in_flight.next_hop.is_gateway,
            gateway=self._in_flight.next_hop.gateway,
        )

    async def ask_through(self, id: str) -> Through:
        """What became of an entry that the destination took."""
        return await self._in_flight.ask_through(id)

    def sent_body(self, entry: Entry) -> bytes:
        """What was sent last, or would be sent now."""
        return self._in_flight.shown_body(entry)

    async def hold(self, reason: str, by: str) -> None:
        """The operator's hold of the destination; outlives a restart."""
        hold = DestinationHold(reason, by, self._clock.wall_ms())
        await self._outbox.set_destination_hold(hold)
        self._gate.pause(_held_by(hold), self._clock.monotonic_s())
        self._announcer.state(self._gate.view(), "release it with: outboxd release")
        self.wake()

    async def release(self, by: str) -> None:
        """End every wait, whoever imposed it: one request looks at it afresh, now."""
        if self._outbox.destination_hold is not None:
            await self._outbox.set_destination_hold(None)
        if self._gate.release(self._clock.monotonic_s()):
            self._announcer.state(self._gate.view(), None)
        self.wake()

    def heard_hold(self, hold: DestinationHold | None) -> None:
        """The operator has held or released the destination by way of another process."""
        now_s = self._clock.monotonic_s()
        if hold is not None:
            self._gate.pause(_held_by(hold), now_s)
        else:
            self._gate.release(now_s)
        self._announcer.state(self._gate.view(), None)
        self.wake()

    @property
    def outage(self) -> Outage | None:
        """The one that lasts, if there is one."""
        return self._announcer.outage

    def took_over(self, outage: Outage | None) -> None:
        """Another process delivered until now: this one knows only what that wrote down of
        an outage, and looks for itself."""
        self._gate.took_over(self._clock.monotonic_s(), in_outage=outage is not None)
        self._announcer.took_over(outage)
        self._announcer.state(self._gate.view(), None)
        self.wake()  # what it had read ahead others may have sent

    def wake(self) -> None:
        """Entries changed: what was read ahead may no longer be what should be sent."""
        self._claims.forget()
        self.arrived()

    def arrived(self, has_claimed: bool = False) -> None:
        """New entries: the next turn looks for them. `has_claimed`: the standing offer took
        them, or as many as it could."""
        self._arrived = True
        self._unclaimed |= not has_claimed
        self._wake.set()

    def key_changed(self) -> None:
        """There is a new API key: a hold may be over."""
        if self._gate.key_changed(self._clock.monotonic_s()):
            self._wake.set()

    def corrected(self, entry: Claimed) -> Claimed:
        """The entry with its times as they should have been, if the clock was set since."""
        return self._clock_steps.correct(entry)

    def reconfigure(self, settings: DeliverySettings, transport: Sending) -> None:
        """New settings, from the next request on; what is in flight is not touched.

        What was learned of the destination (its state, permits, rate) stays,
        unless it is another destination.
        """
        before, self._settings = self._settings, settings
        self._in_order = settings.fifo
        self._in_flight.configure(settings, transport)
        self._gate.configure(
            Backoff(settings.delivery.backoff_initial_s, settings.delivery.backoff_max_s),
            settings.delivery.hold_probe_s,
            settings.delivery.concurrency_max,
            settings.delivery.rate_max,
            in_order=self._in_order,
        )
        self._claims.configure(
            settings.delivery.order,
            settings.delivery.fresh_share,
            _due_horizon_s(settings),
            settings.read_ahead,
        )
        if settings.komodor.endpoint != before.komodor.endpoint:
            self._gate.moved(self._clock.monotonic_s())
            self._announcer.state(self._gate.view(), None)
        self.key_changed()
        self.wake()

    def stuck_s(self) -> float:
        """For how long the sender has had work that it may do and has not done."""
        may_have_work = self._outbox.counts.pending and (self._unclaimed or self._claims.promising)
        if (
            not (may_have_work or self._in_flight.finished)
            or self._in_flight
            or self._settling_failed
        ):
            return 0.0
        now_s = self._clock.monotonic_s()
        if self._start_at_most(now_s) == 0:
            return 0.0
        return now_s - self.turned_s

    # --- the loop ---

    async def run(self) -> None:
        """Deliver until `stop`.

        Raises:
            OutboxdError: the outbox failed for good.
        """
        if not await self._recover():
            return
        while not self._stopping:
            self._wake.clear()
            self._hear_of_arrivals()
            try:
                progressed = await self._turn()
            except _NOT_NOW as error:  # of a read: nothing of it is under way
                self._not_settled(error, 0)
                self._claims.look_again()
                self._expiry.arrived()
                progressed = False
            self.turned_s = self._clock.monotonic_s()
            if not progressed and not self._arrived:
                self._offer()
                await self._wait(self._pause_s())
            latency_s = self._gate.latency_s
            soon = latency_s is not None and latency_s < GATHER_BELOW_S
            if soon and len(self._in_flight) > 1 and not self._stopping:
                # Others are about to land: they go into the same commit. Each
                # commit writes whole pages and syncs, however little it settles.
                await asyncio.sleep(GATHER_S)
        await self._drain()

    def _hear_of_arrivals(self) -> None:
        """All that came in since the turn before counts as one arrival."""
        if self._arrived:
            self._expiry.arrived()
        if self._unclaimed:
            self._claims.look_again()
            self._gate.arrived(self._clock.monotonic_s())
        self._arrived = self._unclaimed = False

    async def _recover(self) -> bool:
        """What was in flight at a crash may have arrived; False if stopped before
        there was room to write that down."""
        while not self._stopping:
            self._wake.clear()
            try:
                await self._outbox.change_delivery(lambda engine: engine.recover_sending())
            except _NOT_NOW as error:
                self._announcer.settling_failed(error, 0)
                self.turned_s = self._clock.monotonic_s()
                await self._wait(SETTLE_RETRY_S)
            else:
                self._announcer.settling_works()
                return True
        return False

    def stop(self, drain_timeout_s: float) -> None:
        """Start nothing more; `run` lets what flies land, settles it, and returns."""
        self._stopping = True
        self._drain_until_s = self._clock.monotonic_s() + drain_timeout_s
        self._wake.set()

    async def _drain(self) -> None:
        """Settle each as it lands; what has not landed in time may have arrived."""
        await self._launch_offered()  # as far as `stop` allows: not at all
        while self._in_flight:
            self._wake.clear()
            await self._turn()
            left_s = self._drain_until_s - self._clock.monotonic_s()
            if left_s <= 0 or not self._in_flight:
                break
            await self._wait(min(left_s, SETTLE_RETRY_S))
        if tasks := self._in_flight.cancel():
            await asyncio.wait(tasks)
        with suppress(*_NOT_NOW, LeaseLost):
            # If there is no room, the last commit says what was in flight.
            await self._outbox.exchange(list(self._in_flight.take_finished().values()), ())

    async def _wait(self, pause_s: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._wake.wait()

    def _pause_s(self) -> float | None:
        """Seconds until the next timed event; None: wait for a wake-up."""
        if self._settling_failed:
            return SETTLE_RETRY_S
        if not self._outbox.counts.pending or not self._may_launch():
            return None
        now_s = self._clock.monotonic_s()
        times = [self._expiry.next_check_s, self._next_start_s(now_s)]
        if self._gate.watches_clock:
            times.append(now_s + CLOCK_LOOK_S)
        soonest_s = min((at_s for at_s in times if at_s is not None), default=None)
        return None if soonest_s is None else max(0.0, soonest_s - now_s)

    def _next_start_s(self, now_s: float) -> float | None:
        """When a request may start by itself."""
        start_s = self._gate.next_start_s(now_s, other=self._claims.has_others)
        if start_s is None or self._claims.promising:
            return start_s
        due_s = self._claims.next_due_s
        return None if due_s is None else max(start_s, due_s)

    def _start_at_most(self, now_s: float) -> int:
        """How many requests may start now."""
        if self._stopping or self._settling_failed or not self._may_launch():
            return 0
        if self._in_order and self._in_flight.finished:
            return 0  # the one that has just ended may have to go once more, first
        return self._gate.start_at_most(now_s)

    # --- one turn ---

    async def _turn(self) -> bool:
        """Settle, claim and start; False when there was nothing to do, or no room for it."""
        await self._launch_offered()
        self._look_at_clock()
        if self._may_launch():
            for seq, id in await self._expiry.check(self._in_flight.taken()):
                self._in_flight.expire(seq, id)
        changes = self._claims.changes
        batch = await self._choose()
        work = batch or self._in_flight.finished or self._overstated
        if not work and not self._settling_failed:
            return False
        if not await self._commit(batch, changes):
            return False
        if changes == self._claims.changes:
            await self._launch(batch)
        else:
            # Perhaps one of them is held now, or gone.
            self._overstated = bool(batch)
        return True

    async def _choose(self) -> list[Claimed]:
        """The next entries to send; they are claimed by the commit that follows."""
        now_s = self._clock.monotonic_s()
        count = self._start_at_most(now_s)
        if count == 0 or not self._outbox.counts.pending:
            return []
        taken, allowance = self._in_flight.taken(), self._gate.allowance(now_s)
        if allowance is Allowance.ALL:
            return self._in_time(await self._claims.next(count, taken))
        others_only = allowance is Allowance.OTHER
        refused = self._gate.refused_before()
        return self._in_time(await self._claims.probe(taken, refused, others_only=others_only))

    def _look_at_clock(self) -> None:
        """What depends on the wall clock must know that it was set, before it decides."""
        self._clock_steps.look()
        times_set, self._times_set = self._times_set, self._clock_steps.times_set
        if times_set != self._times_set and self._gate.watches_clock:
            self._gate.look_again(self._clock.monotonic_s())

    def _in_time(self, entries: list[Claimed]) -> list[Claimed]:
        """Those whose ttl has not run out."""
        self._look_at_clock()
        batch = []
        for entry in entries:
            expires_at = entry.expires_at
            if expires_at is not None:
                expires_at = self._clock_steps.correct(entry).expires_at
            if expires_at is not None and expires_at <= self._clock.wall_ms():
                self._in_flight.expire(entry.seq, entry.id)
            else:
                batch.append(entry)
        return batch

    async def _commit(self, batch: list[Claimed], changes: int) -> bool:
        """Settle, and record what is about to fly; False where there is no room.

        The batch was chosen when the claims had seen so many changes.
        """
        finished = self._in_flight.take_finished()
        # A commit of nothing succeeds on a full disk, and proves nothing.
        is_proof = bool(finished or batch or self._overstated)
        sending = self._in_flight.without(finished) + [entry.seq for entry in batch]
        try:
            await self._outbox.exchange(list(finished.values()), sending)
        except _NOT_NOW as error:
            self._in_flight.put_back(finished)
            if changes == self._claims.changes:
                self._claims.put_back(batch)
            self._not_settled(error, len(finished))
            return False
        except LeaseLost:
            await self._hand_in_late(finished)
            return False
        self._in_flight.settled(finished)
        if any(settlement.state == State.PENDING for settlement in finished.values()):
            self._claims.look_again()
        self._overstated = self._settling_failed = False
        if is_proof and self._announcer.is_settling_failure_known:
            self._announcer.settling_works()
        return True

    def _not_settled(self, error: OutboxdError, waiting: int) -> None:
        self._settling_failed = True
        self._announcer.settling_failed(error, waiting)

    async def _hand_in_late(self, finished: dict[int, Settlement]) -> None:
        """Another delivers now. What was taken before it knows nothing of is told, since
        that is true whoever delivers; what else an answer meant is for it to find out."""
        late = [each for each in finished.values() if each.state == State.DELIVERED]
        try:
            if late:
                await self._outbox.change(lambda engine: engine.settle(late))
        except _NOT_NOW as error:
            self._in_flight.put_back(finished)
            self._not_settled(error, len(finished))
            return
        self._in_flight.settled(finished)
        self._overstated = self._settling_failed = False

    def _offer(self) -> None:
        """Where requests may start and none waits for it: let the next events be
        claimed as they come in."""
        count = self._start_at_most(self._clock.monotonic_s())
        waits = self._outbox.counts.pending and self._claims.promising
        if count and self._gate.flowing and not waits:
            self._claims.offer(count, self._in_flight.taken())

    async def _launch_offered(self) -> None:
        """Start what came in and is claimed already."""
        try:
            offered = await self._claims.offered()
        except DiskShort:
            return  # neither accepted nor claimed
        batch = self._in_time(offered.entries) if offered.unchanged else []
        self._overstated |= len(batch) < len(offered.entries)
        await self._launch(batch)

    async def _launch(self, batch: list[Claimed]) -> None:
        """Start the requests, as far as the gate still allows after the commit."""
        changes, allowed = self._claims.changes, 0
        for position, entry in enumerate(batch):
            if position and position % LAUNCHED_AT_ONCE == 0:
                await asyncio.sleep(0)
                allowed = 0  # meanwhile some have ended
            if changes != self._claims.changes:
                self._overstated = True  # perhaps one of them is held now, or gone
                return
            # Between two of them nothing happens but that one more is under way.
            allowed = allowed or self._start_at_most(self._clock.monotonic_s())
            if allowed == 0:
                self._claims.put_back(batch[position:])
                self._overstated = True
                return
            self._in_flight.launch(entry)
            allowed -= 1


def _held_by(hold: DestinationHold) -> str:
    return f"held by {hold.by}: {hold.reason}" if hold.reason else f"held by {hold.by}"


def _due_horizon_s(settings: DeliverySettings) -> float:
    """No entry waits longer by itself; a due time beyond was written by a wrong clock."""
    return max(settings.delivery.backoff_max_s, settings.komodor.retry_after_max_s)
