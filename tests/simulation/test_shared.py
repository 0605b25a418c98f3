"""The same histories with the outbox on a real PostgreSQL server, and its election."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from simulation.checks import Broken
from simulation.history import play
from simulation.shared import LEASE_S, LOOK_S, SharedStore, with_virtual_clock
from simulation.two_gateways import TwoGateways, play_two
from simulation.virtual_loop import VirtualClock
from support import clusters, seeds, unfenced
from support.clusters import template  # noqa: F401

from outboxd.agent import election
from outboxd.delivery.sender import Sender
from outboxd.outbox.model import Settlement
from outboxd.outbox.postgresql.lease_row import LeaseRow

SEEDS, SEEDS_FULL = 2, 100
TWO, TWO_FULL = 1, 60
WARM = 30


@pytest.fixture(scope="module")
def url(template):  # noqa: F811
    with clusters.single(template) as node:
        yield with_virtual_clock(node.conninfo(), "histories")


@pytest.fixture
def at_length(full):
    """What the histories of the short form stand for."""
    if not full:
        pytest.skip("one of the full figures (--full)")


@pytest.fixture(autouse=True)
def seldom_looking(monkeypatch):
    monkeypatch.setattr(election, "LOOK_S", LOOK_S)


def fresh(url: str, clock: VirtualClock, repeat_window_s: float) -> SharedStore:
    return SharedStore(url, clock, repeat_window_s).clear()


@pytest.mark.timeout(900)
def test_in_no_history_on_postgresql_is_anything_lost_or_doubled_unmarked(url, full):
    for seed in seeds.histories(SEEDS_FULL if full else SEEDS):
        try:
            play(seed, partial(fresh, url))
        except Exception as error:
            pytest.fail(
                f"seed {seed}: {type(error).__name__}: {error}\nplay it again:"
                f" OUTBOXD_SEED={seed} pytest tests/simulation/test_shared.py"
            )


@pytest.mark.usefixtures("at_length")
def test_a_crash_in_flight_that_is_forgotten_is_found(url, monkeypatch):
    monkeypatch.setattr(LeaseRow, "recover_sending", lambda self: 0)
    with pytest.raises(Broken, match="unmarked"):
        play_all(url)


def play_all(url: str) -> None:
    for seed in range(SEEDS_FULL):
        play(seed, partial(fresh, url))


# --- two gateways ---


@pytest.mark.timeout(600)
def test_two_gateways_on_one_database_lose_nothing_and_one_sends_at_a_time(url, full):
    for seed in seeds.histories(TWO_FULL if full else TWO):
        try:
            play_two(url, seed)
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")


async def lose_the_lease_with_answers_on_their_way(fleet: TwoGateways, answer: str) -> None:
    """The first one's commits take longer than its lease while three requests fly, which
    are answered; the other takes over, and sends nothing yet: Komodor is away."""
    first, other = fleet.both
    await first.start()
    await fleet.until(lambda: first.delivers)
    await first.give([f"before {n}" for n in range(WARM)])  # so that several may fly
    await fleet.until_empty()
    fleet.network.latency_s = 4.0
    await first.give(["x", "y", "z"])
    fleet.receipts += ["x", "y", "z"]
    fleet.network.turn(answer)
    await other.start()
    await fleet.until(lambda: len(fleet.network.flying) == 3)
    first.commit_s = 2 * LEASE_S
    fleet.ends += 1
    fleet.network.turn("500")
    await fleet.until(lambda: other.delivers)
    first.commit_s = 0.01


def settled_by_the_lost_holder(url: str) -> int:
    """How many are delivered before anybody sends them again."""
    fleet = TwoGateways(url)
    delivered = []

    async def main() -> None:
        await lose_the_lease_with_answers_on_their_way(fleet, "fine")
        await asyncio.sleep(4 * LEASE_S)
        delivered.append(fleet.both[0].store.counted().delivered - WARM)
        fleet.network.turn("fine")
        await fleet.until_empty()
        fleet.finish()

    fleet.run(main())
    return delivered[0]


@pytest.mark.usefixtures("at_length")
def test_what_a_lost_holder_has_seen_delivered_it_still_hands_in(url, monkeypatch):
    assert settled_by_the_lost_holder(url) == 3
    monkeypatch.setattr(Sender, "_hand_in_late", forget)
    assert settled_by_the_lost_holder(url) == 0, "the control"


async def forget(self: Sender, finished: dict[int, Settlement]) -> None:
    self._in_flight.settled(finished)


async def hand_in_all(self: Sender, finished: dict[int, Settlement]) -> None:
    """Deliberately wrong: what an answer meant to a lost holder is written, whatever it was."""
    await self._outbox.change(lambda engine: engine.settle(list(finished.values())))
    self._in_flight.settled(finished)


@pytest.mark.usefixtures("at_length")
@pytest.mark.parametrize("is_broken", [False, True], ids=["", "the control"])
def test_what_else_an_answer_meant_to_a_lost_holder_is_for_the_next_one_to_find_out(
    url, monkeypatch, is_broken
):
    """It was refused when the lease was there; who delivers now gets it through."""
    if is_broken:
        monkeypatch.setattr(Sender, "_hand_in_late", hand_in_all)
    fleet = TwoGateways(url)

    async def main() -> None:
        await lose_the_lease_with_answers_on_their_way(fleet, "400 for all")
        await asyncio.sleep(4 * LEASE_S)
        fleet.network.turn("fine")
        await fleet.until_empty()
        await asyncio.sleep(LEASE_S)

    fleet.run(main())
    late = {"dead": 3, "delivered": WARM} if is_broken else {"delivered": 3 + WARM}
    assert fleet.ended == late


@pytest.mark.usefixtures("at_length")
def test_a_lease_without_a_fence_is_found(url, monkeypatch):
    monkeypatch.setattr(LeaseRow, "_renew", unfenced.renew)
    with pytest.raises(Broken, match="without the lease"):
        for_all(url)


def for_all(url: str) -> None:
    for seed in range(TWO_FULL):
        play_two(url, seed)
