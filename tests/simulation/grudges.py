"""Histories of a destination that takes most events and always refuses some.

Each good event must be delivered within a bound from its receipt, in both
orders, whatever class of answer the bad ones get, be they few or a stream. And
with a key that is wrong for all, no more requests go out than two and one a `hold_probe`.
"""

from __future__ import annotations

import asyncio
import random

from simulation.checks import must
from simulation.history import World, with_settings
from simulation.network import GRUDGES

HOLD_PROBE_S = 20.0
# Two bad ones side by side may hold the rest for some probes, and a request that
# hangs for a while; a wait as told is five seconds.
WITHIN_S = 3 * HOLD_PROBE_S + 30.0
GOOD_COUNT = 60
# Those that throttle first. In strict order an event that hangs costs all behind it
# five seconds each time that it is asked: that falls behind.
STREAMS = [
    (kind, order)
    for kind in reversed(GRUDGES)
    for order in ("mixed", "fifo")
    if (kind, order) != ("hang", "fifo")
]
STREAM_COUNT = 120
# A wait as told is five seconds, and what came in meanwhile may hold the next.
STREAM_WITHIN_S = 25.0


def play_grudges(seed: int) -> World:
    """Good events, about one a second, and up to three bad ones among them."""
    rng = random.Random(f"grudges {seed}")
    world = World(
        settings=with_settings(
            order=rng.choice(("mixed", "fifo")),
            concurrency_max=rng.choice((1, 4, 64)),
            attempts_max=rng.choice((5, 20)),
            hold_probe_s=HOLD_PROBE_S,
            read_ahead=rng.random() < 0.7,
        ),
        seed=seed,
    )
    world.network.latency_s = rng.choice((0.01, 0.05, 0.2))
    kinds = [rng.choice(GRUDGES) for _ in range(rng.randint(1, 3))]

    async def main() -> None:
        await world.start()
        bad_at = sorted(rng.randrange(GOOD_COUNT) for _ in kinds)
        if rng.random() < 0.3:
            bad_at = [bad_at[0]] * len(kinds)  # side by side
        for number in range(GOOD_COUNT):
            for kind, at in zip(kinds, bad_at, strict=True):
                if at == number:
                    name = f"bad {kind} {rng.random()}"
                    world.network.poison[name] = kind
                    await world.give(name=name)
            await world.give()
            await asyncio.sleep(rng.choice((0.0, 0.5, 1.0, 2.0)))
        await asyncio.sleep(WITHIN_S)
        _check_good(world, kinds)
        world.finish()

    world.run(main())
    return world


def _check_good(world: World, kinds: list[str], within_s: float = WITHIN_S) -> None:
    """Each good event was delivered within the bound."""
    arrived_s = {r.id: r.ended_s or r.began_s for r in world.network.requests if r.arrived}
    for id, name in world.checks.names.items():
        if name in world.network.poison:
            continue
        must(id in arrived_s, f"{name} has not arrived, with {kinds}")
        took_s = arrived_s[id] - world.checks.received_s[id]
        must(took_s <= within_s, f"{name} took {took_s:.1f} s, with {kinds}")


def play_stream(seed: int) -> World:
    """Every tenth event is refused, all by one kind of answer; nobody falls behind."""
    rng = random.Random(f"stream {seed}")
    kind, order = STREAMS[seed % len(STREAMS)]
    world = World(
        settings=with_settings(
            order=order,
            concurrency_max=rng.choice((1, 4, 64)),
            hold_probe_s=HOLD_PROBE_S,
        ),
        seed=seed,
    )

    async def main() -> None:
        await world.start()
        for number in range(STREAM_COUNT):
            if number % 10 == 5:
                world.network.poison[f"bad {number}"] = kind
                await world.give(name=f"bad {number}")
            await world.give()
            await asyncio.sleep(1.0)
        await asyncio.sleep(STREAM_WITHIN_S)
        _check_good(world, [kind], within_s=STREAM_WITHIN_S)
        world.finish()

    world.run(main())
    return world


def play_hangs(seed: int) -> World:
    """One event a second; every tenth is never answered: nobody waits for its end."""
    world = World(settings=with_settings(concurrency_max=64), seed=seed)

    async def main() -> None:
        await world.start()
        for number in range(160):
            if number % 10 == 0:
                world.network.poison[f"bad {number}"] = "hang"
                await world.give(name=f"bad {number}")
            await world.give()
            await asyncio.sleep(1.0)
        await asyncio.sleep(10.0)
        _check_good(world, ["hang"], within_s=10.0)
        world.finish()

    world.run(main())
    return world


def play_wrong_key(seed: int) -> World:
    """Everything is answered 401, or rejected; events keep coming in."""
    rng = random.Random(f"wrong key {seed}")
    everything = rng.choice(("401", "403", "404", "302", "400 for all"))
    world = World(
        settings=with_settings(
            order=rng.choice(("mixed", "fifo")),
            concurrency_max=rng.choice((1, 4, 64)),
            hold_probe_s=HOLD_PROBE_S,
        ),
        seed=seed,
    )

    async def main() -> None:
        await world.start()
        world.network.turn(everything)
        for _ in range(40):
            await world.give(rng.choice((1, 1, 5)))
            await asyncio.sleep(rng.expovariate(0.1))
        # Ten pull the brake, and the eleventh is the second opinion on that.
        first = 11 if everything == "400 for all" else 2
        began_s = world.network.requests[0].began_s
        most = first + 1 + (world.loop.time() - began_s) // HOLD_PROBE_S
        asked = len(world.network.requests)
        must(asked <= most, f"{asked} requests with '{everything}', at most {most:.0f}")
        must(world.engine.counts().dead == 0, f"{world.engine.counts()} with '{everything}'")
        world.network.turn("fine")
        await world.until_empty(2 * HOLD_PROBE_S + 60.0)
        must(world.engine.counts().dead == 0, f"{world.engine.counts()} after '{everything}'")
        world.finish()

    world.run(main())
    return world
