"""What is wrong, in words, as a table."""

from __future__ import annotations

import copy

import pytest

from outboxd.api.status import judge
from outboxd.times import rfc3339

NOW_MS = 1_750_000_000_000
HOUR_MS = 3_600_000
FINE = {
    "destination": {"state": "ok", "reason": None},
    "outbox": {
        "pending": 0,
        "delivered": 10,
        "dead": 0,
        "held": 0,
        "oldestPendingAt": None,
        "lastDeadAt": None,
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


@pytest.mark.parametrize(
    ("given", "level"),
    [
        (status(), 0),
        (status(waited_s=899), 0),
        (status(waited_s=900), 1),
        (status("untried"), 0),
        (status("untried", waited_s=60), 0),
        (status("untried", waited_s=61), 1),
        (status("backingOff"), 1),
        (status("throttled"), 1),
        (status("held"), 2),
        (status("throttled", accepting=False), 2),
        (status(accepting=False), 2),
        (status(salvaged=1), 2),
        (status(lostToDamage=1), 2),
        (status(dead=5), 0),
        (status(dead=5, lastDeadAt=rfc3339(NOW_MS - 23 * HOUR_MS)), 1),
        (status(dead=5, lastDeadAt=rfc3339(NOW_MS - 24 * HOUR_MS)), 0),
        (status("held", waited_s=10_000), 2),
    ],
)
def test_each_state_has_its_level(given, level):
    findings = judge(given, NOW_MS)
    assert max((found.level for found in findings), default=0) == level
    assert all(found.message and found.hint for found in findings)


def test_the_worst_comes_first():
    found = judge(status("held", waited_s=10_000, lostToDamage=1), NOW_MS)
    assert [each.level for each in found] == [2, 2, 1]
