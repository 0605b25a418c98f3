"""One history: what happens to an agent between its first event and its last.

A seed gives a plan (weather, bursts, crashes, the operator's doings) and every
other random number, so that the same seed always takes the same course. When
the troubles of the plan are over, the backlog must end in bounded time.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace
from simulation.checks import Checks, must
from simulation.memory import InlineWriter, MemoryStore, Store
from simulation.network import CALM, GRUDGES, HOLDS, OUTAGES, REJECTS, THROTTLES, Network
from simulation.virtual_loop import VirtualClock, VirtualLoop, run

from outboxd.config.load import load_client
from outboxd.delivery.sender import Sender
from outboxd.delivery.settings import DeliverySettings
from outboxd.errors import DiskShort
from outboxd.outbox.model import EntryChange, Incoming
from outboxd.outbox.outbox import Outbox
from outboxd.status import DestinationState

_BUILT_IN = load_client(None, {"HOME": "/"})


def with_settings(read_ahead: bool = True, **changes: object) -> DeliverySettings:
    """The sender's settings: those built in, with few permits, but for these changes."""
    changes = {"concurrency_max": 16, **changes}
    komodor = {
        name: changes.pop(name) for name in ("endpoint", "retry_after_max_s") if name in changes
    }
    return DeliverySettings(
        replace(_BUILT_IN.komodor, **komodor), replace(_BUILT_IN.delivery, **changes), read_ahead
    )


SETTINGS = with_settings()
DAY_S = 86_400.0
YEAR_2020_MS = 1_577_836_800_000


@dataclass
class Agent:
    """One incarnation: what a crash takes away."""

    outbox: Outbox
    sender: Sender
    writers: list[InlineWriter]  # for what comes in first; perhaps others beside it
    task: asyncio.Task[None]
    election: Any = None
    electing: asyncio.Task[None] | None = None

    @property
    def writer(self) -> InlineWriter:
        return self.writers[0]

    def end_electing(self) -> None:
        if self.electing is not None:
            self.electing.cancel()


class WatchedSender(Sender):
    """Counts its turns, and sees that it does not wait in vain."""

    checks: Checks

    async def _wait(self, pause_s: float | None) -> None:
        if pause_s is None and not self._stopping:
            self.checks.guarded(self.checks.waits, self)
        await super()._wait(pause_s)

    async def _turn(self) -> bool:
        self.checks.turns += 1
        progressed = await super()._turn()
        self.checks.guarded(self.checks.turned)
        return progressed


