"""A database that keeps its connections and answers nothing: a start and a stop end all
the same, within seconds, so that no service manager has to kill anything.
"""

from __future__ import annotations

import signal
import time

import psycopg
import pytest
from support import clusters
from support.gateways import Gateway, check

from outboxd.outbox.postgresql import schema

DRAIN_S = 1.0
# For all that does not answer together, and for a machine that does much else: what the
# unit has beside the drain.
BESIDE_DRAIN_S = 20.0
NOTICED_S = 60.0


def await_logged(gateway: Gateway, text: str) -> None:
    ends_s = time.monotonic() + NOTICED_S
    while text not in gateway.log_text():
        assert time.monotonic() < ends_s, gateway.log_text()[-3000:]
        time.sleep(0.02)


@pytest.mark.alone
def test_a_stop_waits_for_no_database_that_hangs(node, fleet, only_full):
    """One is told to stop at once, with requests and commits under way; the other when it
    refuses events since it knows. What flew may come twice, and nothing is lost."""
    two = fleet(node.url(), delivery={"drain_timeout": f"{DRAIN_S:g}s"})
    two.producers.start()
    two.producers.await_more(100)
    at_once = two.deliverer()
    (later,) = (gateway for gateway in two.gateways if gateway is not at_once)
    took_s: dict[Gateway, float] = {}
    with node.hanging():
        told_s = {at_once: time.monotonic()}
        at_once.signal(signal.SIGTERM)
        while len(took_s) < 2:
            now_s = time.monotonic()
            assert now_s < told_s[at_once] + NOTICED_S, two.logs()
            if later not in told_s and two.producers.refusals.get(503, 0) >= 4:
                told_s[later] = now_s
                later.signal(signal.SIGTERM)
            for gateway in told_s.keys() - took_s.keys():
                if gateway.has_ended():
                    took_s[gateway] = now_s - told_s[gateway]
                    assert gateway.wait() == 0, gateway.log_text()[-3000:]
            time.sleep(0.02)
    for gateway in two.gateways:
        gateway.start()
    two.producers.await_more(100)
    figures = two.finish()
    print(f"stops took {took_s[at_once]:.1f} and {took_s[later]:.1f} s: {figures}")
    check(figures, 2)
    assert max(took_s.values()) < DRAIN_S + BESIDE_DRAIN_S


def test_a_start_waits_for_no_database_that_hangs(node, fleet, only_full):
    """Whether it hangs before the first word or in the middle of the migrations: 75, which
    says to try again. One that works on, however long, is waited for."""
    two = fleet(node.url())
    (gateway, _) = two.gateways
    gateway.kill()
    with node.hanging():
        gateway.start(ready=False)
        assert gateway.wait() == 75
        gateway.start(ready=False)
        await_logged(gateway, "cannot be reached")
        gateway.signal(signal.SIGTERM)  # whatever it waits for
        assert gateway.wait() in (75, -signal.SIGTERM)
    with psycopg.connect(node.conninfo()) as another:
        another.execute("SELECT pg_advisory_xact_lock(%s)", (schema.LOCK,))
        gateway.start(ready=False)
        await_logged(gateway, "database.waited_for")
        with node.hanging():
            assert gateway.wait() == 75
        before = gateway.log_text().count("database.waited_for")
        gateway.start(ready=False)
        ends_s = time.monotonic() + NOTICED_S
        while gateway.log_text().count("database.waited_for") == before:
            assert time.monotonic() < ends_s
            time.sleep(0.02)
        another.rollback()
        ends_s = time.monotonic() + NOTICED_S
        while not gateway.answers():
            assert time.monotonic() < ends_s, gateway.log_text()[-3000:]
            time.sleep(0.02)


@pytest.mark.parametrize("was_idle", [False, True], ids=["at work", "idle"])
def test_a_primary_that_hangs_is_left_for_the_one_that_was_promoted(
    template, fleet, was_idle, only_full
):
    """Its connections stay, and no system ends them: both hosts' processes live. One on
    which nothing was under way when the server froze leaves it with the others."""
    with clusters.pair(template, synchronous=True) as pair:
        two = fleet(pair.url())
        two.deliverer()
        if not was_idle:
            two.producers.start()
            two.producers.await_more(100)
        with pair.primary.hanging():
            pair.standby.promote()
            promoted_s = time.monotonic()
            if was_idle:
                two.producers.start()
            two.producers.await_more(50)
            took_s = two.producers.receipted_s[-50] - promoted_s
            pair.primary.kill()  # as whoever promotes sees to it
        figures = two.finish()
    print(f"receipts again after {took_s:.1f} s: {figures}")
    check(figures, 2)
