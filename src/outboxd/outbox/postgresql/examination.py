"""What `outboxd check` finds about the outbox's database, and what to do about it.

Looks and changes nothing. Errors of a connection have no number that says what is
wrong; libpq's own English words do, and those are looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from time import perf_counter
from typing import Any, NamedTuple

import psycopg

from outboxd.errors import (
    EX_CONFIG,
    EX_NOPERM,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    OutboxdError,
    OutboxUnusable,
)
from outboxd.findings import Finding, bad, good, note
from outboxd.outbox.postgresql import query
from outboxd.outbox.postgresql.connection import (
    check_promises,
    connect,
    first_line,
    named,
    only_value,
)
from outboxd.outbox.postgresql.schema import DESTINATION, TABLES

_SLOW_S = 0.1  # of one round trip: each receipt takes several


class _Trouble(NamedTuple):
    """Words of libpq's, and what to do."""

    words: str
    hint: str
    exit_code: int


_TROUBLES = (
    _Trouble(
        "password authentication failed",
        "put the password of the URL's user into [outbox] password_file",
        EX_CONFIG,
    ),
    _Trouble(
        "no password supplied",
        "put the password of the URL's user into [outbox] password_file, or the credential"
        " outbox-password",
        EX_CONFIG,
    ),
    _Trouble(
        "certificate",
        "name the authority's file with sslrootcert= in the URL, and the host as the"
        " certificate has it",
        EX_CONFIG,
    ),
    _Trouble("SSL", "see sslmode in the URL, and ssl in the server's postgresql.conf", EX_CONFIG),
    _Trouble(
        "pg_hba.conf",
        "the server lets this user in from nowhere, or not from this host: add it there",
        EX_CONFIG,
    ),
    _Trouble(
        "does not exist",
        "make it there: CREATE ROLE …, CREATE DATABASE … OWNER …",
        EX_CONFIG,
    ),
    _Trouble(
        "read-only",
        "none of the URL's servers takes writes: is the primary among them?",
        EX_UNAVAILABLE,
    ),
    _Trouble("too many", "raise max_connections there: a gateway needs three", EX_TEMPFAIL),
)


def examine(
    url: str, password: str | None, durability: str, destination: str = DESTINATION
) -> Iterator[Finding]:
    """Everything in order; what the rest needs first."""
    began_s = perf_counter()
    try:
        name = named(url)
        connection = connect(url, password)
    except OutboxUnusable as error:
        yield bad("database", error.message, error.hint or "", EX_CONFIG)
        return
    except psycopg.Error as error:
        yield _unreachable(name, str(error).strip())
        return
    took_s = perf_counter() - began_s
    with connection:
        for look in (_pooler, _promises, _standby, _tls, _rights):
            try:
                yield from look(connection, durability)
            except psycopg.Error as error:
                told = f"{name}: {first_line(error)}"
                yield bad("database", told, "see the server's log", EX_UNAVAILABLE)
                return
        with suppress(psycopg.Error):  # whoever cannot read the tables was told
            yield from _accounts(connection, destination)
        yield _speed(connection, name, took_s)


def _unreachable(name: str, told: str) -> Finding:
    found = next((each for each in _TROUBLES if each.words in told), None)
    hint, code = "is it running, and does a firewall let this host through?", EX_UNAVAILABLE
    if found is not None:
        hint, code = found.hint, found.exit_code
    shown = " ".join(told.split())
    return bad("database", f"{name} cannot be used: {shown}", hint, code)


def _pooler(connection: psycopg.Connection[Any], _: str) -> Iterator[Finding]:
    """A pooler that gives each statement another session knows no transactions."""
    try:
        connection.execute("BEGIN")
        connection.execute("SELECT 1")
        connection.execute("COMMIT")
    except psycopg.Error as error:
        yield bad(
            "pooler",
            f"it takes no transactions: {first_line(error)}",
            "set pool_mode = transaction (or session) for this database in pgbouncer.ini",
            EX_CONFIG,
        )
        raise


def _promises(connection: psycopg.Connection[Any], durability: str) -> Iterator[Finding]:
    try:
        check_promises(connection, durability)
    except OutboxdError as error:
        yield bad("durability", error.message, error.hint or "mend it there", error.exit_code)


