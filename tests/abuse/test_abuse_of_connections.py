"""One user's connections cost the others nothing: not intake, not memory, not time."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.agent import GONE
from support.ports import free_address

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

# The controls: what takes one limit away from the agent, before it starts.
FEW_DESCRIPTORS = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))
"""
ANY_NUMBER = """
import outboxd.budgets as budgets
def unlimited(self, *numbers, **named):
    self.connections = self.bytes = budgets.Budget(1 << 40)
budgets.ListenerLimits.__init__ = unlimited
budgets.ListenerLimits.fit = lambda self, *a: self
"""
EXPLAINED_ON_THE_LOOP = """
import contextlib
import outboxd.intake.intake as intake
intake.PLAIN_BYTES = 1 << 30
class AllAtOnce:
    def __init__(self, waited): pass
    @contextlib.asynccontextmanager
    async def of(self, holder):
        yield
intake.Turns = AllAtOnce
"""
PIPELINED_AT_ONCE = """
import outboxd.serve.connection as connection
connection.PIPELINE_MAX = 1 << 30
connection.SMALL_PIECE_BYTES = 1 << 30
"""
NEVER_IN_DEBT = """
import outboxd.budgets as budgets
budgets.Credit.has = lambda self, holder, now_s: True
"""


@pytest.fixture(scope="module")
def abuse(attacked):
    """One agent for all of them: each attack must be over before the next begins."""
    with attacked() as abuse:
        yield abuse


@pytest.mark.parametrize("name", ["idle_connections", "slow_heads", "slow_bodies"])
def test_whoever_holds_connections_keeps_nobody_out(abuse, name):
    report = abuse.attack(getattr(ATTACKS, name), seconds=3.0)
    print(name, report)
    assert report.faults() == []


def test_several_users_that_hold_connections_keep_nobody_out(abuse):
    report = abuse.attack(ATTACKS.idle_connections, users=[65534, 65533, 65532], seconds=3.0)
    print(report)
    assert report.faults() == []


COMINGS = ["short_lived_connections", "reset_connections", "unread_receipts"]


@pytest.mark.parametrize("name", COMINGS)
def test_whoever_comes_and_goes_keeps_nobody_out(abuse, name):
    report = abuse.attack(getattr(ATTACKS, name))
    print(name, report)
    # All share the kernel's queue of those that want to connect.
    assert report.faults(longer=2.0) == []


def test_whoever_comes_and_goes_costs_less_than_half_of_what_it_did(abuse, attacked):
    """By the agent's own processor time, so that the machine does not matter."""
    limited = [cpu_s(abuse, name) for name in COMINGS]
    with attacked(NEVER_IN_DEBT) as control:
        unlimited = [cpu_s(control, name) for name in COMINGS]
    print(f"CPU of 10,000: {limited} s, without the limit {unlimited} s")
    assert sum(limited) * 1.8 < sum(unlimited)
    # Whoever waits for the answers owes nothing.
    assert [abuse.agent.post({"eventType": "t", "summary": "s"})[0] for _ in range(600)] == [
        *(201 for _ in range(600))
    ]


def cpu_s(abuse, name: str) -> float:
    """What 10,000 of its connections cost the agent."""
    before_s = _spent_s(abuse.agent.pid)
    abuse.let(getattr(ATTACKS, name))
    abuse.agent.until(lambda: abuse.agent.answers() or None, abuse.agent.log_text)
    return _spent_s(abuse.agent.pid) - before_s


def _spent_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("name", ["pipelined_requests", "bad_batches", "short_bad_lines"])
def test_whoever_sends_without_end_delays_nobody(abuse, name):
    report = abuse.attack(getattr(ATTACKS, name))
    print(name, report)
    assert report.faults() == []


def test_the_port_of_the_page_full_of_connections_delays_no_intake(attacked):
    address = free_address()
    with attacked(http={"listen": address}) as abuse:
        report = abuse.attack(ATTACKS.idle_connections, target=address)
        print(report)
        assert report.faults() == []


@pytest.mark.parametrize(
    ("patch", "name"),
    [
        (FEW_DESCRIPTORS + ANY_NUMBER, "idle_connections"),
        (EXPLAINED_ON_THE_LOOP, "bad_batches"),
        (PIPELINED_AT_ONCE, "pipelined_requests"),
    ],
)
def test_without_the_limit_the_attack_is_seen(attacked, patch, name):
    with attacked(patch) as abuse:
        try:
            report = abuse.attack(getattr(ATTACKS, name))
        except GONE:
            return  # it answers nobody any more
        print(report)
        assert report.faults() != []
