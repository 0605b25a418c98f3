"""Networks that are cut between a gateway and its database, and between all and Komodor."""

from __future__ import annotations

import socket
import time

from support import clusters, wires
from support.gateways import check
from support.receiver import Receiver


def test_networks_that_are_cut_lose_nothing(template, fleet, only_full):
    """The deliverer from the database: the other takes over, and it launches nothing.
    Both from Komodor: everything waits. No producer is cut off from its gateway."""
    net = wires.needed_wires(["database", "komodor", "one", "two"])
    komodor = net.addresses["komodor"]
    try:
        receiver = Receiver(
            listening=net.run_in("komodor", lambda: socket.create_server((komodor, 0)))
        )
        with clusters.single(template) as node:
            node.stop()
            with (node.data / "pg_hba.conf").open("a") as file:
                file.write(f"host all all {wires.NETWORK}.0/24 trust\n")
            node.inside(("ip", "netns", "exec", net.namespaces["database"]))
            node.options += [f"-c listen_addresses={net.addresses['database']}"]
            node.start()
            two = fleet(
                f"postgresql://postgres@{net.addresses['database']}/postgres",
                sql=node.url(),
                receiver=receiver,
                host=komodor,
                komodor={"allow_plain_http": True},
                namespaces=[net.namespaces["one"], net.namespaces["two"]],
            )
            two.producers.start()
            for _ in range(3):
                two.producers.await_more(50)
                cut = two.deliverer()
                with net.cut(cut.name, "database"):
                    two.deliverer(other_than=cut)
                    taken_over_s = time.clock_gettime(time.CLOCK_BOOTTIME)
                    two.producers.await_more(50)
                    assert cut.launched_since(taken_over_s) == []
            with net.cut("one", "komodor"), net.cut("two", "komodor"):
                two.producers.await_more(100)
            figures = two.finish()
            print(f"cut: {figures} {two.producers.refusals}")
            check(figures, 8)
            for gateway in two.gateways:
                gateway.kill()
    finally:
        net.close()
