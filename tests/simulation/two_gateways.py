"""Two gateways on one database in virtual time: what each sends, and with which right.

Each has its own engine's connections, election and sender; the network is one. A gateway
is killed, or its way to the database becomes so slow that its lease runs out under it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any

from simulation.checks import must
from simulation.history import with_settings
from simulation.memory import InlineWriter
from simulation.network import Network, Request
from simulation.shared import LEASE_S, SharedStore
from simulation.virtual_loop import VirtualClock, VirtualLoop, run

from outboxd.agent.election import Election
from outboxd.delivery.sender import Sender
from outboxd.errors import OutboxdError
from outboxd.outbox.model import Incoming
from outboxd.outbox.outbox import Outbox

IN_FLIGHT_MAX = 8
SETTINGS = with_settings(
    concurrency_max=IN_FLIGHT_MAX, backoff_initial_s=0.5, backoff_max_s=10.0, hold_probe_s=60.0
)


class SharedGateway:
    """One of them; killed and started again at will."""

    def __init__(self, fleet: TwoGateways, name: str) -> None:
        self._fleet, self.name = fleet, name
        self.store = SharedStore(fleet.url, fleet.clock, 0.0, name)
        self.writers: list[InlineWriter] = []
        self.is_up = False
        self.commit_s = 0.01

    async def start(self) -> None:
        self.store.reopen()
        self.writers = []
        self.commit_s = 0.01

        def make_writer(*arguments: Any) -> InlineWriter:
            writer = InlineWriter(*arguments)
            writer.commit_s = lambda: self.commit_s
            self.writers.append(writer)
            return writer

        store = self.store
        self.outbox = await Outbox.start(store.engine, make_writer=make_writer, **store.beside())
        self.election = Election(self.outbox, store, self._fleet.clock)
        self.sender = Sender(
            self.outbox,
            _Way(self),
            SETTINGS,
            self._fleet.clock,
            self._fleet.rng.random,
            lambda fact: None,
            self.election.may_launch,
        )
        self.outbox.on_arrival = self.sender.arrived
        self.election.join(self.sender, lambda trouble: None, lambda: None)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(work) for work in (self.sender.run(), self.election.run())]
        self.is_up = True

    def kill(self) -> None:
        self.is_up = False
        for writer in self.writers:
            writer.kill()
        for task in (*self._tasks, *self.sender._in_flight.cancel()):
            task.cancel()
        self._fleet.ends += 1

    @property
    def delivers(self) -> bool:
        return self.is_up and self.election.state().is_here

    async def give(self, names: list[str]) -> bool:
        """Hand in events; whether there are receipts."""
        now = self._fleet.clock.wall_ms()
        items = [
            Incoming(
                b'{"eventType":"t","summary":"%s"}' % name.encode(),
                *("t", "information", "", "socket", now, None, None, name),
            )
            for name in names
        ]
        if not self.is_up:
            return False
        try:
            await asyncio.wait_for(self.outbox.accept(items), 5.0)
        except (OutboxdError, TimeoutError):
            return False
        return True


class _Way:
    """A gateway's way to the one network."""

    def __init__(self, gateway: SharedGateway) -> None:
        self._gateway = gateway

    async def send(self, id: str, body: bytes, offers_hop: bool = False) -> Any:
        self._gateway._fleet.launches(self._gateway)
        return await self._gateway._fleet.network.send(id, body)

    def refresh(self) -> None:
        """Connections are no part of this network."""


