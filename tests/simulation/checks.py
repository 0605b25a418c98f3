"""What must hold in every history, looked at while it runs and at its end.

The checks know nothing of the policy's insides: they see what the network saw,
what the outbox was told to write, and what the outbox holds.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import pairwise

from simulation.memory import Store
from simulation.network import HOLDS, OUTAGES, REJECTS, Network, Request

from outboxd.delivery.facts import Fact, GateChanged, OutageEnded
from outboxd.delivery.outcome import Answer, Fault
from outboxd.delivery.sender import Sender
from outboxd.delivery.settings import DeliverySettings
from outboxd.outbox.model import Outcome, Settlement
from outboxd.outbox.writer import Exchange


class Broken(AssertionError):
    """Something that must hold does not."""


def must(condition: object, what: str) -> None:
    if not condition:
        raise Broken(what)


@dataclass
class Checks:
    """Watches one history."""

    settings: DeliverySettings
    store: Store
    network: Network
    sender: Sender | None = None
    turns: int = 0
    agents: int = 0  # started so far
    pokes: int = 0  # things from outside that may make the sender look again
    reset_s: float = 0.0  # the last of them
    resets: int = 0  # of them, those after which it may probe at once
    full_s: float = 0.0  # for so long was the disk full
    # Since when the operator has been told that the destination or entries are held.
    held_since_s: float = math.inf
    held_ids: dict[str, float] = field(default_factory=dict)
    cut_off: set[str] = field(default_factory=set)  # in flight at a crash or stop
    names: dict[str, str] = field(default_factory=dict)  # of ids with a receipt
    received_s: dict[str, float] = field(default_factory=dict)
    ttl_s: dict[str, float | None] = field(default_factory=dict)
    was_set_back: bool = False  # the wall clock
    _dead_since: set[int] = field(default_factory=set)  # the last delivery, by seq
    _refused_s: dict[str, float] = field(default_factory=dict)  # by id, the first time
    _own_wait_until_s: dict[str, tuple[float, int]] = field(default_factory=dict)
    dropping: set[str] = field(default_factory=set)  # told to, perhaps without an answer
    dropped: dict[str, float] = field(default_factory=dict)
    retried: set[str] = field(default_factory=set)
    facts: list[Fact] = field(default_factory=list)
    spent: Counter[str] = field(default_factory=Counter)
    # Landings in their order: (time, id, whether it was delivered or judged).
    landings: list[tuple[float, str, bool]] = field(default_factory=list)
    _last_failed: dict[str, float] = field(default_factory=dict)
    _spent_in: Counter[int] = field(default_factory=Counter)
    _permits: int = 1
    _in_flight_max: int = 0
    _in_flight_then: int = 0  # after the landings since the last turn, at most
    _ended: tuple[float, int] = (-1.0, 0)  # the last moment at which any did, and how many
    _ids: dict[int, str] = field(default_factory=dict)
    # Retry-After, unless an operator, a new key or a new start came since.
    _wait_until_s: float = 0.0
    _told_to_wait_by: int = -1
    _told: GateChanged | None = None
    _told_by: int = 0
    problems: list[str] = field(default_factory=list)

    # --- while it runs ---

    def guarded(self, check, *arguments) -> None:
        """Run a check; what it says must not be swallowed by the code under test."""
        try:
            check(*arguments)
        except Broken as problem:
            self.problems.append(str(problem))

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, GateChanged):
            last, restarted = self._told, self.agents != self._told_by
            self._told, self._told_by = fact, self.agents
            again = last is not None and last.after == fact.after and not restarted
            if again or fact.before == fact.after:
                self.problems.append(f"told twice: {fact}")
        self.facts.append(fact)

    def request_began(self, request: Request) -> None:
        assert self.sender is not None
        now = f"at {request.began_s:.2f} s, {request.name}"
        in_flight = len(self.network.flying)
        # What ended at this very moment was in flight when this one got its permit.
        ended = self._ended[1] if self._ended[0] == request.began_s else 0
        self._in_flight_max = max(self._in_flight_max, in_flight + ended)
        must(request.began_s <= self.held_since_s, f"{now}: sent while the destination was held")
        entry_since_s = self.held_ids.get(request.id, math.inf)
        must(request.began_s <= entry_since_s, f"{now}: sent while the entry was held")
        dropped_s = self.dropped.get(request.id, math.inf)
        must(request.began_s <= dropped_s, f"{now}: sent after it was dropped")
        own_wait_s, told_by = self._own_wait_until_s.get(request.id, (0.0, -1))
        if self.resets == told_by:
            must(request.began_s >= own_wait_s, f"{now}: sent before its Retry-After was over")
        if self.resets == self._told_to_wait_by:
            must(request.began_s >= self._wait_until_s, f"{now}: sent before Retry-After was over")
        row = self.store.row(request.id)
        if row is None and request.id in self.dropping:
            return
        must(row and row.state == "pending", f"{now}: sent though it is {row}")
        must(row.seq in self.sending(), f"{now}: sent and not written down as in flight")
        limit = (
            1 if self.settings.delivery.order == "fifo" else self.settings.delivery.concurrency_max
        )
        # Those that hang are beside it, and those that were refused before.
        aside = sum(
            request.began_s - r.began_s >= 5.0 or r.id in self._refused_s for r in self._flying()
        )
        limit += min(aside, 16)
        must(in_flight <= limit, f"{now}: {in_flight} in flight, {limit} allowed")
        if self.settings.delivery.order == "fifo":
            self._check_order(request, row.seq, now)
        self._check_stamp(request, now)

    def _flying(self) -> list[Request]:
        return [self.network.requests[number] for number in self.network.flying]

    def _check_order(self, request: Request, seq: int, now: str) -> None:
        """In strict order nothing overtakes but what waits for a second opinion,
        hangs, or is set aside: an entry that was sent already."""
        asked = {r.id for r in self.network.requests if r.began_s < request.began_s}
        overtaken = [id for id in self.store.waiting_before(seq) if id not in asked]
        must(not overtaken, f"{now}: sent before {overtaken}")

    def _check_stamp(self, request: Request, now: str) -> None:
        received_at = self.store.row(request.id).received_at
        delay_ms = self.network.clock.wall_ms() - received_at
        passed_s = request.began_s - self.received_s.get(request.id, request.began_s)
        days = re.match(r"(\d+)d", str(request.details.get("deliveryDelay", "")))
        must(days is None or int(days[1]) < 1000, f"{now}: {request.details} is absurd")
        if self.was_set_back or (self.agents > 1 and received_at < 1_577_836_800_000):
            return  # no time after that says how long anything took
        # An agent that was started since the clock was set knows the wall clock alone.
        late = {
            delay_ms > self.settings.delivery.late_after_s * 1000,
            passed_s > self.settings.delivery.late_after_s,
        }
        must(("deliveryDelay" in request.details) in late, f"{now}: stamped wrongly, {delay_ms}")

    def request_ended(self, request: Request) -> None:
        """Called just before the sender hears the answer."""
        answer = request.answer
        # (It is still among those that fly.)
        self._in_flight_then = max(self._in_flight_then, len(self.network.flying) - 1)
        at_s, count = self._ended
        self._ended = (request.ended_s, count + 1 if at_s == request.ended_s else 1)
        wait_s = _told_to_wait_s(answer)
        until_s = 0.0 if wait_s is None else min(wait_s, self.settings.komodor.retry_after_max_s)
        is_its_own = self._passed_since_refused(request.id)
        if answer.status != 201:
            self._refused_s.setdefault(request.id, request.ended_s)
        if wait_s is not None and is_its_own:
            # While others pass it is the event that is throttled: it waits by itself.
            own_until_s = request.ended_s + until_s - 1e-6
            self._own_wait_until_s[request.id] = (own_until_s, self.resets)
        elif wait_s is not None:
            wait_s = min(wait_s, self.settings.komodor.retry_after_max_s)
            before_s = self._wait_until_s if self.resets == self._told_to_wait_by else 0.0
            # Retry-After is in whole seconds, and floats round.
            self._wait_until_s = max(before_s, request.ended_s + wait_s - 1e-6)
            self._told_to_wait_by = self.resets
        good = answer.status == 201
        self.landings.append((request.ended_s, request.id, good))

    def forget_own_waits(self) -> None:
        """Entries were changed, or the clock: what they were told is no longer certain."""
        self._own_wait_until_s.clear()

    def _passed_since_refused(self, id: str) -> bool:
        """Whether the entry was refused before, and another was delivered since."""
        refused_s = self._refused_s.get(id, math.inf)
        return any(
            good and other != id and at_s >= refused_s for at_s, other, good in self.landings
        )

    def turned(self) -> None:
        """After each turn: permits grow by one, or by half, and only when all were in use."""
        permits = self.sender._gate.permits
        if permits > self._permits:
            most = max(self._permits + 1, int(self._permits * 1.5))
            must(permits <= most, f"permits grew from {self._permits} to {permits}")
            must(
                self._in_flight_max >= self._permits,
                f"permits grew to {permits} with {self._in_flight_max} in flight",
            )
        now = len(self.network.flying)
        if permits != self._permits:
            # One of the landings raised them, and others may have come since: what was in
            # flight then used the new limit. After a pushback only what comes later does.
            self._in_flight_max = now
            if permits > self._permits:
                self._in_flight_max = max(now, self._in_flight_then)
            self._permits = permits
        self._in_flight_then = now

    def agent_started(self, sender: Sender) -> None:
        self._dead_since.clear()
        self.sender, self._permits, self._in_flight_max = sender, 1, 0
        self.agents += 1
        self.resets += 1

    def sending(self) -> list[int]:
        """What the outbox names as in flight."""
        return self.store.sending()

    def waits(self, sender: Sender) -> None:
        """The sender waits until it is woken: then nothing may be there to send."""
        if sender._in_flight or sender._wake.is_set() or sender._start_at_most(self._now_s()) == 0:
            return
        due = self.store.due(self.network.clock.wall_ms())
        must(due == 0, f"at {self._now_s():.2f} s: {due} could be sent, and nobody would")

    def _now_s(self) -> float:
        return self.network.clock.monotonic_s()

    def exchanged(self, operation: Exchange) -> None:
        """What a commit has settled."""
        self.guarded(self._check_dead, operation.settlements)
        for settlement in operation.settlements:
            id = self._id_of(settlement.seq)
            for request in reversed(self.network.requests):
                if request.id == id:
                    request.unsettled = False
                    break
            if settlement.spent:
                self.guarded(self._check_spent, settlement, id)
            attempt = settlement.attempt
            said = self._last_answer(id)
            sent = said is None or said.sent or said.fault is Fault.INTERNAL
            # Nor is a hold of what went out with an old key, or before a release, held
            # against it; what has nothing to do with a key is.
            outdated = self._began_s(id) < self.reset_s
            holds = attempt is not None and attempt.outcome == Outcome.HOLD
            sent = sent and not (holds and outdated)
            if attempt is not None and attempt.outcome in _REFUSALS and sent:
                self._last_failed[id] = self._last_landing_s(id)

    def _check_dead(self, settlements: Sequence[Settlement]) -> None:
        """Nothing dies while nothing is delivered, but for nine rejected; no ttl ends early."""
        if any(settlement.state == "delivered" for settlement in settlements):
            self._dead_since.clear()
        for settlement in settlements:
            if settlement.revives or settlement.state == "pending":
                self._dead_since.discard(settlement.seq)
            # (What dies by the evidence has had others delivered beside it.)
            if settlement.dead_reason == "rejected" and not settlement.spent:
                self._dead_since.add(settlement.seq)
            if settlement.dead_reason == "expired":
                self._check_expired(self._id_of(settlement.seq))
        dead = len(self._dead_since)
        must(dead <= 9, f"at {self._now_s():.2f} s: {dead} have died and nothing was delivered")

    def _check_expired(self, id: str) -> None:
        ttl_s = self.ttl_s.get(id)
        if ttl_s is None or self.was_set_back or self.agents > 1:
            return  # what passed while no agent ran is the wall clock's word alone
        passed_s = self._now_s() - self.received_s[id]
        must(passed_s >= ttl_s - 0.01, f"{self.names[id]} expired after {passed_s:.2f} s")

    def _check_spent(self, settlement: Settlement, id: str) -> None:
        """Spent only if others were delivered meanwhile, and hardly in an outage."""
        request = next(r for r in reversed(self.network.requests) if r.id == id)
        since_s = min(self._last_failed.get(id, request.began_s), request.began_s)
        others = any(
            good and other != id and at_s >= since_s for at_s, other, good in self.landings
        )
        must(
            others, f"{request.name}: an attempt was spent, no other was delivered since {since_s}"
        )
        if request.weather in OUTAGES:
            serial = request.weather_serial
            self._spent_in[serial] += 1
            began_s = next(r.began_s for r in self.network.requests if r.weather_serial == serial)
            # What had begun before may be delivered still.
            most = 1 + sum(good and at_s >= began_s for at_s, _, good in self.landings)
            spent = self._spent_in[serial]
            must(spent <= most, f"{spent} attempts were spent in one outage ({request.weather})")
        self.spent[id] += 1

    def _last_answer(self, id: str) -> Answer | None:
        return next((r.answer for r in reversed(self.network.requests) if r.id == id), None)

    def _began_s(self, id: str) -> float:
        return next((r.began_s for r in reversed(self.network.requests) if r.id == id), math.inf)

    def _last_landing_s(self, id: str) -> float:
        return next((at_s for at_s, other, _ in reversed(self.landings) if other == id), 0.0)

    # --- at the end ---

    def finish(self, ended_s: float) -> None:
        """Everything that can be said only when all is over."""
        must(not self.problems, "; ".join(self.problems[:3]))
        arrivals: dict[str, list[Request]] = defaultdict(list)
        for request in self.network.requests:
            if request.arrived:
                arrivals[request.id].append(request)
        for id, name in self.names.items():
            if id not in self.dropped:
                self._check_entry(id, name, arrivals[id])
        for requests in arrivals.values():
            self._check_duplicates(requests)
        self._check_marks()
        self._check_outages()
        self._check_pace()
        self._check_turns(ended_s)
        must(self.store.engine.counts() == self.store.counted(), "the counts are wrong")

    def _check_entry(self, id: str, name: str, arrivals: list[Request]) -> None:
        row = self.store.row(id)
        if row is None and id in self.dropping:
            return
        must(row is not None, f"{name} is lost: there is no entry")
        state, reason, spent = row.state, row.dead_reason, row.spent
        expires_at, attempts = row.expires_at, row.attempts
        poison = self.network.poison.get(name)
        if state == "delivered":
            must(arrivals, f"{name} is lost: delivered, and it never arrived")
        elif state == "pending":
            must((poison or "400") != "400", f"{name} is still pending: {attempts[-300:]}")
        elif reason == "rejected":
            walled = any(r.id == id and r.weather in REJECTS for r in self.network.requests)
            must(poison or walled, f"{name} was rejected, and only its way was bad: {attempts}")
        elif reason == "exhausted":
            must(
                spent >= self.settings.delivery.attempts_max, f"{name} exhausted with {spent} spent"
            )
            must(poison, f"{name} was given up: {attempts}")
        else:
            must(expires_at is not None, f"{name} expired without a ttl")

    def _check_duplicates(self, requests: list[Request]) -> None:
        for earlier, later in pairwise(requests):
            name = later.name
            must(later.marked, f"{name} arrived again, unmarked, at {later.began_s:.2f} s")
            answer = earlier.answer
            lost = answer is None or answer.status is None or earlier.unsettled
            must(lost, f"{name} arrived twice although the first was answered {answer}")

    def _check_marks(self) -> None:
        doubtful: set[str] = set()
        for request in self.network.requests:
            if request.marked:
                in_doubt = request.id in doubtful or request.id in self.cut_off
                must(in_doubt, f"{request.name} was marked and is no possible duplicate")
            elif request.id in doubtful:
                raise Broken(f"{request.name} was sent unmarked after a doubtful request")
            if request.answer is not None and request.answer.status is None and request.answer.sent:
                doubtful.add(request.id)

    def _check_outages(self) -> None:
        """A destination that is down is asked as the backoff allows, no more."""
        settings = self.settings
        by_serial: dict[int, list[Request]] = defaultdict(list)
        for request in self.network.requests:
            if request.weather in (*OUTAGES, *HOLDS, *REJECTS):
                by_serial[request.weather_serial].append(request)
        for requests in by_serial.values():
            weather = requests[0].weather
            lasted_s = requests[-1].began_s - requests[0].began_s
            if weather in OUTAGES:
                ramp = (
                    math.log2(settings.delivery.backoff_max_s / settings.delivery.backoff_initial_s)
                    + 1
                )
                probes = 4 * lasted_s / settings.delivery.backoff_max_s + 3 * ramp
            else:
                probes = lasted_s / settings.delivery.hold_probe_s
            restarts = (self.resets + 1) * 12
            most = settings.delivery.concurrency_max + 10 + probes + restarts
            must(
                len(requests) <= most,
                f"{len(requests)} requests in {lasted_s:.0f} s of '{weather}', at most {most:.0f}",
            )

    def _check_pace(self) -> None:
        rate = self.settings.delivery.rate_max
        if not rate:
            return
        slack = max(1.0, rate * 0.05) + 1e-6
        starts: dict[int, list[float]] = defaultdict(list)
        for request in self.network.requests:
            starts[request.incarnation].append(request.began_s)
        for times in starts.values():
            for first, begin_s in enumerate(times):
                for last in range(first, min(first + 60, len(times))):
                    allowed = rate * (times[last] - begin_s) + slack
                    count = last - first + 1
                    must(count <= allowed, f"{count} requests from {begin_s:.3f} s, {allowed:.2f}")

    def _check_turns(self, ended_s: float) -> None:
        """No busy loop: a turn for each thing that happened, and for each timer."""
        happened = 3 * len(self.network.requests) + 4 * self.pokes + 10 * self.agents
        timers = ended_s / 30 + self.full_s  # looking for ends of ttls, and for room
        most = 50 + 2 * happened + timers
        must(self.turns <= most, f"{self.turns} turns, {most:.0f} would do")

    # --- looking into the outbox ---

    def _id_of(self, seq: int) -> str:
        if seq not in self._ids:
            self._ids[seq] = self.store.id_of(seq) or f"dropped {seq}"
        return self._ids[seq]

    def outages_told(self) -> int:
        return sum(isinstance(fact, OutageEnded) for fact in self.facts)


_REFUSALS = (Outcome.UNAVAILABLE, Outcome.THROTTLED, Outcome.HOLD)


def _told_to_wait_s(answer: Answer) -> float | None:
    told = answer.headers.get("retry-after")
    if told is None or told.isdigit():
        return None if told is None else float(told)
    until, now = (parsedate_to_datetime(text) for text in (told, answer.headers["date"]))
    return (until - now).total_seconds()
