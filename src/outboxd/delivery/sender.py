"""The sender: drives the policy, the transport and the outbox.

One coroutine decides (`_turn`): it settles what has ended, claims what may
start, writes both in one commit, and only then lets the requests go. So the
outbox always knows what is in flight, and after a crash exactly those are
possible duplicates. While outcomes cannot be committed nothing is sent.

It decides nothing by itself: what an answer means, when the next probe is due,
how many may fly and how fast are pure modules beside it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from outboxd.clock import Clock
from outboxd.delivery.backoff import Backoff
from outboxd.delivery.breaker import Allowance, Breaker, State, Ticket
from outboxd.delivery.facts import (
    AttemptMade,
    EntryExpired,
    Fact,
    GateChanged,
    OutageEnded,
    SettlingFailed,
    SettlingResumed,
)
from outboxd.delivery.late import stamped
from outboxd.delivery.limiter import Limiter
from outboxd.delivery.outcome import Answer, Verdict, decide
from outboxd.delivery.rate import Rate
from outboxd.errors import DiskShort
from outboxd.outbox.engine import DestinationHold
from outboxd.outbox.model import Attempt, Claimed, DeadReason, Outcome, Settlement
from outboxd.outbox.model import State as EntryState
from outboxd.outbox.outbox import Outbox
from outboxd.status import DestinationState, DestinationStatus

# How much is read ahead: enough that no permit waits for a read, little enough
# that fresh events are soon among the next.
READ_AHEAD_MAX = 256
# While outcomes cannot be committed (a full disk) it is tried again so often.
SETTLE_RETRY_S = 2.0
EXPIRY_CHECK_S = 1.0
EXPIRY_CHECK_MAX_S = 60.0
_AT_STOP = "the agent was stopped before the answer came: the event may have arrived"


class Sending(Protocol):
    """What the sender needs of the transport."""

    async def send(self, id: str, body: bytes) -> Answer: ...


class Settings(NamedTuple):
    """What `[delivery]` and `[komodor]` say, in the sender's units."""

    endpoint: str
    concurrency_max: int
    rate_max: int
    backoff_initial_s: float
    backoff_max_s: float
    attempts_max: int
    hold_probe_s: float
    retry_after_max_s: float
    stamp: str
    late_after_s: float
    order: str
    fresh_share: float
    read_ahead: bool  # off while repeats are counted: what is read must be fresh


class Flight(NamedTuple):
    """One request under way."""

    entry: Claimed
    ticket: Ticket
    permit: int
    token: int
    deliveries: int  # how many had been delivered when it started
    started_s: float
    started_at: int


