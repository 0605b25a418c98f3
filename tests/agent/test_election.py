"""Who delivers, without a database: what the sender hears of the lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from outboxd.agent.election import Election
from outboxd.clock import FakeClock
from outboxd.outbox.postgresql.lease import Lease

LEASE_S = 15.0


class Renewing:
    """An engine with a lease, and an outbox in which a commit takes its time."""

    def __init__(self, clock: FakeClock, commit_s: float) -> None:
        self._clock, self._commit_s = clock, commit_s
        self.lease = self.proven = Lease("a", 1, clock.since_boot_s(), LEASE_S)

    async def change_delivery(self, verb: Callable[[Any], None]) -> None:
        await asyncio.sleep(0)
        self._clock.advance(self._commit_s)
        verb(self)

    def renew_lease(self, told: str, outage: object) -> None:
        turn = self.lease.turn + 1
        self.lease = self.proven = self.lease.renewed(turn, self._clock.since_boot_s())


@pytest.mark.parametrize(("commit_s", "is_told"), [(0.1, False), (0.9 * LEASE_S, True)])
async def test_a_sender_that_came_to_rest_before_a_late_renewal_goes_on_after_it(commit_s, is_told):
    """Nothing else may come in that would wake it."""
    clock, told = FakeClock(), []
    renewing = Renewing(clock, commit_s)
    engines = SimpleNamespace(reading=renewing, delivering=renewing)
    election = Election(renewing, engines, clock)
    status = SimpleNamespace(state="ok", reason=None, since_at=0, next_probe_at=None, endpoint="")
    sender = SimpleNamespace(status=lambda: status, outage=None, arrived=lambda: told.append(1))
    election.join(sender, lambda trouble: None, lambda: None)
    await election._see_to_lease(None)
    assert renewing.lease.turn == 2
    assert bool(told) is is_told