def _standby(connection: psycopg.Connection[Any], durability: str) -> Iterator[Finding]:
    """Under "replicated" a commit waits for a standby: is one there?"""
    if durability != "replicated":
        yield note(
            "durability",
            'it is "local": receipts are lost with that one server\'s disk',
            'with a synchronous standby set [outbox] durability = "replicated"',
        )
        return
    row = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')),"
        " count(sync_state) FROM pg_stat_replication"
    ).fetchone()
    standbys, synchronous, legible = row or (0, 0, 0)
    if not standbys:
        yield bad(
            "standby",
            "no standby is connected: every commit waits for one, and no receipt is given",
            "start it, or see why it does not stream (its log, pg_stat_replication)",
            EX_UNAVAILABLE,
        )
    elif legible and not synchronous:
        yield bad(
            "standby",
            "no standby that is connected is a synchronous one: commits wait",
            "compare their application_name with synchronous_standby_names",
            EX_CONFIG,
        )
    elif not legible:
        told = f"{standbys} connected; whether one is synchronous this user may not see"
        yield note("standby", told, "GRANT pg_monitor to it, and check again")
    else:
        yield good("standby", f"{synchronous} synchronous of {standbys}")


def _tls(connection: psycopg.Connection[Any], _: str) -> Iterator[Finding]:
    if not connection.info.host or connection.info.host.startswith("/"):
        return
    mode = connection.info.get_parameters().get("sslmode", "prefer")
    if not connection.pgconn.ssl_in_use:
        told = f"events and the password reach {connection.info.host} in clear text"
        yield note("database TLS", told, "add sslmode=verify-full to the URL")
    elif mode not in ("verify-full", "verify-ca"):
        told = f"sslmode={mode} does not look whether the certificate is that server's"
        yield note("database TLS", told, "use sslmode=verify-full, with sslrootcert=FILE")
    else:
        yield good("database TLS", f"sslmode={mode}")


def _rights(connection: psycopg.Connection[Any], _: str) -> Iterator[Finding]:
    row = connection.execute(
        "SELECT current_user, current_schema(), coalesce(has_schema_privilege(current_schema(),"
        " 'CREATE'), false), (SELECT coalesce(bool_and(has_table_privilege(to_regclass(t),"
        " 'SELECT, INSERT, UPDATE, DELETE')), true) FROM unnest(%s::text[]) t"
        " WHERE to_regclass(t) IS NOT NULL)",
        (list(TABLES),),
    ).fetchone()
    user, schema, may_create, may_use = row or ("", None, False, False)
    if not may_create:
        yield bad(
            "database",
            f"{user} may make no tables in {schema or 'any schema'}",
            f"GRANT CREATE, USAGE ON SCHEMA {schema or 'public'} TO {user}, or make it the"
            " database's owner",
            EX_NOPERM,
        )
    elif not may_use:
        told = f"{user} may not read and write the outbox's tables in {schema}"
        yield bad("database", told, "all gateways use one role; make it their owner", EX_NOPERM)


def _accounts(connection: psycopg.Connection[Any], destination: str) -> Iterator[Finding]:
    """Whose entries are here besides one's own, and whether somebody delivers them."""
    if only_value(connection, "SELECT to_regclass('tallies') IS NULL"):
        return
    for other in query.other_accounts(connection, destination):
        told = f"{other.name}: {other.pending:,} pending"
        if other.gateway is not None:
            yield good("other account", f"{told}, delivered by {other.gateway}")
        elif other.pending:
            hint = "start its gateways; was it renamed, give one of them the old name for a while"
            yield note("other account", f"{told}, and no gateway delivers them", hint)


def _speed(connection: psycopg.Connection[Any], name: str, took_s: float) -> Finding:
    began_s = perf_counter()
    connection.execute("SELECT 1")
    trip_s = perf_counter() - began_s
    version = connection.info.server_version
    told = (
        f"{name}: PostgreSQL {version // 10000}.{version % 10000},"
        f" connected in {took_s * 1000:.0f} ms, a round trip takes {trip_s * 1000:.1f} ms"
    )
    if trip_s > _SLOW_S:
        return note("database", told, "each receipt takes several: run gateways near it")
    return good("database", told)
