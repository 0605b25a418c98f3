"""How an outbox on PostgreSQL is opened: promises, migrations, and a connection each for
what takes events, what delivers them and what only reads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

from outboxd.clock import Clock
from outboxd.errors import OutboxdError, Unavailable
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.outbox.upkeep import UpkeepJob

MEASURE_S = 15.0


class OpenedPostgres:
    """A gateway's three connections."""

    has_rescues = False

    def __init__(self, engine: PostgresEngine) -> None:
        """Raises OutboxUnreachable."""
        self.engine = engine
        try:
            self.delivering = engine.beside("deliverer", claims=True)
            self.reading = engine.beside("reader")
        except BaseException:
            self.close()
            raise

    async def start(self) -> Outbox:
        """The outbox, with a writer for each connection."""
        return await Outbox.start(self.engine, delivering=self.delivering, reading=self.reading)

    def jobs(self, outbox: Outbox) -> list[UpkeepJob]:
        """To see how large it is; vacuum is the server's own."""

        async def measure() -> None:
            await outbox.read(lambda _: self.reading.measure())
            self.engine.stored_bytes = self.reading.stored_bytes

        return [UpkeepJob("database", MEASURE_S, measure)]

    async def copied(self, outbox: Outbox) -> tuple[int, AsyncIterator[bytes]]:
        """There is no file to copy. Raises Unavailable."""
        raise Unavailable(
            f"the outbox is on PostgreSQL ({self.engine.path}), and no file of this host's",
            "copy it with pg_dump, or as that server is copied",
        )

    async def salvage(self, outbox: Outbox) -> tuple[int, int]:
        """Nothing: what damages a server's disk is the server's to mend."""
        return 0, 0

    def release(self) -> None:
        """The lease was given up when the outbox closed; nothing else is held."""

    def close(self) -> None:
        """Disconnect."""
        for name in ("delivering", "reading", "engine"):
            engine: PostgresEngine | None = getattr(self, name, None)
            if engine is not None:
                with suppress(OutboxdError):
                    engine.close()


def open_postgres(
    url: str,
    clock: Clock,
    key_window_s: float,
    repeat_window_s: float,
    *,
    gateway: str,
    durability: str,
    lease_s: float,
    password: str | None,
) -> OpenedPostgres:
    """Connect, check and migrate, for the agent.

    Raises:
        OutboxUnusable: the server cannot keep what is promised; exit code 78.
        OutboxUnreachable
    """
    engine = PostgresEngine(
        url,
        clock,
        key_window_s,
        repeat_window_s,
        gateway=gateway,
        durability=durability,
        lease_s=lease_s,
        password=password,
    )
    return OpenedPostgres(engine)
