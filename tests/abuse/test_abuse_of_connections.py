"""One user's connections cost the others nothing: not intake, not memory, not time."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.alone

ATTACKS = SimpleNamespace(
    **{
        name: function
        for name, function in runpy.run_path(
            str(Path(__file__).with_name("attacks_on_the_socket.py"))
        ).items()
        if callable(function)
    }
)

WITHOUT_LIMITS = """
import outboxd.budgets as budgets
everything = 1 << 40
budgets.Limits.__init__ = lambda self, *a, **k: (
    setattr(self, "connections", budgets.Budget(everything)),
    setattr(self, "bytes", budgets.Budget(everything)),
) and None
budgets.Limits.fit = lambda self, *a: self
"""


def large_events(abuse, count: int = 200) -> None:
    """What a listing of all of them would need 50 MiB for."""
    for number in range(count):
        event = {"eventType": "large", "summary": str(number), "details": {"x": "y" * 250_000}}
        assert abuse.agent.request("POST", "/mgmt/v1/events", json.dumps(event).encode())[0] == 201


@pytest.mark.parametrize("name", ["idle_connections", "slow_heads", "slow_bodies"])
def test_whoever_holds_connections_keeps_nobody_out(attacked, name):
    with attacked() as abuse:
        report = abuse.attack(getattr(ATTACKS, name))
        print(report)
        assert report.faults() == []


def test_several_users_that_hold_connections_keep_nobody_out(attacked):
    with attacked() as abuse:
        report = abuse.attack(ATTACKS.idle_connections, users=[65534, 65533, 65532])
        print(report)
        assert report.faults() == []


@pytest.mark.parametrize("name", ["pipelined_requests", "bad_batches", "short_bad_lines"])
def test_whoever_sends_without_end_delays_nobody(attacked, name):
    with attacked() as abuse:
        report = abuse.attack(getattr(ATTACKS, name))
        print(report)
        assert report.faults() == []


def test_answers_that_nobody_reads_cost_little(attacked):
    with attacked() as abuse:
        large_events(abuse)
        report = abuse.attack(ATTACKS.unread_answers)
        print(report)
        assert report.faults() == []
