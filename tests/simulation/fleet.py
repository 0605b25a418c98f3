"""Fifty agents and one endpoint of bounded capacity, back at once after an outage.

Each is a whole agent with all its checks. What they must keep together: all is
delivered in little more time than the endpoint needs, few requests are refused,
and nobody waits for long while others are served.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from simulation.checks import must
from simulation.history import World, with_settings
from simulation.network import Network, Request
from simulation.virtual_loop import VirtualLoop, run

from outboxd.delivery.outcome import Answer

AGENTS = 50
CAPACITY = 100.0  # events a second
OUTAGE_S = 60.0
BACKOFF_MAX_S = 10.0  # so all of them come back within these


class Bounds(NamedTuple):
    """What a fleet keeps at one kind of endpoint; `ideal_s` is what that needs for all.

    Four fifths are delivered within `ideal_s`, whatever the kind.
    """

    longer_s: float  # than the ideal time, until all is delivered
    refused_share: float
    gap_s: float  # the longest in which one that has something has nothing delivered


class Endpoint:
    """Takes whatever comes."""

    bounds: Bounds

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop

    async def work(self) -> Answer | None:
        """Takes one event; an answer if it refuses."""
        raise NotImplementedError


class Throttling(Endpoint):
    """So many a second, and a second's worth at once; above that it answers 429."""

    # Who learned a low pace finds within a minute that the others are done.
    bounds = Bounds(longer_s=60.0, refused_share=0.12, gap_s=2 * BACKOFF_MAX_S)
    headers = {"retry-after": "1"}  # noqa: RUF012

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(loop)
        self._tokens, self._filled_s = CAPACITY, loop.time()

    async def work(self) -> Answer | None:
        now_s = self.loop.time()
        grown = self._tokens + (now_s - self._filled_s) * CAPACITY
        self._tokens, self._filled_s = min(CAPACITY, grown), now_s
        if self._tokens < 1.0:
            return Answer(429, self.headers)
        self._tokens -= 1.0
        return None


class ThrottlingBare(Throttling):
    """The same, and it does not say for how long."""

    headers = {}  # noqa: RUF012


class Queueing(Endpoint):
    """Workers that take a tenth of a second each, and a queue before them."""

    bounds = Bounds(longer_s=5.0, refused_share=0.0, gap_s=5.0)
    work_s = 0.1
    queue_max = 1 << 30

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(loop)
        self._free = round(CAPACITY * self.work_s)
        self._queue: deque[asyncio.Future[None]] = deque()

    async def work(self) -> Answer | None:
        if self._free:
            self._free -= 1
        elif len(self._queue) < self.queue_max:
            self._queue.append(self.loop.create_future())
            await self._queue[-1]
        else:
            return Answer(503)
        await asyncio.sleep(self.work_s)
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self._free += 1
        return None


class Overflowing(Queueing):
    """The same with a short queue; what does not fit in is answered 503 at once.

    With fewer places than agents it refuses about half, however few permits each
    of them has: one failure among successes stops nobody.
    """

    bounds = Bounds(longer_s=15.0, refused_share=0.6, gap_s=3 * BACKOFF_MAX_S)
    queue_max = 10


class SharedNetwork(Network):
    """The way of one agent; in fine weather the endpoint of all decides."""

    endpoint: Endpoint

    async def _exchange(self, request: Request) -> Answer:
        if request.weather == "fine" and (refusal := await self.endpoint.work()) is not None:
            await asyncio.sleep(self.latency_s * self.rng.random())
            return refusal
        return await super()._exchange(request)


def play_return(seed: int, kind: Callable[[VirtualLoop], Endpoint], events: int) -> None:
    """Every agent gets so many events in an outage; it ends, and the bounds hold."""
    rng = random.Random(f"fleet {seed}")
    loop = VirtualLoop()
    settings = with_settings(concurrency_max=64, backoff_max_s=BACKOFF_MAX_S)
    fleet = [
        World(settings=settings, seed=rng.randrange(1 << 30), loop=loop, network_of=SharedNetwork)
        for _ in range(AGENTS)
    ]
    try:
        run(loop, _return(fleet, kind(loop), events))
    finally:
        for world in fleet:
            world.engine.connection.close()


async def _return(fleet: list[World], endpoint: Endpoint, events: int) -> None:
    loop = fleet[0].loop
    for world in fleet:
        world.network.endpoint = endpoint
        world.network.turn("503")
        await world.start()
        await world.give(events)
    await asyncio.sleep(OUTAGE_S)
    back_s = loop.time()
    for world in fleet:
        world.network.turn("fine")
    ideal_s = len(fleet) * events / CAPACITY
    while any(world.engine.counts().pending for world in fleet):
        must(loop.time() - back_s < 10 * ideal_s, "the backlogs do not end")
        await asyncio.sleep(1.0)
    for world in fleet:
        world.finish()
        must(not world.checks.problems, "; ".join(world.checks.problems[:3]))
    _check_return(fleet, endpoint.bounds, back_s, ideal_s)


def _check_return(fleet: list[World], bounds: Bounds, back_s: float, ideal_s: float) -> None:
    dead = sum(world.engine.counts().dead for world in fleet)
    must(dead == 0, f"{dead} were given up")
    requests = [r for world in fleet for r in world.network.requests if r.began_s >= back_s]
    arrived_s = sorted(r.ended_s - back_s for r in requests if r.arrived)
    most_s = arrived_s[len(arrived_s) * 4 // 5]
    must(most_s <= ideal_s, f"four fifths took {most_s:.1f} s, all could take {ideal_s:.1f}")
    longer_s = arrived_s[-1] - ideal_s
    must(longer_s <= bounds.longer_s, f"all took {longer_s:.1f} s longer than the ideal")
    share = 1 - len(arrived_s) / len(requests)
    must(share <= bounds.refused_share, f"{share:.3f} of all requests were refused")
    gap_s = max(_gap_s(world, back_s + BACKOFF_MAX_S) for world in fleet)
    must(gap_s <= bounds.gap_s, f"one waited {gap_s:.1f} s while others were served")


def _gap_s(world: World, from_s: float) -> float:
    """The longest time from this moment on until the next delivery, and between two."""
    times = sorted(r.ended_s for r in world.network.requests if r.arrived)
    later = [from_s, *(at_s for at_s in times if at_s > from_s)]
    return max((after - before for before, after in pairwise(later)), default=0.0)
