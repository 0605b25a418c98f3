"""The last hour: what is sampled, for how long, and what becomes of odd clocks."""

from __future__ import annotations

from outboxd.clock import FakeClock
from outboxd.outbox.model import Counts
from outboxd.status import DestinationStatus
from outboxd.web.activity import INTERVAL_S, KEPT_S, Activity


class Stage:
    """An outbox and a destination that stand as the test says."""

    def __init__(self) -> None:
        self.counts = Counts(0, 0, 0, 0)
        self.state = "ok"
        self.clock = FakeClock()
        self.activity = Activity(self, self, self.clock)  # type: ignore[arg-type]

    def status(self) -> DestinationStatus:
        return DestinationStatus("", self.state, None, 0, None, 1, 0)

    def pass_time(self, delivered: int, pending: int = 0, seconds: float = INTERVAL_S) -> None:
        self.clock.advance(seconds)
        self.counts = Counts(pending, self.counts.delivered + delivered, 0, 0)
        self.activity.sample()


def test_the_rate_is_deliveries_a_second() -> None:
    stage = Stage()
    stage.activity.sample()
    stage.pass_time(delivered=50, pending=7)
    shown = stage.activity.to_json()
    assert shown["rate"][1] == 50 / INTERVAL_S
    assert shown["pending"][1] == 7


def test_pruning_and_a_clock_set_back_make_no_negative_rate() -> None:
    stage = Stage()
    stage.activity.sample()
    stage.pass_time(delivered=-1000)
    stage.clock.jump(-3600)
    stage.pass_time(delivered=5)
    assert min(stage.activity.to_json()["rate"]) >= 0


def test_an_outage_is_kept_with_its_moments() -> None:
    stage = Stage()
    for state in ("ok", "backingOff", "backingOff", "ok"):
        stage.state = state
        stage.pass_time(delivered=0)
    assert stage.activity.to_json()["state"] == ["ok", "backingOff", "backingOff", "ok", "ok"]


def test_no_more_than_an_hour_is_kept() -> None:
    stage = Stage()
    for _ in range(int(KEPT_S / INTERVAL_S) + 100):
        stage.pass_time(delivered=1)
    shown = stage.activity.to_json()
    assert shown["at"][0] >= shown["now"] - KEPT_S * 1000
    assert len(shown["at"]) <= KEPT_S / INTERVAL_S + 2
