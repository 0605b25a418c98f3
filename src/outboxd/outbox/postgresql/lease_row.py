"""The deliverer's row of the database: who has the lease, what is in flight, and what
the gateways tell each other.

Each turn of the holder's is one statement that renews, and the fence: it changes nothing
for a former holder. What a lease allows is decided in `lease`. It must never believe a
lease that the database has not confirmed.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

import msgspec
import psycopg

from outboxd.clock import Clock, CorrectedClock
from outboxd.errors import LeaseLost, OutboxdError
from outboxd.outbox.model import DestinationHold, Outage, Settlement
from outboxd.outbox.postgresql.lease import Lease
from outboxd.outbox.postgresql.link import NOW_MS, Link

T = TypeVar("T")

# A lease that would run for so much longer than one lasts was written by another clock: a
# server was promoted whose clock is behind.
_CLOCKS_DIFFER_S = 60.0


class _Doubt(NamedTuple):
    """A commit whose end was not seen, by what tells whether it was made."""

    lease: Lease  # as it is if it was
    settlements: Sequence[Settlement]


class LookAround(NamedTuple):
    """What the gateways share, at one moment."""

    hold: DestinationHold | None  # the operator's
    changes: int  # how often an operator has changed entries, at any gateway
    releases: int  # how often one has ended every wait, where nothing is delivered
    accepted: int  # how many events were ever accepted
    deliverer: str | None  # the gateway that has the lease; None: nobody
    lease_left_s: float | None  # of it, by the database's clock; below 0: it has ended
    told: str | None  # how the destination stands to it


class LeaseRow:
    """The row as one connection of a gateway's sees it."""

    def __init__(
        self, link: Link, clock: Clock, destination: str, gateway: str, lease_s: float
    ) -> None:
        self._link, self._clock = link, clock
        self._destination, self._gateway = destination, gateway
        self.length_s = lease_s
        self.lease: Lease | None = None  # within a transaction as it will be
        # As the database has it for certain: a renewal whose commit hangs is none yet.
        self.proven: Lease | None = None
        self.outage: Outage | None = None  # in which the one before was when this one took it
        self._before: Lease | None = None  # as it was before this transaction
        self._settling: list[Settlement] = []  # in this transaction
        self._doubt: _Doubt | None = None
        self._settled: set[Settlement] = set()  # for certain, though whoever asked heard otherwise
        self._left_out: set[Settlement] = set()  # in this transaction, because they are settled

    # --- around a transaction ---

    def begin(self) -> None:
        """A transaction begins."""
        self._before, self._settling, self._left_out = self.lease, [], set()

    def committed(self) -> None:
        """It is there for certain."""
        self.proven = self.lease
        self._settled -= self._left_out

    def rolled_back(self) -> None:
        """It is not there, or nobody knows (the link was `in_commit`)."""
        before = self._before
        if self._link.in_commit and self._settling and before is not None and self.lease != before:
            assert self.lease is not None
            self._doubt = _Doubt(self.lease, self._settling)
        if self.lease is not None:
            # After a commit of which nobody knows, too: the database says with the next
            # renewal which turn it is.
            self.lease = before
        else:
            self.proven = None

    # --- the holder's ---

    def take(self) -> bool:
        """Become the deliverer if nobody is, or its lease has ended; whether it is us."""
        asked_at_s = self._clock.since_boot_s()
        holder = str(uuid.uuid4())
        row = self._link.connection.execute(
            "INSERT INTO deliverers AS d"
            " (destination, holder, gateway, turn, lease_ends_at, sending)"
            " VALUES (%(d)s, %(h)s, %(g)s, 1,"
            " clock_timestamp() + %(l)s * interval '1 second', '{}')"
            " ON CONFLICT (destination) DO UPDATE SET holder = %(h)s, gateway = %(g)s,"
            " turn = d.turn + 1,"
            " lease_ends_at = clock_timestamp() + %(l)s * interval '1 second'"
            " WHERE d.holder IS NULL OR d.lease_ends_at < clock_timestamp()"
            " OR d.lease_ends_at > clock_timestamp() + %(b)s * interval '1 second'"
            " RETURNING turn, outage",
            {
                "d": self._destination,
                "h": holder,
                "g": self._gateway.partition(" ")[0],
                "l": self.length_s,
                "b": 2 * self.length_s + _CLOCKS_DIFFER_S,
            },
        ).fetchone()
        if row is None:
            return False
        turn, outage = row
        self.outage = _decoded(outage, Outage)
        self.lease = Lease(holder, turn, asked_at_s, self.length_s)
        self._doubt = None
        return True

    def renew(self, told: str | None, outage: Outage | None) -> None:
        """Go on delivering; what is in flight stays as it is. Raises LeaseLost."""
        self._renew("told = %s, outage = %s,", (told, _encoded(outage)))

    def set_sending(self, seqs: Collection[int]) -> None:
        """Exactly these are in flight. Raises LeaseLost."""
        self._renew("sending = %s,", (list(seqs),))

    def give_up(self) -> None:
        """Let another deliver at once."""
        lease, self.lease = self.lease, None
        if lease is not None:
            self._link.connection.execute(
                "UPDATE deliverers SET holder = NULL WHERE destination = %s AND holder = %s",
                (self._destination, lease.holder),
            )

    def close(self) -> None:
        """Give it up if it can be."""
        if self.lease is not None and not self._link.connection.closed:
            with suppress(OutboxdError, psycopg.Error):
                self.give_up()

    def _renew(self, more: str, values: tuple[object, ...]) -> None:
        """One statement that renews and is the fence: it changes nothing for a former holder."""
        self._end_doubt()  # the turn tells of it, until it grows
        lease = self.lease
        asked_at_s = self._clock.since_boot_s()
        row = None
        if lease is not None:
            row = self._link.connection.execute(
                f"UPDATE deliverers SET {more} turn = turn + 1,"
                " lease_ends_at = clock_timestamp() + %s * interval '1 second'"
                " WHERE destination = %s AND holder = %s RETURNING turn",
                (*values, self.length_s, self._destination, lease.holder),
            ).fetchone()
        if lease is None or row is None:
            self.lease = None
            raise LeaseLost(
                "another gateway delivers now", "nothing to do: this one goes on taking events"
            )
        (turn,) = row
        if turn <= lease.turn:
            self.lease = None
            raise LeaseLost(
                "the database is one that lacks what this gateway had written there",
                "a standby was promoted that was behind; the lease is taken anew",
            )
        self.lease = lease.renewed(turn, asked_at_s)

    def recover_sending(self) -> int:
        """What a holder before had in flight may have arrived: whoever has the lease says so,
        and whoever finds that nobody has it (a move, say)."""
        found = self._link.connection.execute(
            "WITH d AS (UPDATE deliverers SET sending = '{}' WHERE destination = %(d)s"
            " AND (holder = %(h)s OR holder IS NULL OR lease_ends_at < clock_timestamp())"
            " RETURNING (SELECT sending FROM deliverers WHERE destination = %(d)s) AS sending)"
            " UPDATE states SET possible_duplicate = true WHERE destination = %(d)s"
            " AND state = 'pending'"
            " AND seq = ANY((SELECT sending FROM d)::bigint[])",
            {"d": self._destination, "h": None if self.lease is None else self.lease.holder},
        )
        return found.rowcount

    def unsettled(self, settlements: Sequence[Settlement]) -> Sequence[Settlement]:
        """Those that are to be written: the connection may have ended while they were
        committed, and no attempt may count twice."""
        self._end_doubt()
        self._left_out |= self._settled.intersection(settlements)
        settlements = [each for each in settlements if each not in self._left_out]
        self._settling += settlements
        return settlements

    def _end_doubt(self) -> None:
        """The turn tells whether a commit was made whose end was not seen. Waits for that
        commit, should it go on."""
        if self._doubt is None:
            return
        row = self._link.connection.execute(
            "SELECT turn FROM deliverers WHERE destination = %s AND holder = %s FOR UPDATE",
            (self._destination, self._doubt.lease.holder),
        ).fetchone()
        if row is not None and row[0] >= self._doubt.lease.turn:
            self._settled.update(self._doubt.settlements)
        self._doubt = None

    # --- everybody's ---

    def look(self, accepted: int) -> LookAround:
        """What the gateways share, and what the server's clock shows from then on."""
        row = self._link.connection.execute(
            f"SELECT {NOW_MS}, hold, changes, releases, told,"
            " CASE WHEN holder IS NOT NULL THEN gateway END, CASE WHEN holder IS NOT NULL THEN"
            " extract(epoch FROM lease_ends_at - clock_timestamp())::float8 END"
            " FROM (SELECT 1) one LEFT JOIN deliverers ON destination = %s",
            (self._destination,),
        ).fetchone()
        assert row is not None
        now, hold, changes, releases, told, gateway, left_s = row
        if isinstance(self._clock, CorrectedClock):
            self._clock.correct(now)
        if left_s is not None and left_s > 2 * self.length_s + _CLOCKS_DIFFER_S:
            left_s = 0.0
        hold = _decoded(hold, DestinationHold)
        return LookAround(hold, changes or 0, releases or 0, accepted, gateway, left_s, told)

    def hold(self) -> DestinationHold | None:
        """The operator's, of the destination."""
        row = self._link.connection.execute(
            "SELECT hold FROM deliverers WHERE destination = %s", (self._destination,)
        ).fetchone()
        return None if row is None else _decoded(row[0], DestinationHold)

    def set_hold(self, hold: DestinationHold | None) -> None:
        """Set or (None) lift it."""
        self._set("hold", "%(value)s", "excluded.hold", _encoded(hold))

    def tell_release(self) -> None:
        """An operator ends every wait of the destination; the deliverer hears of it."""
        self._set("releases", "1", "deliverers.releases + 1")

    def tell_change(self) -> None:
        """An operator has changed entries: the deliverer may have read ahead what is held now."""
        self._set("changes", "1", "deliverers.changes + 1")

    def _set(self, column: str, first: str, then: str, value: str | None = None) -> None:
        self._link.connection.execute(
            f"INSERT INTO deliverers (destination, turn, sending, {column})"
            f" VALUES (%(destination)s, 0, '{{}}', {first})"
            f" ON CONFLICT (destination) DO UPDATE SET {column} = {then}",
            {"destination": self._destination, "value": value},
        )


def _encoded(value: DestinationHold | Outage | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _decoded(text: str | None, kind: type[T]) -> T | None:
    return None if text is None else msgspec.json.decode(text, type=kind)
