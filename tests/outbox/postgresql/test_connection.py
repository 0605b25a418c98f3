"""How a gateway finds the server of a cluster that takes writes."""

from __future__ import annotations

import socket

import psycopg
import pytest
from support.ports import free_port
from support.postgresql import Server

from outboxd.outbox.postgresql.connection import connect

# Of a host that says nothing; the test ends long before.
TIMEOUT_S = 100


@pytest.fixture
def silent():
    """A host that takes connections and says nothing: as one that is dead or frozen."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def url(server: Server, *others: int) -> str:
    """The others stand first."""
    hosts = ",".join([*("127.0.0.1" for _ in others), str(server.sockets)])
    ports = ",".join([*map(str, others), "5432"])
    return f"host={hosts} port={ports} dbname=postgres user=postgres connect_timeout={TIMEOUT_S}"


@pytest.mark.timeout(60)
def test_a_dead_host_keeps_nobody_from_the_one_that_takes_writes(server, silent):
    with connect(url(server, silent, silent)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_what_each_host_said_is_told(server):
    nowhere = f"host=127.0.0.1,/nowhere port={free_port()},5432 dbname=postgres user=postgres"
    with pytest.raises(psycopg.OperationalError) as caught:
        connect(nowhere)
    assert "refused" in str(caught.value)
    assert "/nowhere" in str(caught.value)
