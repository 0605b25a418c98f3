"""The outbox of a history on a real PostgreSQL server, in virtual time.

The agent's own engine, its three connections and its election; the writers are on the
loop. The server's clock is the virtual one: a function of its name stands before the
server's own, so that leases run out when the history says so. A process that was killed
leaves its lease behind, as it does outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from simulation.memory import Row
from simulation.virtual_loop import VirtualClock

from outboxd.agent.election import Election
from outboxd.outbox.model import Counts
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.postgresql.engine import PostgresEngine

LEASE_S = 15.0
# In place of 0.2 s: histories are hours long.
LOOK_S = 3.0

_TABLES = "entries, states, dedup, tallies, deliverers"
_CLOCK = """
CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
    AS $$ SELECT to_timestamp(current_setting('simulation.now')::float8) $$;
CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql STABLE
    AS $$ SELECT clock_timestamp() $$
"""


def with_virtual_clock(conninfo: str, schema: str) -> str:
    """A schema for histories, one after the other; how to reach it."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        connection.execute(f"SET search_path = {schema}, pg_catalog")
        connection.execute(_CLOCK)
    return make_conninfo(conninfo, options=f"-c search_path={schema},pg_catalog")


class VirtualEngine(PostgresEngine):
    """Tells its session what time it is."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._tell_time()
        with super().transaction():
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._tell_time()
        with super().reading():
            yield

    def _tell_time(self) -> None:
        self._connected()
        self.connection.execute(
            "SELECT set_config('simulation.now', %s, false)", (str(self.clock.since_boot_s()),)
        )


class SharedStore:
    """One gateway's, and what the checks see."""

    def __init__(
        self, url: str, clock: VirtualClock, repeat_window_s: float, gateway: str = "a"
    ) -> None:
        self._url, self._clock, self._repeat_window_s = url, clock, repeat_window_s
        self._gateway = gateway
        self._engines: list[VirtualEngine] = []
        self._open()
        self._checking = psycopg.connect(url, autocommit=True)
        self._execute = self._checking.execute

    def clear(self) -> SharedStore:
        """Nothing is left of what was before."""
        self._execute(f"TRUNCATE {_TABLES}")
        self.reopen()
        return self

    def _open(self) -> None:
        windows = (7 * 86400, self._repeat_window_s)

        def engine(name: str, **more: Any) -> VirtualEngine:
            gateway = f"{self._gateway} {name}"
            return VirtualEngine(
                self._url, self._clock, *windows, gateway=gateway, lease_s=LEASE_S, **more
            )

        self.engine = engine("intake")
        self.delivering = engine("deliverer", beside=self.engine, claims=True)
        self.reading = engine("reader", beside=self.engine)
        self._engines = [self.engine, self.delivering, self.reading]

    def reopen(self) -> None:
        self._disconnect()
        self._open()

    def _disconnect(self) -> None:
        """As when the process dies: nothing is given up."""
        for engine in self._engines:
            engine.connection.close()

    def close(self) -> None:
        self._disconnect()
        self._checking.close()

    def beside(self) -> dict[str, Any]:
        return {"delivering": self.delivering, "reading": self.reading}

    def election(self, outbox: Outbox) -> Election:
        return Election(outbox, self, self._clock)

    def leave_hung(self, outbox: Outbox) -> None:
        """It is slow at most: there is no other server."""

    def row(self, id: str) -> Row | None:
        found = self._all(
            "SELECT seq, state, received_at, dead_reason, spent, s.expires_at, attempts::text"
            " FROM entries e JOIN states s USING (seq) WHERE id = %s",
            id,
        )
        return Row(*found[0]) if found else None

    def id_of(self, seq: int) -> str | None:
        found = self._all("SELECT id::text FROM entries WHERE seq = %s", seq)
        return found[0][0] if found else None

    def sending(self) -> list[int]:
        return [seq for (seqs,) in self._all("SELECT sending FROM deliverers") for seq in seqs]

    def waiting_before(self, seq: int) -> list[str]:
        return self._ids("state = 'pending' AND NOT held AND seq < %s", seq)

    def due(self, now: int) -> int:
        return len(self._ids("state = 'pending' AND NOT held AND due_at <= %s", now))

    def held(self) -> list[str]:
        return self._ids("held")

    def pending(self) -> list[tuple[str, str]]:
        return self._all(
            "SELECT id::text, body::json->>'summary' FROM entries JOIN states USING (seq)"
            " WHERE state = 'pending'"
        )

    def ended(self) -> list[tuple[str, str | None]]:
        return self._all("SELECT state, dead_reason FROM states ORDER BY seq")

    def counted(self) -> Counts:
        ((*counts,),) = self._all(
            "SELECT count(*) FILTER (WHERE state = 'pending'),"
            " count(*) FILTER (WHERE state = 'delivered'),"
            " count(*) FILTER (WHERE state = 'dead'), count(*) FILTER (WHERE held) FROM states"
        )
        return Counts(*counts)

    def _ids(self, where: str, *values: object) -> list[str]:
        rows = self._all(
            f"SELECT id::text FROM entries JOIN states USING (seq) WHERE {where} ORDER BY seq",
            *values,
        )
        return [id for (id,) in rows]

    def _all(self, sql: str, *values: object) -> Sequence[Any]:
        return self._execute(sql, values or None).fetchall()