@dataclass
class World:
    """An agent, its outbox, the network and the checks, on virtual time."""

    settings: DeliverySettings = SETTINGS
    seed: int = 0
    repeat_window_s: float = 0.0
    commit_s: Callable[[], float] = lambda: 0.0
    wall_ms: int = 1_750_000_000_000
    loop: VirtualLoop = field(default_factory=VirtualLoop)
    network_of: type[Network] = Network
    store_of: Callable[[VirtualClock, float], Store] = MemoryStore
    entries: list[tuple[str, str | None]] = field(default_factory=list)  # state, reason: at the end

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.clock = VirtualClock(self.loop, self.wall_ms)
        self.store = self.store_of(self.clock, self.repeat_window_s)
        self.network = self.network_of(self.clock, self.rng)
        self.checks = Checks(self.settings, self.store, self.network)
        self.network.on_start = lambda r: self.checks.guarded(self.checks.request_began, r)
        self.network.on_end = self.checks.request_ended
        self.agent: Agent | None = None
        self.count = 0
        self.disk_full_since_s: float | None = None
        # Die at so many commits from now: before it is written, or after.
        self.dies_in: int | None = None
        self.dies_after_commit = False

    def run(self, main) -> None:
        """Run a scenario to its end; what is in the outbox then is kept in `entries`."""
        with closing(self.store):
            run(self.loop, main)
            must(not self.checks.problems, "; ".join(self.checks.problems[:3]))
            self.entries = self.store.ended()

    @property
    def engine(self) -> Any:
        """The one for what comes in; a new process may have another."""
        return self.store.engine

    # --- the agent ---

    async def start(self) -> None:
        """A new process on what was committed."""
        self.store.reopen()
        writers: list[InlineWriter] = []

        def make_writer(*arguments) -> InlineWriter:
            writers.append(InlineWriter(*arguments))
            return writers[-1]

        outbox = await Outbox.start(self.engine, make_writer=make_writer, **self.store.beside())
        for writer in writers:
            writer.commit_s = self.commit_s
            writer.on_exchange = self.checks.exchanged
            writer.dies = self._dies
            writer.disk_full = self.disk_full_since_s is not None
        election = self.store.election(outbox)
        sender = WatchedSender(
            outbox,
            self.network,
            self.settings,
            self.clock,
            self.rng.random,
            self.checks.observe,
            *(() if election is None else (election.may_launch,)),
        )
        sender.checks = self.checks
        self.checks.agent_started(sender)
        outbox.on_arrival = sender.arrived
        task = self.loop.create_task(sender.run())
        self.agent = Agent(outbox, sender, writers, task, election)
        if election is not None:
            election.join(sender, lambda trouble: None, lambda: None)
            self.agent.electing = self.loop.create_task(election.run())

    def _dies(self, committed: bool) -> bool:
        if self.dies_in is None or committed != self.dies_after_commit:
            return False
        self.dies_in -= 1
        if self.dies_in > 0:
            return False
        self.crash()
        return True

    def crash(self) -> None:
        """As with `kill -9`: what is not committed is gone."""
        agent, self.agent, self.dies_in = self.agent, None, None
        if agent is None:
            return
        for writer in agent.writers:
            writer.kill()
        agent.end_electing()
        recorded = {id for seq in self.store.sending() if (id := self.store.id_of(seq)) is not None}
        self.checks.cut_off |= {id for id, _ in self.store.pending() if id in recorded}
        if agent.sender._stopping:  # its last commit may have settled what it cut off
            self.checks.cut_off |= self._unanswered()
        unsettled = [
            r for r in self.network.requests
            if r.incarnation == self.network.incarnation and r.unsettled
        ]  # fmt: skip
        limit = self.settings.delivery.concurrency_max + 16  # of them, those that hang
        if len({r.id for r in unsettled}) > limit:
            self.checks.problems.append(f"{len(unsettled)} in doubt at a crash, limit {limit}")
        self.network.incarnation += 1
        agent.task.cancel()
        agent.sender._in_flight.cancel()

    def _unanswered(self) -> set[str]:
        """The ids of what this agent has sent and heard nothing of."""
        return {
            r.id for r in self.network.requests
            if r.incarnation == self.network.incarnation and r.answer is None
        }  # fmt: skip

    async def stop(self, drain_s: float = 10.0) -> None:
        """As with SIGTERM."""
        agent = self.agent
        if agent is None:
            return
        agent.sender.stop(drain_s)
        await asyncio.wait([agent.task], timeout=drain_s + 60.0)
        if self.agent is not agent:
            return  # it crashed while it stopped
        must(agent.task.done(), "the sender did not stop")
        agent.task.result()
        self.checks.cut_off |= self._unanswered()
        full = self.disk_full_since_s is not None
        delivered = agent.election is None or agent.election.state().is_here
        if delivered and not full:
            must(not self.checks.sending(), "after a stop something stands as in flight")
        self.network.incarnation += 1
        if agent.election is not None:
            await agent.election.give_up()
            agent.end_electing()
            if self.agent is not agent:
                return  # it crashed at that commit
        for writer in agent.writers:
            await writer.stop()
        self.agent = None

    # --- producers ---

    async def give(self, count: int = 1, **fields) -> list[str]:
        """Hand in events; the ids of those that got a receipt."""
        if self.agent is None:
            return []
        items, names = [], []
        for _ in range(count):
            name = fields.get("name") or f"e{self.count}"
            self.count += 1
            names.append(name)
            body = b'{"eventType":"t","summary":"%s"}' % name.encode()
            ttl_s = fields.get("ttl_s")
            now = self.clock.wall_ms()
            expires_at = None if ttl_s is None else now + round(ttl_s * 1000)
            items.append(
                Incoming(body, "t", "information", "", "socket", now, None, expires_at, None)
            )
        self.checks.pokes += 1
        received_s = self.loop.time()
        try:
            receipts = await asyncio.wait_for(self.agent.outbox.accept(items), 10.0)
        except (DiskShort, TimeoutError):
            return []  # refused, or it died: no receipt
        for receipt, name in zip(receipts, names, strict=True):
            self.checks.names[receipt.id] = name
            self.checks.received_s[receipt.id] = received_s
            self.checks.ttl_s[receipt.id] = fields.get("ttl_s")
        return [receipt.id for receipt in receipts]

    # --- the operator, and what else happens ---

    async def hold(self) -> None:
        self._poke()
        if self.agent is not None:
            await self.agent.sender.hold("maintenance", "uid 0")
            self.checks.held_since_s = self.loop.time()

    async def release(self) -> None:
        self._poke(reset=True)
        self.checks.held_since_s = math.inf
        if self.agent is not None:
            await self.agent.sender.release("uid 0")

    async def change_entry(self, verb: str, id: str) -> None:
        """As the API does: the change, then the sender looks afresh."""
        agent = self.agent
        if agent is None:
            return
        self._poke()
        if verb == "release":
            self.checks.held_ids.pop(id, None)
        elif verb == "drop":
            self.checks.dropping.add(id)
            self.checks.held_ids.pop(id, None)
        self.checks.forget_own_waits()
        entry = await agent.outbox.change(lambda engine: engine.change(EntryChange(verb), id))
        agent.sender.wake()
        if verb == "hold" and entry.held:
            self.checks.held_ids[id] = self.loop.time()
        elif verb == "retry" and not entry.held:
            self.checks.held_ids.pop(id, None)  # its hold ended with its first life
        elif verb == "drop":
            self.checks.dropped[id] = self.loop.time()

    def set_key(self, key: str) -> None:
        """The key file has a new content."""
        held = self.agent and self.agent.sender.status().state is DestinationState.HELD
        self._poke(reset=bool(held))
        self.checks.reset_s = self.loop.time()  # what went out with the old one is void
        self.network.key = key
        if self.agent is not None:
            self.agent.sender.key_changed()

    def fill_disk(self, full: bool) -> None:
        now_s = self.loop.time()
        if full and self.disk_full_since_s is None:
            self.disk_full_since_s = now_s
        elif not full and self.disk_full_since_s is not None:
            self.checks.full_s += now_s - self.disk_full_since_s
            self.disk_full_since_s = None
        if self.agent is not None:
            for writer in self.agent.writers:
                writer.disk_full = full

    def finish(self) -> None:
        """All checks that can be made only when all is over."""
        self.checks.finish(self.loop.time())

    def _poke(self, reset: bool = False) -> None:
        self.checks.pokes += 1
        self.checks.resets += reset
        if reset:
            self.checks.reset_s = self.loop.time()

    async def until_empty(self, within_s: float, left: Callable[[], int] = lambda: 0) -> None:
        """Wait until no more is pending than may be left."""
        until_s = self.loop.time() + within_s
        while self.engine.counts().pending > left():
            must(
                self.loop.time() < until_s,
                f"the backlog does not end: {self.engine.counts()} after {within_s:.0f} s,"
                f" {self.agent and self.agent.sender.status()}",
            )
            await asyncio.sleep(min(5.0, within_s / 10))


