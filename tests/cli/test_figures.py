"""The rules of monitoring and the estimates, as a table."""

from __future__ import annotations

import copy

from outboxd.cli import figures
from outboxd.cli.watch import bars
from outboxd.times import rfc3339

NOW_MS = 1_750_000_000_000
FINE = {
    "destination": {"state": "ok", "reason": None},
    "outbox": {
        "pending": 0,
        "delivered": 10,
        "dead": 0,
        "held": 0,
        "oldestPendingAt": None,
        "bytes": 10_240,
        "salvaged": 0,
        "lostToDamage": 0,
    },
    "intake": {"accepting": True, "reason": None},
    "disk": {"freeBytes": 1 << 30},
}


def status(state="ok", waited_s=None, accepting=True, **outbox):
    changed = copy.deepcopy(FINE)
    changed["destination"]["state"] = state
    changed["intake"]["accepting"] = accepting
    changed["outbox"].update(outbox)
    if waited_s is not None:
        changed["outbox"]["oldestPendingAt"] = rfc3339(NOW_MS - waited_s * 1000)
    return changed


def test_rates_come_from_the_last_five_minutes():
    at = [NOW_MS - 1_000_000, NOW_MS - 10_000, NOW_MS - 5_000, NOW_MS]
    activity = {"at": at, "pending": [9, 100, 80, 60], "rate": [0, 50, 10, 10]}
    assert figures.rates(activity) == figures.Rates(arriving=6.0, delivered=10.0)
    assert figures.rates({"at": [NOW_MS], "pending": [0], "rate": [0]}) is None


def test_the_time_to_drain_is_known_only_while_the_backlog_shrinks():
    assert figures.drain_s(0, None) == 0
    assert figures.drain_s(100, figures.Rates(1, 11)) == 10
    assert figures.drain_s(100, figures.Rates(11, 11)) is None
    assert figures.drain_s(100, None) is None


def test_the_outage_it_can_hold_is_bounded_by_entries_and_by_disk():
    assert figures.outage_s(status(pending=400), 2, 1000, 0) == 300
    assert figures.outage_s(status(), 1, 0, (1 << 30) - 102_400) == 100
    assert figures.outage_s(status(), 0, 1000, 0) is None
    assert figures.outage_s(status(), 1, 1000, 1 << 40) == 0


def test_the_rate_of_arrival_comes_from_the_newest_entries():
    assert figures.arriving_rate([], True, NOW_MS, 1000) == 0
    assert figures.arriving_rate([NOW_MS - 10], True, NOW_MS, 10_000) == 0.1
    assert figures.arriving_rate([NOW_MS - 1, NOW_MS - 500], False, NOW_MS, 10_000) == 4


def test_bars_show_the_highest_of_each_share():
    assert bars([0, 0]) == "▁▁"
    assert bars([0, 4, 8]) == "▁▅█"
    assert bars([0, 8, 0, 0], columns=2) == "█▁"
