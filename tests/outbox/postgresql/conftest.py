"""A PostgreSQL server of the tests' own, on a Unix socket, as a user that is not root."""

from __future__ import annotations

import pytest
from support.postgresql import Server, needed_binaries
from support.server_home import server_home

from outboxd.outbox.postgresql import link
from outboxd.outbox.postgresql.engine import PostgresEngine

BEGIN = link._BEGIN


@pytest.fixture(autouse=True)
def patient_server(monkeypatch):
    """It ends a session that does nothing within a transaction for five seconds; a test that
    does something else meanwhile may take longer on a busy machine."""
    patient = BEGIN.replace("'5s'", "'10min'")
    assert patient != BEGIN
    monkeypatch.setattr(link, "_BEGIN", patient)


@pytest.fixture(scope="session")
def server():
    bin = needed_binaries()
    with server_home() as directory:
        one = Server(directory, bin)
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