class Sender:
    """Delivers what the outbox holds; the API sees it as the Destination."""

    def __init__(
        self,
        outbox: Outbox,
        transport: Sending,
        settings: Settings,
        clock: Clock,
        random: Callable[[], float],
        observe: Callable[[Fact], None],
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._settings = settings
        self._clock = clock
        self._random = random
        self._observe = observe
        now_s = clock.monotonic_s()
        self._backoff = Backoff(settings.backoff_initial_s, settings.backoff_max_s)
        self._breaker = Breaker(self._backoff, settings.hold_probe_s, now_s)
        self._limiter = Limiter(settings.concurrency_max)
        self._rate = Rate(settings.rate_max)
        if outbox.destination_hold is not None:
            self._breaker.pause(_held_by(outbox.destination_hold), now_s)
        self._shown = self._breaker.view().state
        self._hint: str | None = None
        self._outage: tuple[int, str] | None = None  # when it began, and why

        self._ahead: deque[Claimed] = deque()  # read, not claimed
        self._more = True  # whether the outbox may have more than what was read
        self._flying: dict[int, asyncio.Task[None]] = {}
        self._finished: list[Settlement] = []
        self._passed_over: set[int] = set()  # failed as probes: others first
        self._settling_failed = False
        self._expiry_check_s: float | None = now_s  # None: nothing pending has a ttl
        self._next_due_s: float | None = None

        self._wake = asyncio.Event()
        self._stopping = False
        self._drain_until_s = now_s
        self.turned_s = now_s  # the last turn, for the watchdog

    # --- what the API and the daemon see ---

    def status(self) -> DestinationStatus:
        """The destination at this moment."""
        view = self._breaker.view()
        wall_ms, now_s = self._clock.wall_ms(), self._clock.monotonic_s()

        def wall(at_s: float) -> int:
            return wall_ms + round((at_s - now_s) * 1000)

        return DestinationStatus(
            endpoint=self._settings.endpoint,
            state=view.state,
            reason=view.reason,
            since_at=wall(view.since_s),
            next_probe_at=None if view.next_probe_s is None else wall(view.next_probe_s),
            permits=self._permits(),
            in_flight=len(self._flying),
        )

    async def hold(self, reason: str, by: str) -> None:
        """The operator's hold of the destination; outlives a restart."""
        hold = DestinationHold(reason, by, self._clock.wall_ms())
        await self._outbox.set_destination_hold(hold)
        self._breaker.pause(_held_by(hold), self._clock.monotonic_s())
        self._told("release it with: outboxd release")
        self.wake()

    async def release(self, by: str) -> None:
        """End a hold, the operator's or an answer's; one request looks at it afresh."""
        if self._outbox.destination_hold is not None:
            await self._outbox.set_destination_hold(None)
        if self._breaker.held:
            self._breaker.release(self._clock.monotonic_s())
            self._told(None)
        self.wake()

    def wake(self) -> None:
        """Entries changed: what was read ahead may no longer be what should be sent."""
        self._ahead.clear()
        self.arrived()

    def arrived(self) -> None:
        """New entries: look for them."""
        self._more = True
        if self._expiry_check_s is None:
            self._expiry_check_s = self._clock.monotonic_s() + EXPIRY_CHECK_S
        self._wake.set()

    def key_changed(self) -> None:
        """There is a new API key: a hold may be over."""
        if self._breaker.key_changed(self._clock.monotonic_s()):
            self._wake.set()

    def reconfigure(self, settings: Settings, transport: Sending) -> None:
        """New settings, from the next request on; what is in flight is not touched.

        What was learned of the destination (its state, permits, rate) stays,
        unless it is another destination.
        """
        before, self._settings = self._settings, settings
        self._transport = transport
        self._backoff = Backoff(settings.backoff_initial_s, settings.backoff_max_s)
        self._breaker.configure(self._backoff, settings.hold_probe_s)
        if settings.concurrency_max != before.concurrency_max:
            self._limiter.configure(settings.concurrency_max)
        if settings.rate_max != before.rate_max:
            self._rate.configure(settings.rate_max)
        self.key_changed()
        self.wake()

    def stuck_s(self) -> float:
        """For how long the sender has had work that it may do and has not done."""
        may_have_work = self._outbox.counts.pending and (self._ahead or self._more)
        if not (may_have_work or self._finished) or self._flying or self._settling_failed:
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
        await self._outbox.recover_sending()
        while not self._stopping:
            self._wake.clear()
            try:
                progressed = await self._turn()
            except DiskShort as error:
                self._settling_stopped(error)
                progressed = False
            self.turned_s = self._clock.monotonic_s()
            if not progressed:
                await self._wait(self._pause_s())
        await self._drain()

    def stop(self, drain_timeout_s: float) -> None:
        """Start nothing more; `run` lets what flies land, settles it, and returns."""
        self._stopping = True
        self._drain_until_s = self._clock.monotonic_s() + drain_timeout_s
        self._wake.set()

    async def _drain(self) -> None:
        """Settle each as it lands; what has not landed in time may have arrived."""
        while self._flying:
            self._wake.clear()
            with suppress(DiskShort):
                await self._turn()
            left_s = self._drain_until_s - self._clock.monotonic_s()
            if left_s <= 0 or not self._flying:
                break
            await self._wait(min(left_s, SETTLE_RETRY_S))
        tasks = set(self._flying.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        with suppress(DiskShort):
            await self._outbox.exchange(self._finished, ())

    async def _wait(self, pause_s: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._wake.wait()

    def _pause_s(self) -> float | None:
        """Until when nothing can happen by itself; None: until woken."""
        now_s = self._clock.monotonic_s()
        if self._settling_failed:
            return SETTLE_RETRY_S
        times = []
        if self._outbox.counts.pending:
            times.append(self._expiry_check_s)
            if self._ahead or self._more:
                times.append(self._breaker.next_probe_s())
                if self._breaker.allowance(now_s) is Allowance.ALL and self._limiter.free():
                    times.append(self._rate.ready_s(now_s))
            times.append(self._next_due_s)
        soonest = min((at for at in times if at is not None), default=None)
        return None if soonest is None else max(0.0, soonest - now_s)

    async def _turn(self) -> bool:
        """Settle, claim and start; False when there was nothing to do."""
        await self._expire()
        batch = await self._choose(self._start_at_most(self._clock.monotonic_s()))
        if not batch and not self._finished:
            return False
        finished, self._finished = self._finished, []
        settled = {settlement.seq for settlement in finished}
        sending = [seq for seq in self._flying if seq not in settled]
        sending += [entry.seq for entry in batch]
        try:
            await self._outbox.exchange(finished, sending)
        except DiskShort:
            self._finished = finished + self._finished
            self._ahead.extendleft(reversed(batch))
            raise
        self._settling_works()
        for settlement in finished:
            self._flying.pop(settlement.seq, None)
        if finished:
            self._more = True
        self._launch(batch)
        return True

    def _start_at_most(self, now_s: float) -> int:
        """How many requests may start now."""
        if self._stopping or self._settling_failed:
            return 0
        allowance = self._breaker.allowance(now_s)
        if allowance is Allowance.NONE or self._rate.ready_s(now_s) > now_s:
            return 0
        if allowance is Allowance.PROBE:
            return 1
        if self._settings.order == "fifo":
            return 0 if self._flying else 1
        free = self._limiter.free()
        per_second = self._rate.per_second()
        # A bounded rate is kept by starting few at a time.
        return free if per_second is None else min(free, max(1, int(per_second / 50)))

    # --- claiming ---

    async def _choose(self, count: int) -> list[Claimed]:
        """The next entries to send; they are claimed by the commit that follows."""
        if count == 0 or not self._outbox.counts.pending:
            return []
        probing = self._breaker.state is not State.CLOSED
        fresh_reads = probing or not self._settings.read_ahead or self._settings.order == "fifo"
        if fresh_reads:
            self._ahead.clear()
            self._more = True
        if len(self._ahead) < count and self._more:
            await self._read_ahead(count if fresh_reads else min(4 * count, READ_AHEAD_MAX), count)
        now_ms = self._clock.wall_ms()
        batch: list[Claimed] = []
        while self._ahead and len(batch) < count:
            entry = self._ahead.popleft()
            if entry.seq in self._flying:
                continue
            if entry.expires_at is not None and entry.expires_at <= now_ms:
                self._expire_entry(entry.seq)
                continue
            batch.append(entry)
        return batch

    async def _read_ahead(self, target: int, count: int) -> None:
        wanted = max(target, count) - len(self._ahead)
        taken = {entry.seq for entry in self._ahead}
        taken |= self._flying.keys()
        self._more = False  # an arrival while reading sets it again
        fifo = self._settings.order == "fifo"
        found = await self._fetch(wanted, taken if fifo else taken | self._passed_over)
        if not found and self._passed_over:
            self._passed_over.clear()
            found = await self._fetch(wanted, taken)
        self._ahead.extend(found)
        if len(found) == wanted:
            self._more = True
            return
        due_at = await self._outbox.next_due_at()
        self._next_due_s = None
        if due_at is not None:
            # The wall clock may have jumped since the due time was written.
            wait_s = (due_at - self._clock.wall_ms()) / 1000
            wait_s = min(max(0.0, wait_s), self._settings.backoff_max_s)
            self._next_due_s = self._clock.monotonic_s() + wait_s

    async def _fetch(self, count: int, taken: set[int]) -> list[Claimed]:
        settings = self._settings
        return await self._outbox.fetch(
            count,
            exclude=taken,
            order=settings.order,
            fresh_share=settings.fresh_share,
            due_horizon_s=settings.backoff_max_s,
        )

    async def _expire(self) -> None:
        """Make dead letters of entries whose ttl ran out, a portion at a time."""
        now_s = self._clock.monotonic_s()
        if self._expiry_check_s is None or now_s < self._expiry_check_s:
            return
        expired, next_at = await self._outbox.expired(READ_AHEAD_MAX)
        for seq in expired:
            if seq not in self._flying:
                self._expire_entry(seq)
        if next_at is None:
            self._expiry_check_s = None
        else:
            # Not much later than a minute from now: the wall clock may jump.
            wait_s = (next_at - self._clock.wall_ms()) / 1000
            self._expiry_check_s = now_s + min(max(wait_s, EXPIRY_CHECK_S), EXPIRY_CHECK_MAX_S)

    def _expire_entry(self, seq: int) -> None:
        self._finished.append(
            Settlement(seq, EntryState.DEAD, None, dead_reason=DeadReason.EXPIRED)
        )
        self._observe(EntryExpired(seq))

    # --- one request ---

    def _launch(self, batch: list[Claimed]) -> None:
        """Start the requests, as far as the gate still allows."""
        for position, entry in enumerate(batch):
            now_s = self._clock.monotonic_s()
            if self._stopping or self._breaker.allowance(now_s) is Allowance.NONE:
                # It closed during the commit. These are recorded as in flight
                # until the next commit, which errs on the safe side.
                self._ahead.extendleft(reversed(batch[position:]))
                return
            flight = Flight(
                entry,
                self._breaker.begin(now_s),
                self._limiter.started(),
                self._rate.take(now_s),
                self._breaker.deliveries,
                now_s,
                self._clock.wall_ms(),
            )
            self._flying[entry.seq] = _task(self._fly(flight))

    async def _fly(self, flight: Flight) -> None:
        settings, entry = self._settings, flight.entry
        body = stamped(entry, flight.started_at, settings.stamp, settings.late_after_s)
        try:
            answer = await self._transport.send(entry.id, body)
        except asyncio.CancelledError:
            self._abandon(flight)
            return
        self._land(flight, answer)

    def _land(self, flight: Flight, answer: Answer) -> None:
        """What the answer means, for the destination and for the entry."""
        now_s = self._clock.monotonic_s()
        verdict = decide(answer, self._clock.wall_ms(), self._settings.retry_after_max_s)
        others_delivered = self._breaker.deliveries > flight.deliveries
        self._tell_policy(flight, verdict, now_s)
        settlement = self._settlement(flight, verdict, now_s, others_delivered)
        self._finished.append(settlement)
        self._observe(
            AttemptMade(
                flight.entry.id,
                verdict,
                now_s - flight.started_s,
                (self._clock.wall_ms() - flight.entry.received_at) / 1000,
                flight.entry.attempt_count + 1,
                settlement.dead_reason,
            )
        )
        self._wake.set()

    def _tell_policy(self, flight: Flight, verdict: Verdict, now_s: float) -> None:
        breaker, limiter, rate = self._breaker, self._limiter, self._rate
        ticket, outcome = flight.ticket, verdict.outcome
        reason = verdict.error or outcome.value
        if outcome in (Outcome.DELIVERED, Outcome.REJECTED):
            rate.accepted(now_s)
            limiter.succeeded(flight.permit, now_s - flight.started_s)
            if breaker.succeeded(ticket, now_s):
                self._came_back(flight)
        elif outcome is Outcome.THROTTLED:
            rate.throttled(flight.token, now_s)
            limiter.pushed_back(flight.permit)
            breaker.throttled(ticket, verdict.retry_after_s, reason, now_s, self._random())
        elif outcome is Outcome.HOLD:
            limiter.failed(flight.permit)
            if breaker.must_hold(ticket, reason, now_s):
                self._went_away(reason)
        else:
            limiter.failed(flight.permit)
            if breaker.unavailable(ticket, reason, now_s, self._random()):
                self._went_away(reason)
        self._told(verdict.hint)

    def _settlement(
        self, flight: Flight, verdict: Verdict, now_s: float, others_delivered: bool
    ) -> Settlement:
        entry, outcome = flight.entry, verdict.outcome
        duration_ms = round((now_s - flight.started_s) * 1000)
        attempt = Attempt(
            flight.started_at, duration_ms, outcome.value, verdict.status, verdict.error
        )
        if outcome is Outcome.DELIVERED:
            return Settlement(entry.seq, EntryState.DELIVERED, attempt)
        if outcome is Outcome.REJECTED:
            return Settlement(entry.seq, EntryState.DEAD, attempt, dead_reason=DeadReason.REJECTED)
        doubtful = verdict.may_have_arrived
        if outcome is not Outcome.UNAVAILABLE:
            return Settlement(entry.seq, EntryState.PENDING, attempt, possible_duplicate=doubtful)
        if len(self._passed_over) < READ_AHEAD_MAX:
            self._passed_over.add(entry.seq)
        if not others_delivered:
            return Settlement(entry.seq, EntryState.PENDING, attempt, possible_duplicate=doubtful)
        return self._spent(entry, attempt, doubtful)

    def _spent(self, entry: Claimed, attempt: Attempt, doubtful: bool) -> Settlement:
        """It failed while others were delivered: that is the event's own fault."""
        spent = entry.spent + 1
        if 0 < self._settings.attempts_max <= spent:
            return Settlement(
                entry.seq,
                EntryState.DEAD,
                attempt,
                spent=1,
                possible_duplicate=doubtful,
                dead_reason=DeadReason.EXHAUSTED,
            )
        delay_s = self._backoff.delay_s(spent, self._random())
        due_at = self._clock.wall_ms() + round(delay_s * 1000)
        return Settlement(
            entry.seq, EntryState.PENDING, attempt, due_at, spent=1, possible_duplicate=doubtful
        )

    def _abandon(self, flight: Flight) -> None:
        """Cancelled at the stop: whether the event arrived is not known."""
        self._breaker.abandon(flight.ticket)
        self._limiter.failed(flight.permit)
        duration_ms = round((self._clock.monotonic_s() - flight.started_s) * 1000)
        attempt = Attempt(flight.started_at, duration_ms, Outcome.UNAVAILABLE.value, None, _AT_STOP)
        self._finished.append(
            Settlement(flight.entry.seq, EntryState.PENDING, attempt, possible_duplicate=True)
        )

    # --- changes of state ---

    def _went_away(self, reason: str) -> None:
        if self._outage is None:
            self._outage = (self._clock.wall_ms(), reason)

    def _came_back(self, flight: Flight) -> None:
        self._limiter.restart()
        self._passed_over.clear()
        self._more = True
        if self._outage is None:
            return
        began_at, reason = self._outage
        self._outage = None
        oldest_at = self._outbox.oldest_pending_at or flight.entry.received_at
        self._observe(
            OutageEnded(
                began_at,
                self._clock.wall_ms(),
                reason,
                self._outbox.counts.pending,
                min(oldest_at, flight.entry.received_at),
            )
        )

    def _told(self, hint: str | None) -> None:
        """Tell of a change of the destination's state, once."""
        view = self._breaker.view()
        if view.state == self._shown:
            return
        before, self._shown = self._shown, view.state
        wait_s = None
        if view.next_probe_s is not None:
            wait_s = max(0.0, view.next_probe_s - self._clock.monotonic_s())
        fine = view.state in (DestinationState.OK, DestinationState.UNTRIED)
        self._observe(GateChanged(before, view.state, view.reason, None if fine else hint, wait_s))

    def _settling_stopped(self, error: DiskShort) -> None:
        if not self._settling_failed:
            self._settling_failed = True
            self._observe(SettlingFailed(error.message, len(self._finished)))

    def _settling_works(self) -> None:
        if self._settling_failed:
            self._settling_failed = False
            self._observe(SettlingResumed())

    def _permits(self) -> int:
        return 1 if self._settings.order == "fifo" else self._limiter.permits


def _held_by(hold: DestinationHold) -> str:
    return f"held by {hold.by}: {hold.reason}" if hold.reason else f"held by {hold.by}"


def _task(flight: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(flight)
