"""The turns of the pages: the busier the agent, the less they take of it."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from outboxd.outbox.model import Counts
from outboxd.web.pace import IDLE_SLICE_S, PAUSES, SLICE_S, WINDOW_S, Pace, Slices

ROUND = asyncio.sleep  # the loop's own, where a test has another in its place


class Machine:
    """A clock, a processor's time, and a sleep that only moves the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.cpu_s = 0.0
        self.others = 0.0  # of a core, that the agent takes for itself
        self.events = 0.0  # a second that are accepted and delivered
        self.burst_s = 0.001  # so far apart they come
        self.turn_cost_s = 0.0  # what a turn takes of a processor beside its work
        monkeypatch.setattr(asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.pass_by(seconds)

    def pass_by(self, seconds: float, own: float = 0.0) -> None:
        self.now_s += seconds
        self.cpu_s += max(own, self.others * seconds)

    def counts(self) -> Counts:
        settled = int(self.events * self.burst_s * (self.now_s // self.burst_s))
        return Counts(7, settled, 0, 0)

    def work(self, seconds: float) -> None:
        self.pass_by(seconds, own=seconds)
        self.cpu_s += self.turn_cost_s

    def pace(self) -> Pace:
        return Pace(lambda: self.now_s, lambda: self.cpu_s, counts=self.counts)


async def share_of(machine: Machine, users: int) -> float:
    """What so many users of one pace get of three seconds, once it knows how busy it is."""
    pace, used_s = machine.pace(), 0.0
    began_s = machine.now_s + 3
    while machine.now_s < began_s + 3:
        for _ in range(users):
            await pace.turn()
            machine.work(SLICE_S)
            used_s += SLICE_S if machine.now_s > began_s else 0.0
            pace.used(SLICE_S)
    return used_s / (machine.now_s - began_s)


@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.parametrize(
    ("others", "events", "least", "most"),
    [
        (0.0, 0.0, 0.6, 0.7),
        (0.01, 5.0, 0.5, 0.67),
        (0.03, 200.0, 0.1, 0.2),
        (0.3, 0.0, 0.1, 0.25),
        (0.3, 200.0, 0.08, 0.15),
        (1.0, 0.0, 0.03, 0.08),
        (1.0, 5000.0, 0.03, 0.08),
    ],
)
def test_all_pages_together_take_their_share_and_no_more(
    monkeypatch, others: float, events: float, least: float, most: float, users: int
) -> None:
    machine = Machine(monkeypatch)
    machine.others, machine.events = others, events
    assert least < asyncio.run(share_of(machine, users)) < most


def test_pages_stand_back_within_a_moment_when_traffic_begins(monkeypatch) -> None:
    async def pauses_s(pace: Pace, machine: Machine, seconds: float) -> list[float]:
        found, until_s = [], machine.now_s + seconds
        while machine.now_s < until_s:
            before_s = machine.now_s
            await pace.turn()
            found.append(machine.now_s - before_s)
            machine.work(SLICE_S)
            pace.used(SLICE_S)
        return found

    async def main() -> None:
        machine = Machine(monkeypatch)
        pace = machine.pace()
        await pauses_s(pace, machine, 10 * WINDOW_S)
        assert max(await pauses_s(pace, machine, 1.0)) < 2 * SLICE_S
        assert pace.slice_s == pytest.approx(IDLE_SLICE_S, rel=0.05)
        machine.events = 400.0
        await pauses_s(pace, machine, 2 * WINDOW_S)
        assert min(await pauses_s(pace, machine, 1.0)) > 5 * SLICE_S
        assert pace.slice_s == SLICE_S
        machine.burst_s = 0.5  # the machine is busy, and they come in bursts
        assert min(await pauses_s(pace, machine, 2.0)) > 3 * SLICE_S
        machine.events = 0.0
        await pauses_s(pace, machine, 10 * WINDOW_S)
        assert max(await pauses_s(pace, machine, 1.0)) < 2 * SLICE_S

    asyncio.run(main())


def test_what_turns_cost_is_not_taken_for_traffic(monkeypatch) -> None:
    """Else pages of an idle agent would stand back from themselves."""
    machine = Machine(monkeypatch)
    machine.turn_cost_s = 0.00015
    assert 0.6 < asyncio.run(share_of(machine, 2)) < 0.7


class Unordered(Pace):
    """The control: whoever has waited goes, whatever another has done meanwhile."""

    async def turn(self) -> None:
        if (wait_s := self._wait_s()) > 0:
            await asyncio.sleep(wait_s)


class Hour:
    """A clock that only sleepers move, to the moment that the first of them waits for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self._sleeping: list[tuple[float, int, asyncio.Future[None]]] = []
        monkeypatch.setattr(asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeping.append((self.now_s + seconds, len(self._sleeping), woken))
        await woken

    def wake(self) -> None:
        """All whose moment is the next."""
        self._sleeping.sort(key=lambda one: one[:2])
        self.now_s = max(self.now_s, self._sleeping[0][0])
        while self._sleeping and self._sleeping[0][0] <= self.now_s:
            self._sleeping.pop(0)[2].set_result(None)


async def pieces_of(hour: Hour, pace: Pace, users: int) -> list[tuple[int, float]]:
    """Who had a turn, and when; each works a slice and asks again at once."""
    done: list[tuple[int, float]] = []

    async def use(user: int) -> None:
        while True:
            await pace.turn()
            done.append((user, hour.now_s))
            hour.now_s += SLICE_S
            pace.used(SLICE_S)

    tasks = [asyncio.ensure_future(use(user)) for user in range(users)]
    while len(done) < 40:
        for _ in range(20):  # rounds of the loop: then all wait again
            await ROUND(0)
        hour.wake()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return done


def rests_between(pieces: list[tuple[int, float]]) -> float:
    """The shortest."""
    return min(later - (one + SLICE_S) for (_, one), (_, later) in pairwise(pieces))


def test_pages_take_their_turns_one_by_one_and_nobody_is_passed_over(monkeypatch) -> None:
    hour = Hour(monkeypatch)
    pieces = asyncio.run(pieces_of(hour, Pace(lambda: hour.now_s, lambda: 0.0), 4))
    assert rests_between(pieces) > 0.99 * PAUSES * SLICE_S
    users = [user for user, _ in pieces[1:]]  # the first asks again before the others come
    assert users == [number % 4 for number in range(len(users))]


def test_without_the_order_pieces_fall_together(monkeypatch) -> None:
    hour = Hour(monkeypatch)
    pieces = asyncio.run(pieces_of(hour, Unordered(lambda: hour.now_s, lambda: 0.0), 4))
    assert rests_between(pieces) < SLICE_S


def test_after_a_rest_the_first_turn_comes_at_once(monkeypatch) -> None:
    async def main() -> None:
        machine = Machine(monkeypatch)
        pace = machine.pace()
        pace.used(SLICE_S)
        machine.pass_by(10 * WINDOW_S)
        before_s = machine.now_s
        await pace.turn()
        assert machine.now_s == before_s

    asyncio.run(main())


def test_work_that_is_short_takes_no_turn(monkeypatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("outboxd.web.pace.perf_counter", lambda: 100.0)
        pace = Pace()
        slices = Slices(pace)
        for _ in range(3):
            await slices.rest()
        assert pace._free_at_s == float("-inf")

    asyncio.run(main())
