"""A connection to the outbox's PostgreSQL, and what its errors mean.

Nothing is ever cancelled in COMMIT: a cancelled one may be there, and not replicated.
No session state is relied on, so that a pooler in transaction mode may stand between.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import psycopg
from psycopg import conninfo, errors

from outboxd.errors import (
    CommitUnknown,
    DiskShort,
    OutboxdError,
    OutboxUnreachable,
    OutboxUnusable,
)
from outboxd.outbox.postgresql import schema

VERSION_MIN = 130000
# Of libpq, where the URL does not say. A server that a partition has cut off is noticed
# within some 10 s, and the server of a cluster that takes writes is the one.
_DEFAULTS: dict[str, Any] = {
    "target_session_attrs": "read-write",
    "connect_timeout": 3,
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # ms
}


# What libpq says of settings that no server was asked with.
_OF_THE_URL = re.compile(
    r"invalid [\w ]+ value[ :]|invalid port number|bad value for|could not match \d+"
    r"|definition of service"
)
# Of these at most one server of a cluster is meant, whichever that is.
_THE_ONE = ("read-write", "primary")


def application_name(destination: str) -> str:
    """What the server's own listings call a connection of a destination's gateways."""
    return f"outboxd {destination}"


def connect(
    url: str, password: str | None = None, name: str = "outboxd"
) -> psycopg.Connection[Any]:
    """Connect to a server that takes writes. Several hosts are asked at once: one that is
    dead must not keep anybody from the one that was promoted in its place.

    Raises:
        OutboxUnusable: the URL is none that libpq understands.
        psycopg.Error: see `translate`.
    """
    settings = {**_DEFAULTS, "application_name": name, **_given(url)}
    if password is not None:
        settings["password"] = password
    hosts = _by_host(settings)
    try:
        if len(hosts) == 1 or settings["target_session_attrs"] not in _THE_ONE:
            return _connect(settings)
        return _connect_to_any(hosts)
    except psycopg.Error as error:
        if _OF_THE_URL.search(str(error)):
            raise _wrong_url(first_line(error)) from error
        raise


def _given(url: str) -> dict[str, Any]:
    """What the URL says. Raises OutboxUnusable."""
    try:
        return conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise _wrong_url(first_line(error)) from error


def _wrong_url(told: str) -> OutboxUnusable:
    return OutboxUnusable(
        f"[outbox] url cannot be used: {told}",
        "its parameters are libpq's: see 'Parameter Key Words' in PostgreSQL's manual",
    )


def _connect(settings: dict[str, Any]) -> psycopg.Connection[Any]:
    return psycopg.connect(
        **settings,
        autocommit=True,
        prepare_threshold=None,  # a pooler gives the next statement to another session
    )


def _by_host(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The same settings for each host by itself; one port may be for all. Raises
    OutboxUnusable."""
    lists = {
        name: str(settings[name]).split(",")
        for name in ("host", "hostaddr", "port")
        if name in settings
    }
    count = max((len(values) for values in lists.values()), default=1)
    for name, values in lists.items():
        if len(values) not in (1, count):
            raise _wrong_url(f"could not match {len(values)} of {name} to {count} hosts")
    return [
        settings | {name: values[n if len(values) > 1 else 0] for name, values in lists.items()}
        for n in range(count)
    ]


def _connect_to_any(hosts: list[dict[str, Any]]) -> psycopg.Connection[Any]:
    """The first that answers as it should; the others are left to their time limit."""
    ended: SimpleQueue[psycopg.Connection[Any] | psycopg.Error] = SimpleQueue()
    is_wanted = threading.Semaphore()

    def attempt(settings: dict[str, Any]) -> None:
        try:
            connection = _connect(settings)
        except psycopg.Error as error:
            ended.put(error)
            return
        if is_wanted.acquire(blocking=False):
            ended.put(connection)
        else:
            connection.close()

    for settings in hosts:
        threading.Thread(target=attempt, args=(settings,), daemon=True).start()
    errors = []
    for _ in hosts:
        found = ended.get()
        if not isinstance(found, psycopg.Error):
            return found
        errors.append(first_line(found))
    raise psycopg.OperationalError("; ".join(errors))


def answers(url: str, password: str | None) -> bool:
    """Whether a server that takes writes answers a new connection, within seconds."""
    try:
        connect(url, password).close()
    except (psycopg.Error, OutboxUnusable):
        return False
    return True


