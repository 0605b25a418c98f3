"""How an outbox on PostgreSQL is opened: promises, migrations, and a connection each for
what takes events, what delivers them and what only reads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from outboxd.clock import Clock
from outboxd.errors import OutboxdError, Unavailable
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.outbox.postgresql.patience import HANGS_S, Leaving, cutting, in_time
from outboxd.outbox.upkeep import UpkeepJob

MEASURE_S = 15.0


class OpenedPostgres:
    """A gateway's three connections."""

    has_rescues = False

    def __init__(self, engine: PostgresEngine) -> None:
        """Raises OutboxUnreachable."""
        self.engine = engine
        self._leaving = Leaving()
        try:
            self.delivering = engine.beside("deliverer", claims=True)
            self.reading = engine.beside("reader")
        except BaseException:
            self.close()
            raise

    async def start(self) -> Outbox:
        """The outbox, with a writer for each connection. Raises OutboxUnreachable."""
        engines = (self.engine, self.delivering, self.reading)
        with cutting([each.link for each in engines]):
            return await Outbox.start(self.engine, delivering=self.delivering, reading=self.reading)

    def leave_hung(self, outbox: Outbox) -> None:
        """A look has not ended within `HANGS_S`: go to the server that takes this one's
        place, if there is one, with all connections: one that was idle meanwhile is to
        the same server, and would wait there with nobody to notice once looks are
        answered elsewhere. Where reads are answered a commit waits for its standby, and
        is left alone: one that is left goes on waiting in the server, and each new
        connection's would be one more."""
        if self.reading in outbox.stuck_engines(0.8 * HANGS_S):
            engines = (self.reading, self.delivering, self.engine)
            self._leaving.look([each.link for each in engines])

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
    destination: str,
    durability: str,
    lease_s: float,
    password: str | None,
    on_wait: Callable[[], None],
) -> OpenedPostgres:
    """Connect, check and migrate, for the agent. `on_wait`: it takes long, and the server
    lives (another gateway migrates, perhaps).

    Raises:
        OutboxUnusable: the server cannot keep what is promised; exit code 78.
        OutboxUnreachable
    """

    def connect() -> OpenedPostgres:
        return OpenedPostgres(
            PostgresEngine(
                url,
                clock,
                key_window_s,
                repeat_window_s,
                gateway=gateway,
                destination=destination,
                durability=durability,
                lease_s=lease_s,
                password=password,
            )
        )

    return in_time(connect, url, password, on_wait)
