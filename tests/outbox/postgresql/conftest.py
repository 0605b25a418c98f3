"""A PostgreSQL server of the tests' own, on a Unix socket, as a user that is not root."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("psycopg", reason="psycopg is not installed")

from support.postgresql import Server, binaries

from outboxd.outbox.postgresql.engine import PostgresEngine


@pytest.fixture(scope="session")
def server():
    bin = binaries()
    if bin is None:
        pytest.skip("Debian's postgresql is not installed")
    with tempfile.TemporaryDirectory(prefix="outboxd-pg-") as directory:
        one = Server(Path(directory), bin)
        one.start()
        yield one
        one.stop("immediate")


@pytest.fixture
def url(server) -> str:
    return server.fresh()


@pytest.fixture
def engine(url, clock):
    engine = PostgresEngine(url, clock)
    assert engine.take_lease()
    yield engine
    engine.close()
