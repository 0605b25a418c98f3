"""How a gateway finds the server of a cluster that takes writes."""

from __future__ import annotations

import socket

import psycopg
import pytest
from support.outside import outboxd
from support.ports import free_port
from support.postgresql import Server

from outboxd.errors import OutboxUnreachable, OutboxUnusable
from outboxd.outbox.postgresql.connection import connect
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.outbox.postgresql.examination import examine

# Of a host that says nothing; a test that waited for it would not end in time.
TIMEOUT_S = 1000


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


def test_a_dead_host_keeps_nobody_from_the_one_that_takes_writes(server, silent):
    with connect(url(server, silent, silent)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_what_each_host_said_is_told(server):
    nowhere = f"host=127.0.0.1,/nowhere port={free_port()},5432 dbname=postgres user=postgres"
    with pytest.raises(psycopg.OperationalError) as caught:
        connect(nowhere)
    assert "refused" in str(caught.value)
    assert "/nowhere" in str(caught.value)


# What no server is asked with: nobody can mend it but who wrote the URL.
WRONG_URLS = [
    "postgresql:///outboxd?host=/nowhere&nonsense=1",
    "postgresql:///%zz?host=/nowhere",
    "postgresql:///outboxd?host=/nowhere&sslmode=foo",
    "postgresql:///outboxd?host=/nowhere,/elsewhere&sslmode=foo",
    "postgresql:///outboxd?host=/nowhere&target_session_attrs=any-one",
    "postgresql:///outboxd?host=/nowhere&connect_timeout=soon",
    "postgresql://127.0.0.1:99999/outboxd",
    "postgresql://127.0.0.1,127.0.0.1/outboxd?port=1,2,3",
    "postgresql:///outboxd?service=no-such-service",
]


@pytest.mark.parametrize("wrong", WRONG_URLS)
def test_a_url_that_libpq_does_not_understand_is_told_as_a_setting(wrong):
    with pytest.raises(OutboxUnusable, match=r"\[outbox\] url cannot be used: ") as caught:
        connect(wrong)
    (found,) = examine(wrong, None, "local")
    assert found.told == caught.value.message
    assert found.exit_code == 78


@pytest.mark.parametrize("command", [("run",), ("check",), ("events",)])
def test_no_command_takes_a_wrong_url_for_an_error_of_its_own(tmp_path, command):
    config = tmp_path / "config.toml"
    config.write_text(f'[outbox]\nurl = "{WRONG_URLS[0]}"\n[intake]\nsocket = "s"\n')
    done = outboxd(*command, "-c", str(config))
    assert done.returncode == 78
    assert b'invalid URI query parameter: "nonsense"' in done.stdout + done.stderr
    assert b"report it" not in done.stdout + done.stderr


def test_missing_rights_stop_the_start_and_later_are_waited_for(server, url, clock, event):
    schema = url.rpartition("=")[2].strip("'")
    role = f"w{schema}"
    server.execute(f"CREATE ROLE {role} LOGIN")
    with pytest.raises(OutboxUnusable, match="lacks a right or a schema: no schema") as caught:
        PostgresEngine(f"{url} user={role}", clock)
    assert "outboxd check" in (caught.value.hint or "")
    PostgresEngine(url, clock).close()
    server.execute(f"GRANT ALL ON SCHEMA {schema} TO {role}")
    with pytest.raises(OutboxUnusable, match="permission denied"):
        PostgresEngine(f"{url} user={role}", clock)
    server.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}")
    server.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}")
    engine = PostgresEngine(f"{url} user={role}", clock)
    server.execute(f"REVOKE ALL ON {schema}.entries FROM {role}")
    with pytest.raises(OutboxUnreachable, match="refuses: permission denied"), engine.transaction():
        engine.accept([event()])
    server.execute(f"GRANT ALL ON {schema}.entries TO {role}")
    engine.link.restore()
    with engine.transaction():
        (receipt,) = engine.accept([event()])
    assert receipt.status == "accepted"
    engine.close()
