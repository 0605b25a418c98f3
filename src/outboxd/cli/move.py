"""`outboxd move FROM TO`: all of an outbox into another one, while no agent runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from outboxd.cli.queue import client_config
from outboxd.config.database_password import read_database_password
from outboxd.errors import EX_OK, ConfigError, UsageError
from outboxd.outbox.moving import Moved, give_up, move
from outboxd.outbox.sqlite.opening import open_to_fill, open_to_leave
from outboxd.producer.command_line import Arguments

if TYPE_CHECKING:
    from outboxd.config.sections import Config
    from outboxd.outbox.engine import Engine


def run(arguments: Arguments) -> int:
    """0 once everything is in TO, compared, and FROM is marked."""
    source_name, target_name = arguments.source, arguments.target
    config = client_config(arguments)
    if arguments.give_up:
        if target_name is not None:
            raise UsageError("--give-up takes FROM alone", "`outboxd move --give-up FROM`")
        with _to_leave(source_name, config) as source:
            give_up(source)
            print(f"{source.path} may be used again; what was copied elsewhere is not")
        return EX_OK
    if target_name is None:
        raise UsageError("TO is missing", "`outboxd move FROM TO`")
    if os.path.realpath(source_name) == os.path.realpath(target_name):
        raise UsageError("FROM and TO are the same outbox", "name another for TO")
    with _to_leave(source_name, config) as source, _to_fill(target_name, config) as target:
        has_spool = not is_url(target_name)
        files = source.spool_progress()
        if files and not has_spool:
            print(
                f"outboxd: {len(files):,} spool files were not yet unlinked for certain: before"
                " another agent reads that spool, remove what FROM's log says was taken",
                file=sys.stderr,
            )
        _tell(source, target, move(source, target, has_spool))
    return EX_OK


def is_url(name: str) -> bool:
    """Whether it names a database rather than a file."""
    return name.startswith(("postgresql://", "postgres://"))


def _to_leave(name: str, config: Config) -> AbstractContextManager[Engine]:
    return _database(name, config) if is_url(name) else open_to_leave(name)


def _to_fill(name: str, config: Config) -> AbstractContextManager[Engine]:
    return _database(name, config) if is_url(name) else open_to_fill(name)


@contextmanager
def _database(url: str, config: Config) -> Iterator[Engine]:
    """The entries there of the configuration's account; with the configuration's password,
    where it is the configuration's database.

    Raises:
        OutboxLocked: a gateway has it.
    """
    try:
        from outboxd.outbox.postgresql.engine import PostgresEngine
    except ImportError as error:
        raise ConfigError(
            f"{url} needs psycopg, which cannot be loaded: {error}",
            "install it with: pip install 'outboxd[postgresql]'",
        ) from error
    password = read_database_password(config) if url == config.outbox.url else None
    engine = PostgresEngine(
        url, gateway="move", destination=config.komodor.account, password=password
    )
    try:
        engine.refuse_in_use()
        yield engine
    finally:
        engine.close()


def _tell(source: Engine, target: Engine, moved: Moved) -> None:
    counts = moved.counts
    if moved.was_done:
        print(f"{source.path} was moved to {target.path} before: nothing to do")
        return
    total = counts.pending + counts.delivered + counts.dead
    print(
        f"moved {total:,} entries ({counts.pending:,} pending, {counts.held:,} of them held;"
        f" {counts.delivered:,} delivered; {counts.dead:,} dead) and {moved.identities:,} dedup"
        f" keys to {target.path}, and compared each"
    )
    if moved.doubtful:
        print(f"{moved.doubtful:,} were in flight: they are sent as possible duplicates")
    print(f"{source.path} is kept as it is, and no agent opens it any more")
