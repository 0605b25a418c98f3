"""Opens the outbox that the configuration names, whatever engine keeps it.

Here alone engines are told apart. It tells what the opening found, and starts nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from outboxd.clock import Clock
from outboxd.config.database_password import read_database_password
from outboxd.config.sections import Config
from outboxd.errors import ConfigError, OutboxLocked
from outboxd.observe import logs
from outboxd.outbox.engine import Engine
from outboxd.outbox.opened import Opened
from outboxd.outbox.sqlite.lock import OutboxLock
from outboxd.outbox.sqlite.opening import make_directory, open_offline, open_outbox
from outboxd.outbox.sqlite.rescue.recovery import Recovery

if TYPE_CHECKING:
    from outboxd.outbox.postgresql.opening import OpenedPostgres


def open_configured(config: Config, clock: Clock) -> Opened:
    """The outbox, open.

    Raises:
        OutboxLocked: another agent has it; exit code 75.
        OutboxUnusable, ConfigError: exit code 78.
        OutboxUnreachable: its database cannot be reached; exit code 75.
    """
    if config.outbox.url:
        return SharedOutbox(config, clock)
    windows = config.dedup.key_window_s, config.dedup.repeat_window_s
    opened = open_outbox(config.outbox.path, clock, *windows)
    if opened.recovery is not None:
        _tell_recovery(opened.recovery)
    if opened.put_back:
        logs.get_logger("agent").error(
            "outbox.put_back", found=opened.put_back, hint="see 'Copies' in the README"
        )
    return opened


def connect_configured(config: Config, clock: Clock) -> OpenedPostgres:
    """The shared outbox, open.

    Raises:
        ConfigError: the extra is missing, or the password cannot be read.
        OutboxUnusable, OutboxUnreachable
    """
    loaded_postgresql()
    from outboxd.outbox.postgresql.opening import open_postgres

    password = read_database_password(config)
    logs.keep_secret([password])
    return open_postgres(
        config.outbox.url,
        clock,
        config.dedup.key_window_s,
        config.dedup.repeat_window_s,
        gateway=f"{socket.gethostname()} {config.intake.socket}",
        destination=config.komodor.account,
        durability=config.outbox.durability,
        lease_s=config.delivery.lease_s,
        password=password,
        on_wait=lambda: logs.get_logger("gateway").warning(
            "database.waited_for",
            hint="it answers; another gateway migrates it, or somebody has locked its tables",
        ),
    )


@contextmanager
def open_offline_configured(config: Config) -> Iterator[Engine]:
    """The outbox for one command, while no agent runs on this host.

    Raises what `open_offline` does, and of a shared one what `connect_configured` does.
    """
    if not config.outbox.url:
        with open_offline(config.outbox.path) as engine:
            yield engine
        return
    loaded_postgresql()
    from outboxd.outbox.postgresql.engine import PostgresEngine

    shared = PostgresEngine(
        config.outbox.url,
        gateway=f"{socket.gethostname()} command",
        destination=config.komodor.account,
        durability=config.outbox.durability,
        password=read_database_password(config),
    )
    try:
        yield shared
    finally:
        shared.close()


def loaded_postgresql() -> None:
    """Raises ConfigError where the extra is missing."""
    try:
        import outboxd.outbox.postgresql.engine  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"[outbox] url needs psycopg, which cannot be loaded: {error}",
            "install it with: pip install 'outboxd[postgresql]'",
        ) from error


class SharedOutbox:
    """An outbox that gateways share, and the lock that keeps a second agent from this
    one's socket: the outbox itself is open to both."""

    has_rescues = False

    def __init__(self, config: Config, clock: Clock) -> None:
        """Raises as `open_configured` does."""
        path = config.intake.socket
        make_directory(os.path.dirname(path))
        try:
            self._lock = OutboxLock(path)
        except OutboxLocked as error:
            raise OutboxLocked(
                f"the socket {path} is in use by process {error.pid or 'unknown'}",
                "one agent a socket: stop that one, or set another [intake] socket",
                pid=error.pid,
            ) from None
        try:
            self.connections = connect_configured(config, clock)
        except BaseException:
            self._lock.release()
            raise
        self.start = self.connections.start
        self.jobs = self.connections.jobs
        self.copied = self.connections.copied
        self.salvage = self.connections.salvage
        self.release = self._lock.release

    def close(self) -> None:
        """Disconnect, and let the socket go."""
        self.connections.close()
        self._lock.release()


def _tell_recovery(recovery: Recovery) -> None:
    """What was damaged, where it is now, and what it has cost: never silent."""
    log = logs.get_logger("outbox")
    tell = log.error if recovery.lost else log.warning
    tell(
        "damage.found",
        found=recovery.found,
        set_aside=list(recovery.set_aside),
        salvaged=recovery.salvaged,
        lost=recovery.lost,
        finished=recovery.is_finished,
        took_s=round(recovery.duration_s, 2),
        hint="the damaged files are kept under these names; check the disk",
    )
