"""A pooler, clocks an hour apart, a full database."""

from __future__ import annotations

import time

from support import clusters, smalldisk
from support.gateways import check
from support.waiting import PATIENCE_S


def test_behind_a_pooler_in_transaction_mode(node, fleet, need, only_full):
    pooler = clusters.Pooler(node, need("pgbouncer"))
    try:
        two = fleet(pooler.url("postgres"), sql=node.url())
        two.producers.start()
        for _ in range(6):
            two.producers.await_more(100)
            gateway = two.deliverer()
            gateway.kill()
            gateway.start()
        figures = two.finish()
    finally:
        pooler.close()
    print(f"behind pgbouncer: {figures}")
    check(figures, 6)


def test_clocks_an_hour_apart_change_nothing(node, fleet, only_full):
    """Leases go by the database's clock, and each gateway's own runs since boot."""
    two = fleet(node.url(), one={"clock_offset_s": 3600})
    two.producers.start()
    for _ in range(6):
        two.producers.await_more(100)
        gateway = two.deliverer()
        gateway.kill()
        two.deliverer(other_than=gateway)
        gateway.start()
    two.producers.await_more(100)
    figures = two.finish()
    print(f"an hour apart: {figures}")
    check(figures, 6)


def test_a_full_database_refuses_and_goes_on_when_there_is_room(node, fleet, need, only_full):
    """Its tables stand on a small disk; the log of the server does not."""
    base = node.home / "small"
    base.mkdir(mode=0o755)
    disk = smalldisk.make(base, "tmpfs", need, size_mib=64)
    try:
        clusters.own(disk.outside)
        node.stop()
        node.inside(disk.prefix)
        node.start()
        node.sql(f"CREATE TABLESPACE small LOCATION '{disk.inside}'")
        node.sql("CREATE DATABASE small TABLESPACE small")
        two = fleet(node.url("small"))
        two.producers.start()
        two.producers.await_more(100)
        disk.fill()
        ends_s = time.monotonic() + PATIENCE_S
        while not two.producers.refusals.get(507):
            assert time.monotonic() < ends_s, two.producers.refusals
            time.sleep(0.05)
        disk.empty()
        two.producers.await_more(100)
        figures = two.finish()
        assert set(two.producers.refusals) <= {503, 507}
    finally:
        node.kill()
        disk.close()
    print(f"a full database: {figures}")
    check(figures, 1)
