"""A PostgreSQL server of the tests' own, on a Unix socket, as a user that is not root."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from support.postgresql import Server, needed_binaries

from outboxd.outbox.postgresql.engine import PostgresEngine


@pytest.fixture(scope="session")
def server():
    bin = needed_binaries()
    # In memory: here a sync need not last, but it must be asked for.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="outboxd-pg-", dir=memory) as directory:
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
