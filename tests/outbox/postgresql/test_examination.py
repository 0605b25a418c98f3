"""What `check` says of a database: each fault by its name, with what to do."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from support.postgresql import Bouncer

from outboxd.errors import EX_CONFIG
from outboxd.findings import BAD, GOOD, NOTE, Finding
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.outbox.postgresql.examination import examine


def found(url: str, durability: str = "local") -> dict[str, Finding]:
    return {each.name: each for each in examine(url, None, durability)}


def test_a_good_one_is_told_with_its_version_and_speed(server, url):
    seen = found(url)
    assert seen["database"].level == GOOD
    assert "PostgreSQL " in seen["database"].told
    assert seen["durability"].level == NOTE  # one server's disk is told as such


@pytest.mark.parametrize(
    ("more", "said", "hint"),
    [
        ("user=nobody-here", 'role "nobody-here" does not exist', "CREATE ROLE"),
        ("dbname=nothing-here", 'database "nothing-here" does not exist', "CREATE DATABASE"),
        ("host=/nowhere", "cannot be used", "is it running"),
        ("options='-c default_transaction_read_only=on'", "read-only", "takes writes"),
    ],
)
def test_why_there_is_no_connection_is_told_with_what_to_do(server, more, said, hint):
    (only,) = examine(f"{server.url()} {more}", None, "local")
    assert only.level == BAD
    assert said in only.told
    assert hint in only.hint


def test_what_breaks_the_promise_is_named(url):
    weak = url.replace("search_path", "synchronous_commit=off -c search_path")
    (told,) = [each for each in examine(weak, None, "local") if each.level == BAD]
    assert "synchronous_commit" in told.told
    assert told.exit_code == EX_CONFIG


def test_without_a_standby_replicated_is_refused_and_told(url):
    told = [each for each in examine(url, None, "replicated") if each.level == BAD]
    assert any("synchronous_standby_names" in each.told for each in told)
    assert any("no standby is connected" in each.told for each in told)


def test_missing_rights_are_named(server, url, clock):
    PostgresEngine(url, clock).close()
    schema = url.rpartition("=")[2].strip("'")
    role = f"r{schema}"
    server.execute(f"CREATE ROLE {role} LOGIN")
    told = [each for each in examine(f"{url} user={role}", None, "local") if each.level == BAD]
    assert any("may make no tables" in each.told for each in told)
    server.execute(f"GRANT ALL ON SCHEMA {schema} TO {role}")
    told = [each for each in examine(f"{url} user={role}", None, "local") if each.level == BAD]
    assert any("may not read and write" in each.told for each in told)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_pooler_s_mode_is_told(server, need, mode):
    need("pgbouncer")
    name = server.fresh_database()
    with tempfile.TemporaryDirectory(prefix="outboxd-pgb-") as directory:
        bouncer = Bouncer(Path(directory), server, mode)
        try:
            bouncer.await_ready(name)
            seen = found(bouncer.url(name))
        finally:
            bouncer.stop()
    if mode == "transaction":
        assert seen["database"].level == GOOD
    else:
        assert seen["pooler"].level == BAD
        assert "pool_mode = transaction" in seen["pooler"].hint