# --- seeded histories ----------------------------------------------------------


def play(seed: int, store_of: Callable[[VirtualClock, float], Store] = MemoryStore) -> World:
    """One seeded history with all its checks; the world as it is in the end."""
    rng = random.Random(f"plan {seed}")
    world = World(
        settings=_settings(rng),
        seed=seed,
        commit_s=rng.choice((lambda: 0.0, lambda: 0.002, lambda: rng.expovariate(20.0))),
        # A host without a battery for its clock begins in 1970.
        wall_ms=rng.choice((1_750_000_000_000,) * 5 + (20_000,)),
        store_of=store_of,
    )
    world.network.latency_s = rng.choice((0.01, 0.05, 0.2, 2.0))
    world.run(_History(world, rng).run())
    return world


def _settings(rng: random.Random) -> DeliverySettings:
    fifo = rng.random() < 0.15
    return with_settings(
        concurrency_max=rng.choice((1, 2, 4, 16)),
        rate_max=rng.choice((0, 0, 0, 1, 5, 100)),
        backoff_initial_s=rng.choice((0.5, 1.0, 2.0)),
        backoff_max_s=rng.choice((10.0, 60.0, 300.0)),
        attempts_max=rng.choice((8, 20)),
        hold_probe_s=rng.choice((60.0, 300.0)),
        retry_after_max_s=rng.choice((60.0, 600.0)),
        order="fifo" if fifo else "mixed",
        read_ahead=rng.random() < 0.7,
    )


