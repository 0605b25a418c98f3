"""What `check` looks at in the outbox's database, where gateways share one."""

from __future__ import annotations

from collections.abc import Iterator

from outboxd.agent.opening import loaded_postgresql
from outboxd.config.database_password import read_database_password
from outboxd.config.sections import Config
from outboxd.errors import EX_CONFIG, OutboxdError
from outboxd.findings import Finding, bad


def database(config: Config) -> Iterator[Finding]:
    """Rights, version, durability, standby, pooler and certificate; nothing without a url."""
    if not config.outbox.url:
        return
    try:
        loaded_postgresql()
        password = read_database_password(config)
    except OutboxdError as error:
        yield bad("database", error.message, error.hint or "mend it", EX_CONFIG)
        return
    from outboxd.outbox.postgresql.examination import examine

    yield from examine(
        config.outbox.url, password, config.outbox.durability, config.komodor.account
    )