def migrate(connection: psycopg.Connection[Any]) -> None:
    """Bring the tables to this version's form; one gateway at a time.

    Raises:
        OutboxUnusable: a newer version has been here.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (schema.LOCK,))
        connection.execute("CREATE TABLE IF NOT EXISTS outboxd_migrations (name text PRIMARY KEY)")
        applied = {name for (name,) in connection.execute("SELECT name FROM outboxd_migrations")}
        known = {name for name, _ in schema.MIGRATIONS}
        if unknown := applied - known:
            raise OutboxUnusable(
                f"the outbox was written by a newer version of outboxd ({', '.join(unknown)})",
                "install that version here, too, or set [outbox] url to another database",
            )
        for name, statements in schema.MIGRATIONS:
            if name not in applied:
                connection.execute(statements)
                connection.execute("INSERT INTO outboxd_migrations VALUES (%s)", (name,))


def check_promises(connection: psycopg.Connection[Any], durability: str) -> None:
    """Whether the server can keep what a receipt promises.

    Raises:
        OutboxUnusable: exit code 78, with the setting and why.
    """
    if connection.info.server_version < VERSION_MIN:
        raise OutboxUnusable(
            f"the server is PostgreSQL {connection.info.server_version // 10000}",
            "outboxd needs 13 or newer",
        )
    names = ["fsync", "synchronous_commit", "synchronous_standby_names", "full_page_writes"]
    shown = dict(
        connection.execute("SELECT n, current_setting(n) FROM unnest(%s::text[]) n", (names,))
    )
    for name in ("fsync", "full_page_writes"):
        if shown[name] != "on":
            raise OutboxUnusable(
                f"the server has {name} = off: a power cut there loses receipts",
                f"set {name} = on in postgresql.conf",
            )
    if shown["synchronous_commit"] not in ("on", "remote_apply"):
        raise OutboxUnusable(
            f"the server has synchronous_commit = {shown['synchronous_commit']}: a receipt would"
            " be given before its commit is on disk",
            "set synchronous_commit = on for this database or its user",
        )
    if durability == "replicated" and not shown["synchronous_standby_names"]:
        raise OutboxUnusable(
            '[outbox] durability is "replicated" and the server has no synchronous standby'
            " (synchronous_standby_names is empty)",
            'name one there, or set durability = "local" if one server\'s disk is enough',
        )


@contextmanager
def opening() -> Iterator[None]:
    """Around what an outbox is opened with. Raises OutboxUnusable where its user has not
    the rights; while it runs that may be a moment's."""
    try:
        yield
    except (errors.InsufficientPrivilege, errors.InvalidSchemaName) as error:
        raise OutboxUnusable(
            f"the database's user lacks a right or a schema: {first_line(error)}",
            "make it the owner of the database and its tables, or GRANT it; `outboxd check`"
            " says which",
        ) from error


def translate(error: psycopg.Error, in_commit: bool = False) -> OutboxdError:
    """The error in the words of `outbox.engine`."""
    told = first_line(error)
    if isinstance(error, errors.DiskFull | errors.ConfigurationLimitExceeded):
        return DiskShort(
            f"no room on the database's disk: nothing was kept ({told})",
            "free some space there; it goes on by itself",
            5,
        )
    # A gateway that was stopped in the middle of a transaction finds its session ended.
    ended = errors.IdleInTransactionSessionTimeout
    broken = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | ended)
    if broken and in_commit:
        return CommitUnknown(
            f"the connection ended during a commit: {told}",
            "nothing to do: whoever waits asks again with the same key",
        )
    if broken or isinstance(error, errors.ReadOnlySqlTransaction):
        return OutboxUnreachable(
            f"the outbox's database cannot be reached: {told}",
            "events are refused, and taken again as soon as it answers",
            5,
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return OutboxUnreachable(
            f"the outbox's database refuses: {told}",
            "GRANT it again, `outboxd check` says which right; events are refused until then",
            5,
        )
    return OutboxdError(f"internal error on the database: {told}", "please report it")


def first_line(error: psycopg.Error) -> str:
    """What libpq or the server says, without its guesses and hints below."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def named(url: str) -> str:
    """The database in messages, without a password. Raises OutboxUnusable."""
    shown = _given(url)
    return f"{shown.get('host', 'localhost')}/{shown.get('dbname', '')}"


def only_value(
    connection: psycopg.Connection[Any], sql: str, values: Sequence[Any] | Mapping[str, Any] = ()
) -> Any:
    """The only value of a query that always has a row."""
    row = connection.execute(sql, values).fetchone()
    assert row is not None
    (value,) = row
    return value
