"""The deliverer is stopped in the middle of whatever it does, for longer than its lease,
and comes back when another delivers: what it had not launched it must not launch.
"""

from __future__ import annotations

import json
import random
import time

import pytest
from support.gateways import Fleet, Gateway, check

# What is seen within a lease and some seconds, whatever was locked at the stop.
NOTICED_S = 60


def boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def seen(gateway: Gateway) -> dict[str, int]:
    """How often its coroutines of delivery have waited where."""
    file = gateway.directory / "sites"
    file.unlink(missing_ok=True)
    gateway.order(f"sites {file}")
    ends_s = time.monotonic() + NOTICED_S
    while not file.exists():
        assert time.monotonic() < ends_s
        time.sleep(0.005)
    found: dict[str, int] = json.loads(file.read_text())
    return found


def sites(fleet: Fleet) -> list[str]:
    """Every place where delivery has waited by now, in either gateway."""
    return sorted({site for each in fleet.gateways for site in seen(each)} - {""})


def turns(gateway: Gateway) -> int:
    """How often it has looked who delivers."""
    return sum(n for site, n in seen(gateway).items() if site.startswith("agent/election.py:run:"))


def stop_and_go_on(fleet: Fleet, where: tuple[str, str] | None) -> list[str] | None:
    """Stop the deliverer there (None: anywhere), let another take over, let it go on;
    what it launched then without the lease. None: it did not come by there."""
    gateway = fleet.deliverer()
    if where is None:
        time.sleep(random.uniform(0.0, 0.1))
        gateway.stop_self()
    else:
        gateway.order(f"stop {where[0]} {where[1]}")
        if not gateway.await_stopped(1.5):
            gateway.order("stop at nothing")
            if not gateway.await_stopped(0.1):
                return None
    terms_before = terms(gateway)
    fleet.deliverer(other_than=gateway)
    resumed_s = boot_s()
    gateway.resume()
    turned, ends_s = turns(gateway), time.monotonic() + NOTICED_S
    while turns(gateway) < turned + 3 and not gateway.launched_since(resumed_s):
        assert time.monotonic() < ends_s, fleet.logs()
        time.sleep(0.05)
    launched = gateway.launched_since(resumed_s)
    # In a term of its own, where the other one has lost it again meanwhile, it may.
    return [] if terms(gateway) > terms_before else launched


def terms(gateway: Gateway) -> int:
    """How often it has become the deliverer."""
    return gateway.log_text().count('"lease.taken"')


@pytest.mark.timeout(600)
def test_a_deliverer_stopped_at_any_await_launches_nothing_afterwards(node, fleet, full):
    two = fleet(node.url())
    two.producers.start()
    two.producers.await_more(100)
    places = [(moment, site) for site in sites(two) for moment in ("before", "after")]
    print(f"{len(places)} places: {places}")
    plan: list[tuple[str, str] | None] = list(places)
    if full:
        plan += [None] * max(0, 62 - len(plan))
        random.shuffle(plan)
    else:
        plan = [place for place in places if place[0] == "after" and ":exchange:" in place[1]]
    stops, missed = 0, []
    for where in plan:
        launched = stop_and_go_on(two, where)
        if launched is None:
            missed.append(where)
            continue
        stops += 1
        # Between the check and the launch of one request there is no await, but there
        # are instructions: a stop at a random one of them may lie in between.
        at_most = 1 if where is None else 0
        assert len(launched) <= at_most, f"launched {launched} after a stop at {where}"
    figures = two.finish()
    print(f"{stops} stops, never came by {missed}: {figures}")
    check(figures, stops)
    assert stops >= (50 if full else 1)


NO_CHECK = """
def fault():
    from outboxd.delivery.sender import Sender
    from outboxd.agent.election import Election
    # Deliberately wrong: whoever was the deliverer launches what it has recorded.
    Election.may_launch = lambda self: self._is_deliverer
"""
NO_FENCE = """
def fault():
    from outboxd.outbox.postgresql.lease_row import LeaseRow

    def renew(self, more, values):
        # Deliberately wrong: the row is changed, whoever holds the lease.
        asked_at_s = self._clock.since_boot_s()
        ((turn,),) = self._link.connection.execute(
            f"UPDATE deliverers SET {more} turn = turn + 1,"
            " lease_ends_at = clock_timestamp() + %s * interval '1 second'"
            " WHERE destination = %s RETURNING turn",
            (*values, self.length_s, self._destination),
        )
        self.lease = self.lease.renewed(turn, asked_at_s)

    LeaseRow._renew = renew
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fault", "site"), [(NO_CHECK, ":exchange:"), (NO_FENCE, ":fetch:")], ids=["check", "fence"]
)
def test_a_gateway_without_its_check_or_its_fence_is_caught(node, fleet, only_full, fault, site):
    """The controls: the same stops must find both."""
    two = fleet(node.url(), hooks=fault)
    two.producers.start()
    two.producers.await_more(100)
    place = next(each for each in sites(two) if site in each)
    for _ in range(10):
        if stop_and_go_on(two, ("after", place)):
            return
    raise AssertionError("ten stops did not find it")
