"""What may happen to a receipt's promise while a gateway runs."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest
from support.waiting import PATIENCE_S

from outboxd.clock import CorrectedClock
from outboxd.errors import CommitUnknown, OutboxUnreachable, OutboxUnusable
from outboxd.outbox.postgresql.connection import translate
from outboxd.outbox.postgresql.engine import PostgresEngine


def keep(engine, *items):
    with engine.transaction():
        return engine.accept(items)


@pytest.fixture
def without_standby(server):
    """Commits wait for one that is not there; whatever becomes of the test, not for long."""

    def standby(name: str) -> None:
        server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        server.execute("SELECT pg_reload_conf()")
        end_s = time.monotonic() + PATIENCE_S
        while server.shown("synchronous_standby_names") != name:
            assert time.monotonic() < end_s
            time.sleep(0.02)
        # Commits wait from when the checkpointer has read the setting, and not before.
        server.execute("CHECKPOINT")

    standby("nobody")
    yield
    standby("")


def test_a_commit_that_somebody_cancels_while_it_waits_for_a_standby_is_no_receipt(
    engine, url, event, without_standby
):
    """It returns as if it were made, with a warning: it is on one server alone."""
    pid = engine.connection.info.backend_pid
    ended = threading.Event()

    def cancel() -> None:
        with psycopg.connect(url, autocommit=True) as admin:
            # Once: a second one might come when it waits for something else.
            while (
                not ended.is_set()
                and not admin.execute(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                    " WHERE pid = %s AND wait_event = 'SyncRep'",
                    (pid,),
                ).fetchone()
            ):
                ended.wait(0.05)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        with pytest.raises(CommitUnknown, match="replication"):
            keep(engine, event(key="k"))
    finally:
        ended.set()
        canceller.join(PATIENCE_S)


def test_a_promise_that_the_server_gives_up_is_noticed(url, clock):
    engine = PostgresEngine(url, clock)
    engine.connection.execute("SET synchronous_commit = off")
    with pytest.raises(OutboxUnusable, match="synchronous_commit"):
        engine.look_around()
    engine.close()


@pytest.mark.parametrize("wrong_by_s", [-3600, 3600])
def test_the_servers_clock_is_every_gateways(url, event, monkeypatch, wrong_by_s):
    true_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + wrong_by_s * 1_000_000_000)
    clock = CorrectedClock()
    assert abs(clock.wall_ms() - true_ns() / 1e6) > 3_000_000
    engine = PostgresEngine(url, clock)
    assert abs(clock.wall_ms() - true_ns() / 1e6) < 60_000
    monkeypatch.setattr(time, "time_ns", lambda: 0)  # somebody sets it while it runs
    assert abs(clock.wall_ms() - true_ns() / 1e6) < 60_000
    clock.correct(clock.wall_ms() + 600_000)  # another server was promoted
    engine.look_around()
    assert abs(clock.wall_ms() - true_ns() / 1e6) < 60_000
    engine.close()


def test_a_lease_that_another_clock_wrote_keeps_nobody_from_delivering(engine, url, clock):
    other = PostgresEngine(url, clock, gateway="other")
    assert not other.take_lease()
    other.connection.execute("UPDATE deliverers SET lease_ends_at = now() + interval '1 hour'")
    assert other.look_around().lease_left_s == 0
    assert other.take_lease()
    other.close()


def test_a_session_that_the_server_ended_is_no_error_of_ours():
    """A gateway was stopped for seconds in the middle of a transaction: its hosts are
    told to come again, and not that something is to be reported."""
    ended = psycopg.errors.IdleInTransactionSessionTimeout("terminating connection")
    assert isinstance(translate(ended), OutboxUnreachable)
