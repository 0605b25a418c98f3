"""The database's primary goes down, with and without a standby that has every commit."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from support import clusters
from support.gateways import check
from support.receiver import OK
from support.waiting import PATIENCE_S

from outboxd.errors import CommitUnknown
from outboxd.outbox.model import Incoming
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.outbox.postgresql.link import Link


@pytest.mark.timeout(600)
def test_failover_to_a_synchronous_standby_loses_nothing(template, fleet, only_full):
    """The promoted server has no standby at first, as where a cluster manager decides
    for receipts: "local" accepts that. "replicated" is below."""
    failovers, slowest_s = 20, 0.0
    with clusters.pair(template, synchronous=True) as pair:
        two = fleet(pair.url())
        two.producers.start()
        for _ in range(failovers):
            two.producers.await_more(30)
            pair.fail_over()
            promoted_s = time.monotonic()
            two.producers.await_more(1)
            slowest_s = max(slowest_s, two.producers.receipted_s[-1] - promoted_s)
            pair.attach_standby()
        figures = two.finish()
    print(f"{failovers} failovers: {figures}, first receipt within {slowest_s:.2f} s")
    check(figures, failovers)


def test_a_promoted_server_with_a_standby_of_its_own_gives_receipts_at_once(
    template, fleet, only_full
):
    """Under "replicated", as a cluster manager keeps it: no receipt without a standby, and
    the promoted server has one as soon as the other standby has found it."""
    failovers, waited_s, replicated_s = 5, [], []
    with clusters.trio(template) as trio:
        two = fleet(trio.url(), outbox={"durability": "replicated"})
        two.producers.start()
        for _ in range(failovers):
            two.producers.await_more(30)
            trio.fail_over()
            promoted_s = time.monotonic()
            trio.primary.await_sql(
                "SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'quorum'", True
            )
            replicated_s.append(time.monotonic() - promoted_s)
            receipts = len(two.producers.receipts)
            two.producers.await_more(1)
            first_s = two.producers.receipted_s[receipts]
            waited_s.append(first_s - promoted_s)
            trio.attach(trio.standbys[1])
        figures = two.finish()
    shown = ", ".join(f"{a:.2f} ({b:.2f})" for a, b in zip(waited_s, replicated_s, strict=True))
    print(f"first receipt after the promotion, in s (its standby after): {shown}: {figures}")
    check(figures, failovers)


AWAY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


def lost_with_a_standby_behind(template, fleet, *, synchronous: bool) -> dict[str, int]:
    """The standby goes, then the primary, then the standby is the primary."""
    with clusters.pair(template, synchronous=synchronous) as pair:
        two = fleet(pair.url())
        two.producers.start()
        two.producers.await_more(50)
        # What is delivered cannot be lost any more: nothing is, as long as that lasts.
        two.receiver.behave = lambda body: AWAY
        pair.standby.kill()
        receipts = len(two.producers.receipts)
        if synchronous:
            time.sleep(1.0)  # commits wait: there is nothing to wait for but that
            assert len(two.producers.receipts) <= receipts + 4, "one a producer was on its way"
        else:
            two.producers.await_more(50)
        pair.primary.kill()
        pair.standby.start()
        pair.standby.promote()
        two.receiver.behave = lambda body: OK
        return two.finish()


def test_a_standby_that_was_behind_has_every_receipt_or_the_control_loses_some(
    template, fleet, only_full
):
    figures = lost_with_a_standby_behind(template, fleet, synchronous=True)
    assert figures["lost"] == 0, figures
    control = lost_with_a_standby_behind(template, fleet, synchronous=False)
    print(f"synchronous: {figures}; asynchronous, the control: {control}")
    assert control["lost"] > 0, "an asynchronous standby must lose what it had not got"


def test_commits_wait_for_a_missing_standby_and_nobody_is_told_otherwise(
    template, fleet, only_full
):
    """After a deadline the gateways refuse; when the standby is back all goes on. And a
    promoted server that has no standby gets nothing under "replicated" until it has one."""
    with clusters.pair(template, synchronous=True) as pair:
        two = fleet(pair.url(), outbox={"durability": "replicated"})
        two.producers.start()
        two.producers.await_more(50)
        pair.standby.kill()
        ends_s = time.monotonic() + PATIENCE_S
        while not two.producers.refusals.get(503):
            assert time.monotonic() < ends_s, "they wait for ever"
            time.sleep(0.05)
        pair.standby.start()
        two.producers.await_more(50)
        pair.fail_over()
        two.producers.await_refused()
        receipts = len(two.producers.receipts)
        two.producers.await_refused()
        assert len(two.producers.receipts) == receipts
        pair.attach_standby()
        two.producers.await_more(50)
        figures = two.finish()
    print(f"without its standby: {figures}")
    check(figures, 3)


def event(summary: str) -> Incoming:
    body = b'{"eventType":"t","summary":"%s"}' % summary.encode()
    return Incoming(body, "t", "information", "", "socket", 1, dedup_key=summary)


@pytest.mark.parametrize("believes", [False, True], ids=["asks again", "believes it, the control"])
def test_a_cancelled_commit_is_no_receipt(template, only_full, monkeypatch, believes):
    """A COMMIT that waits for its standby and that somebody cancels is answered as if it
    had got there. The control believes that, and the failover proves its receipt
    worthless."""
    if believes:
        monkeypatch.setattr(Link, "_noticed", lambda self, notice: None)
    with clusters.pair(template, synchronous=True) as pair:
        engine = PostgresEngine(pair.url())
        receipts: list[str] = []
        summary = uuid.uuid4().hex

        def accept() -> None:
            try:
                with engine.transaction():
                    (receipt,) = engine.accept([event(summary)])
            except CommitUnknown:
                return
            receipts.append(receipt.id)

        pair.standby.kill()
        thread = threading.Thread(target=accept)
        thread.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        pair.primary.await_sql(waits, 1)
        assert receipts == [], "no receipt before the standby has it"
        pair.primary.sql(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        pair.primary.kill()
        pair.standby.start()
        pair.standby.promote()
        engine.connection.close()  # to the server that is gone
        with engine.reading():
            is_there = engine.state_of_key("", summary) is not None
        engine.close()
    assert not is_there, "it was on the primary alone"
    assert len(receipts) == believes