class _History:
    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.poison_count = 0

    async def run(self) -> None:
        world, rng = self.world, self.rng
        await world.start()
        for _ in range(rng.randint(4, 12)):
            await self._chapter()
            pauses_s = (0.0, 0.05, rng.expovariate(0.2), rng.expovariate(0.01))
            await asyncio.sleep(rng.choice(pauses_s))
        await self._mend()
        await self._end()
        world.finish()

    async def _chapter(self) -> None:
        """One thing happens, often to an agent that is busy with another."""
        rng = self.rng
        doings = (
            (6, self._burst),
            (2, self._calm),
            (5, self._weather),
            (1, self._poison),
            (1, self._crash),
            (1, self._crash_at_commit),
            (1, self._stop),
            (1, self._jump),
            (1, self._key),
            (1, self._hold),
            (2, self._touch_entry),
            (0.5, self._disk),
        )
        (doing,) = rng.choices([d for _, d in doings], [w for w, _ in doings])
        await doing()

    async def _burst(self) -> None:
        ttl_s = self.rng.choice((None, None, None, 5.0, 120.0))
        await self._up()
        await self.world.give(self.rng.choice((1, 1, 2, 5, 12)), ttl_s=ttl_s)

    async def _calm(self) -> None:
        """Single events for a sender with nothing to do, perhaps its last."""
        self.world.network.turn("fine")
        if self.rng.random() < 0.5:
            await self._crash_at_commit()
        for _ in range(self.rng.randint(1, 4)):
            await self._up()
            await asyncio.sleep(self.rng.choice((0.02, 1.0, 30.0)))
            await self.world.give()

    async def _weather(self) -> None:
        kinds = self.rng.choice((OUTAGES, OUTAGES, HOLDS, THROTTLES, CALM, REJECTS))
        network = self.world.network
        network.limit = self.rng.choice((1, 5, 20))
        network.skew_s = self.rng.choice((0.0, -DAY_S, 3600.0))
        network.turn(self.rng.choice(kinds))

    async def _poison(self) -> None:
        name = f"p{self.poison_count}"
        self.poison_count += 1
        self.world.network.poison[name] = self.rng.choice(GRUDGES)
        await self._up()
        await self.world.give(name=name)

    async def _crash(self) -> None:
        self.world.crash()
        await asyncio.sleep(self.rng.choice((0.0, 0.5, 60.0)))
        await self._up()

    async def _crash_at_commit(self) -> None:
        self.world.dies_in = self.rng.randint(1, 6)
        self.world.dies_after_commit = self.rng.random() < 0.5

    async def _stop(self) -> None:
        await self.world.stop(self.rng.choice((0.0, 1.0, 10.0, 40.0)))
        await self._up()

    async def _jump(self) -> None:
        seconds = self.rng.choice((DAY_S, -DAY_S, 90.0, -90.0))
        if self.world.clock.wall_ms() < YEAR_2020_MS:
            seconds = (1_750_000_000_000 - self.world.wall_ms) / 1000
        self.world.clock.jump(seconds)
        self.world.checks.forget_own_waits()
        self.world.checks.was_set_back |= seconds < 0
        self.world.checks.pokes += 1

    async def _key(self) -> None:
        network = self.world.network
        network.good_key = f"k{self.rng.randint(2, 9)}"
        if self.rng.random() < 0.7:
            await asyncio.sleep(self.rng.expovariate(0.02))
            self.world.set_key(self.rng.choice((network.good_key, "wrong")))

    async def _hold(self) -> None:
        await self._operate(self.world.hold())
        if self.rng.random() < 0.6:
            await asyncio.sleep(self.rng.expovariate(0.02))
            await self._operate(self.world.release())

    async def _touch_entry(self) -> None:
        world = self.world
        ids = [id for id in world.checks.names if id not in world.checks.dropping]
        if ids and world.agent is not None and world.disk_full_since_s is None:
            verb = self.rng.choice(("hold", "hold", "release", "retry", "drop"))
            await self._operate(world.change_entry(verb, self.rng.choice(ids)))

    async def _operate(self, doing) -> None:
        try:
            await asyncio.wait_for(doing, 10.0)
        except TimeoutError:
            must(self.world.agent is None, "the operator got no answer")

    async def _disk(self) -> None:
        self.world.fill_disk(True)
        await asyncio.sleep(self.rng.expovariate(0.05))
        self.world.fill_disk(False)

    async def _up(self) -> None:
        if self.world.agent is None:
            await self.world.start()

    # --- the end ---

    async def _mend(self) -> None:
        """All troubles end, and the operator lets go of everything."""
        world = self.world
        world.dies_in = None
        world.fill_disk(False)
        await self._up()
        world.network.turn("fine")
        world.set_key(world.network.good_key)
        await world.release()
        for id in world.store.held():
            await world.change_entry("release", id)

    async def _end(self) -> None:
        """The backlog ends; poisoned events do while others are delivered."""
        world, settings = self.world, self.world.settings
        longest_wait_s = max(
            settings.delivery.hold_probe_s,
            settings.delivery.backoff_max_s,
            settings.komodor.retry_after_max_s,
        )
        per_event_s = 2 * world.network.latency_s + 2.0
        within_s = 2 * longest_wait_s + 120.0 + world.count * per_event_s
        stuck = self._poisoned()
        within_s += 3 * len(stuck) * (settings.delivery.backoff_max_s + 40)
        await world.until_empty(within_s, lambda: len(self._poisoned()))
        if stuck and self.rng.random() < 0.3:
            await self._exhaust(len(stuck))

    async def _exhaust(self, stuck: int) -> None:
        world, settings = self.world, self.world.settings
        for _ in range(2 * stuck * (settings.delivery.attempts_max + 3)):
            if not self._poisoned():
                return
            await world.give()
            await asyncio.sleep(
                self.rng.uniform(1.0, 1.1) * (settings.delivery.backoff_max_s + 35.0)
            )
        must(not self._poisoned(), "a poisoned event is retried for ever")

    def _poisoned(self) -> list[str]:
        """The ids of those that nobody can deliver."""
        poison = self.world.network.poison
        return [id for id, name in self.world.store.pending() if poison.get(name, "400") != "400"]
