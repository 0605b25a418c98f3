"""How much of a half-full outbox one producer may have."""

from __future__ import annotations

import pytest

from outboxd.clock import FakeClock
from outboxd.errors import OutboxFull
from outboxd.intake.admission import Admission, Shares
from outboxd.outbox.model import Counts

OPERATORS = {"uid:0", "agent"}


@pytest.mark.parametrize(
    ("producer", "waiting", "room"),
    [
        ("uid:1", {"uid:1": 49}, 1),  # not half full yet
        ("uid:1", {"uid:1": 50}, 0),  # alone: half of it at the most
        ("uid:1", {"uid:1": 70}, 0),
        ("uid:2", {"uid:1": 60}, 25),  # two share the half
        ("uid:2", {"uid:1": 60, "uid:2": 25}, 0),
        ("uid:3", {"uid:1": 50, "uid:2": 25}, 16),
        ("uid:1", {"uid:0": 90, "uid:1": 3}, 47),  # an operator takes none of the shares
        ("uid:0", {"uid:1": 60}, None),
        ("agent", {"uid:1": 60}, None),
        ("", {"uid:1": 60}, None),
        ("token:a", {"token:a": 70}, None),  # nobody else is there
        ("token:a", {"token:a": 50, "token:b": 1}, 0),
        ("token:b", {"token:a": 70, "token:b": 1}, 24),
        ("uid:1", {f"uid:{n}": 1 for n in range(2, 90)}, 1),  # never none at all
    ],
)
def test_the_share(producer, waiting, room):
    shares = Shares(OPERATORS)
    own = waiting.get(producer, 0)
    assert shares.room(producer, own, waiting, sum(waiting.values()), 100) == room


class World:
    """An outbox in three numbers."""

    def __init__(self, events_max: int) -> None:
        self.waiting: dict[str, int] = {}
        self.admission = Admission(
            self,
            lambda: 1 << 40,
            FakeClock(),
            events_max,
            0,
            Shares(OPERATORS),
        )

    @property
    def counts(self) -> Counts:
        return Counts(sum(self.waiting.values()), 0, 0, 0)

    def fill(self, producer: str, step: int = 7) -> int:
        """Keep as many as it gets; how many those were."""
        taken = 0
        while True:
            try:
                granted = self.admission.reserve(step, producer)
            except OutboxFull as refusal:
                self.refusal = refusal
                return taken
            self.waiting[producer] = self.waiting.get(producer, 0) + granted
            self.admission.release(granted, granted, producer)
            taken += granted


def test_one_member_cannot_keep_the_others_out():
    world = World(1000)
    assert world.fill("uid:1") == 500
    assert "uid:1 has 500 events waiting" in world.refusal.message
    assert 1 <= world.refusal.retry_after_s <= 300
    assert world.fill("uid:2") == 250
    assert world.fill("uid:0") == 250, "the operators' part is left"
    assert "the outbox is full" in world.refusal.message


def test_an_operator_alone_has_the_whole_outbox():
    assert World(1000).fill("uid:0") == 1000


def test_what_is_on_its_way_counts_too():
    world = World(100)
    world.waiting = {"uid:1": 45}
    assert world.admission.reserve(30, "uid:1") == 5, "until it is half full"
    with pytest.raises(OutboxFull, match="uid:1 has 50"):
        world.admission.reserve(1, "uid:1")
    world.admission.release(5, 0, "uid:1")
    assert world.admission.reserve(1, "uid:1") == 1


def test_without_shares_one_fills_it_all():
    """The control."""
    world = World(1000)
    world.admission._shares = Shares({"uid:1"})
    assert world.fill("uid:1") == 1000