class TwoGateways:
    """Both, the network, and what must hold."""

    def __init__(self, url: str, seed: int = 0) -> None:
        self.url, self.rng = url, random.Random(seed)
        self.loop = VirtualLoop()
        self.clock = VirtualClock(self.loop)
        self.network = Network(self.clock, self.rng)
        self.both = [SharedGateway(self, name) for name in ("a", "b")]
        self.both[0].store.clear()
        self.receipts: list[str] = []
        self.ends = 0  # of deliverers, at most
        self.unlawful: list[str] = []
        self._count = 0

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        with closing(self.both[0].store), closing(self.both[1].store):
            run(self.loop, main)
            self.ended = Counter(state for state, _ in self.both[0].store.ended())

    async def start(self) -> None:
        for gateway in self.both:
            await gateway.start()

    def launches(self, gateway: SharedGateway) -> None:
        """A request leaves: the database must name its gateway, for some time yet."""
        ((name, left_s),) = gateway.store._all(
            "SELECT gateway, extract(epoch FROM lease_ends_at)::float8 - %s FROM deliverers",
            self.loop.time(),
        )
        if name != gateway.name or left_s <= 0:
            self.unlawful.append(f"{gateway.name} at {self.loop.time():.1f}: {name} has {left_s}")

    async def give(self, count: int) -> None:
        """As hosts do: again with the same keys, at either, until there are receipts."""
        names = [f"e{self._count + n}" for n in range(count)]
        self._count += count
        at = self.rng.randrange(2)
        while not await self.both[at].give(names):
            at = 1 - at
            await asyncio.sleep(0.5)
        self.receipts += names

    async def until(self, holds: Callable[[], object], within_s: float = 1000.0) -> None:
        until_s = self.loop.time() + within_s
        while not holds():
            must(self.loop.time() < until_s, "it never came to hold")
            await asyncio.sleep(0.1)

    async def until_empty(self) -> None:
        await self.until(lambda: not self.both[0].store.pending(), 3000.0)

    def finish(self) -> None:
        """Everything has arrived; what came twice says so; nobody sent without the lease."""
        arrivals: dict[str, list[Request]] = defaultdict(list)
        for request in self.network.requests:
            if request.arrived:
                arrivals[request.name].append(request)
        lost = [name for name in self.receipts if name not in arrivals]
        must(not lost, f"lost: {lost}")
        unmarked = [n for n, all in arrivals.items() if sum(not r.marked for r in all) > 1]
        must(not unmarked, f"came twice, unmarked: {unmarked}")
        must(not self.unlawful, f"sent without the lease: {self.unlawful}")
        answers = [request.answer for request in self.network.requests]
        doubtful = sum(answer is not None and answer.status is None for answer in answers)
        twice = sum(len(all) - 1 for all in arrivals.values())
        most = self.ends * 2 * IN_FLIGHT_MAX + doubtful
        must(twice <= most, f"{twice} came twice, at most {most}")


def play_two(url: str, seed: int) -> TwoGateways:
    """A seeded history of both."""
    fleet = TwoGateways(url, seed)
    fleet.run(_history(fleet))
    return fleet


async def _history(fleet: TwoGateways) -> None:
    rng = fleet.rng
    fleet.network.latency_s = rng.choice((0.01, 0.2, 2.0))
    await fleet.start()
    for _ in range(rng.randint(4, 10)):
        gateway = rng.choice(fleet.both)
        doing = rng.choice(("burst", "burst", "weather", "kill", "slow"))
        if doing == "burst":
            await fleet.give(rng.choice((1, 3, 20)))
        elif doing == "weather":
            fleet.network.turn(rng.choice(("fine", "500", "lost answers", "some lost", "slow")))
        elif doing == "kill" and gateway.is_up:
            gateway.kill()
            if rng.random() < 0.5:
                await asyncio.sleep(rng.choice((0.1, 2 * LEASE_S)))
            await gateway.start()
        elif doing == "slow":
            fleet.ends += 1  # it may lose its lease with requests under way
            gateway.commit_s = rng.choice((1.0, LEASE_S, 3 * LEASE_S))
            await asyncio.sleep(rng.choice((1.0, 2 * LEASE_S)))
            gateway.commit_s = 0.01
        await asyncio.sleep(rng.choice((0.0, 0.1, 5.0)))
    fleet.network.turn("fine")
    for gateway in fleet.both:
        gateway.commit_s = 0.01
    await fleet.until_empty()
    await asyncio.sleep(3 * LEASE_S)
    fleet.finish()
