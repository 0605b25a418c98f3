"""The lease, as its holder knows it."""

from __future__ import annotations

from contextlib import suppress

import pytest

from outboxd.outbox.model import Outage
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.outbox.postgresql.lease import Lease

LEASE = Lease("a", 3, 100.0, 15.0)


@pytest.mark.parametrize(
    ("now_s", "may"), [(100.0, True), (111.9, True), (112.0, False), (115.0, False), (1e6, False)]
)
def test_nothing_is_launched_near_the_end_of_the_lease(now_s, may):
    assert LEASE.may_launch(now_s) is may


def test_a_renewal_counts_from_before_it_was_asked_for():
    renewed = LEASE.renewed(4, 105.0)
    assert renewed == Lease("a", 4, 105.0, 15.0)
    assert LEASE.renew_at_s() == 105.0


def test_a_turn_is_never_given_twice():
    with pytest.raises(AssertionError):
        LEASE.renewed(3, 105.0)


def test_a_renewal_counts_from_its_commit_on(engine):
    """Its commit may hang, and another take over when the term that is there has ended."""
    with engine.transaction():
        engine.set_sending([])
    proven = engine.proven
    with suppress(ZeroDivisionError), engine.transaction():
        engine.set_sending([])
        assert engine.lease != proven
        assert engine.proven == proven
        _ = 1 / 0  # whatever keeps it from its commit
    assert engine.proven == proven
    with engine.transaction():
        engine.set_sending([])
    assert engine.proven.turn == proven.turn + 1


def test_who_takes_over_hears_of_the_outage_that_lasts(engine, url, clock):
    """It stands in the row until who delivers has seen its end, whoever that is."""
    other = PostgresEngine(url, clock, gateway="other")
    outage = Outage(1_750_000_000_000, "503")
    engine.renew_lease("{}", outage)
    with engine.transaction():
        engine.set_sending([])
    engine.give_up_lease()
    assert other.take_lease()
    assert other.lease_row.outage == outage
    other.give_up_lease()
    assert engine.take_lease()
    assert engine.lease_row.outage == outage
    engine.renew_lease("{}", None)
    engine.give_up_lease()
    assert other.take_lease()
    assert other.lease_row.outage is None
    other.close()
