"""A move from a file to a database and back, and a gateway that nobody told of it."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from support.moves import Mover, fill, incoming, seen

from outboxd.cli.main import main
from outboxd.errors import OutboxdError, OutboxUnusable
from outboxd.outbox import moving
from outboxd.outbox.model import Attempt, Settlement
from outboxd.outbox.postgresql.connection import OutboxUnreachable
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.outbox.sqlite.engine import SqliteEngine


@pytest.fixture
def database(server):
    """The URLs of empty databases: a move wants one for itself."""

    def make(template: str = "template1") -> str:
        name = "m" + uuid.uuid4().hex
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"postgresql://postgres@/{name}?host={server.sockets}"

    return make


@pytest.fixture
def filled(tmp_path) -> str:
    path = str(tmp_path / "from.db")
    engine = SqliteEngine(path)
    fill(engine)
    engine.close()
    return path


@pytest.fixture(scope="module")
def mover():
    mover = Mover()
    yield mover
    mover.close()


def what(engine) -> dict[str, object]:
    try:
        return seen(engine)
    finally:
        engine.close()


def test_from_a_file_into_a_database_and_back(filled, database, tmp_path, capsys):
    url, back = database(), str(tmp_path / "back.db")
    assert main(["move", filled, url]) == 0
    wanted = what(SqliteEngine(filled))
    assert what(PostgresEngine(url)) == wanted
    assert main(["move", url, back]) == 0
    told = capsys.readouterr().out
    assert told.count("moved 29 entries (23 pending, 1 of them held; 5 delivered; 1 dead)") == 2
    assert what(SqliteEngine(back)) == wanted
    engine = PostgresEngine(url)
    try:
        with pytest.raises(OutboxUnusable, match="was moved to"):
            moving.refuse_moved(engine)
    finally:
        engine.close()


def test_what_comes_in_after_a_move_is_new_and_a_known_key_is_known(filled, database):
    url = database()
    assert main(["move", filled, url]) == 0
    engine = PostgresEngine(url)
    try:
        newest = max(engine.seq_range())
        with engine.transaction():
            (again,) = engine.accept([incoming("x", 1, producer="token:b", dedup_key="pruned")])
            (fresh,) = engine.accept([incoming("y", 1)])
        assert again.status == "duplicate"
        assert engine.get(fresh.id).seq > newest
    finally:
        engine.close()


def test_a_database_that_a_gateway_has_is_refused(database, tmp_path, capsys):
    url = database()
    gateway = PostgresEngine(url, lease_s=600)
    gateway.take_lease()
    try:
        assert main(["move", url, str(tmp_path / "to.db")]) == 75
        assert "stop the agents" in capsys.readouterr().err
    finally:
        gateway.connection.close()
    # The connection is gone, the lease is not yet.
    assert main(["move", url, str(tmp_path / "to.db")]) == 75


def test_a_gateway_that_comes_back_after_a_move_changes_nothing(database, tmp_path):
    """It was stopped meanwhile, say; what it writes is refused as by a server that
    takes no writes, and what it had not launched is not launched."""
    url = database()
    gateway, source = PostgresEngine(url, lease_s=0.1), PostgresEngine(url)
    target = SqliteEngine(str(tmp_path / "to.db"))
    try:
        assert gateway.take_lease()
        with gateway.transaction():
            gateway.accept([incoming("before", 1)])
            (seq,) = gateway.seq_range()
        moving.move(source, target)
        settled = Settlement(seq, "delivered", Attempt(1, 1, "delivered", 201, None))
        for late in (
            lambda: gateway.accept([incoming("after", 1)]),
            lambda: gateway.settle([settled]),
            lambda: gateway.set_sending([seq]),
        ):
            with pytest.raises(OutboxUnreachable), gateway.transaction():
                late()
        assert target.counts().pending == 1
    finally:
        for engine in (gateway, source, target):
            engine.close()


def test_cut_off_at_each_commit_into_and_out_of_a_database(filled, database, tmp_path, mover, full):
    wanted = None
    dies_at = 0
    codes = {-9}
    while -9 in codes:
        dies_at += 1 if full else 7
        url, back = database(), str(tmp_path / f"{dies_at}.db")
        source = str(tmp_path / f"from-{dies_at}.db")
        engine = SqliteEngine(source)
        fill(engine)
        wanted = seen(engine)
        engine.close()
        codes = set()
        for pair in ((source, url), (url, back)):
            codes.add(mover.move(*pair, dies_at))
            assert mover.move(*pair) == 0
        found = what(SqliteEngine(back))
        for name in ("counts", "waiting", "keys"):
            assert found[name] == wanted[name]
        assert len(found["entries"]) == len(wanted["entries"])


def test_two_moves_at_once_bring_nothing_twice(filled, database, tmp_path, monkeypatch):
    """The second one stops at the first entry that is there already."""
    url, there = database(), database()
    assert main(["move", filled, url]) == 0
    source, target = PostgresEngine(url), PostgresEngine(there)
    other_source, other_target = PostgresEngine(url), PostgresEngine(there)
    put_in = PostgresEngine.put_in
    at_once = []

    def overtaken(self, entries, identities):
        if not at_once:
            at_once.append(True)
            moving.move(other_source, other_target)
        put_in(self, entries, identities)

    try:
        monkeypatch.setattr(PostgresEngine, "put_in", overtaken)
        with pytest.raises(OutboxdError):
            moving.move(source, target)
        wanted = seen(other_source)
        assert seen(other_target) == wanted
    finally:
        for engine in (source, target, other_source, other_target):
            engine.close()
