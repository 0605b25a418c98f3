"""The turns of the pages: the busier the agent, the less they take of it."""

from __future__ import annotations

import asyncio

import pytest

from outboxd.web.pace import SLICE_S, WINDOW_S, Pace, Slices


class Machine:
    """A clock, a processor's time, and a sleep that only moves the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.cpu_s = 0.0
        self.others = 0.0  # of a core, that the agent takes for itself
        monkeypatch.setattr(asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.pass_by(seconds)

    def pass_by(self, seconds: float, own: float = 0.0) -> None:
        self.now_s += seconds
        self.cpu_s += max(own, self.others * seconds)

    def pace(self) -> Pace:
        return Pace(lambda: self.now_s, lambda: self.cpu_s)


async def share_of(machine: Machine, users: int) -> float:
    """What so many users of one pace get of ten seconds."""
    pace, used_s = machine.pace(), 0.0
    began_s = machine.now_s
    while machine.now_s < began_s + 10:
        for _ in range(users):
            await pace.turn()
            machine.pass_by(SLICE_S, own=SLICE_S)
            used_s += SLICE_S
            pace.used(SLICE_S)
    return used_s / (machine.now_s - began_s)


@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.parametrize(
    ("others", "least", "most"), [(0.0, 0.2, 0.35), (0.3, 0.1, 0.25), (1.0, 0.03, 0.08)]
)
def test_all_pages_together_take_their_share_and_no_more(
    monkeypatch, others: float, least: float, most: float, users: int
) -> None:
    machine = Machine(monkeypatch)
    machine.others = others
    assert least < asyncio.run(share_of(machine, users)) < most


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


def test_work_that_is_short_takes_no_turn() -> None:
    async def main() -> None:
        pace = Pace()
        slices = Slices(pace)
        for _ in range(3):
            await slices.rest()
        assert pace._free_at_s == float("-inf")

    asyncio.run(main())
