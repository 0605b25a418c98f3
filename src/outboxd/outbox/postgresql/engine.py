"""The outbox in a PostgreSQL database that other gateways use as well.

Synchronous and single-threaded: see `outbox.engine.Engine` for what each verb does.
Every gateway accepts; only the holder of the lease settles and records what is in
flight, and the row of the lease is the fence: a turn of a former holder changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg

from outboxd.clock import Clock, WindowClock
from outboxd.errors import OutboxdError
from outboxd.outbox.engine import SearchLimits
from outboxd.outbox.identities import Now, Windows
from outboxd.outbox.mentions import Text, Texts
from outboxd.outbox.model import (
    UNBOUNDED,
    ChangeStep,
    Counts,
    Damage,
    DestinationHold,
    Entry,
    EntryChange,
    EntryFilter,
    Expired,
    Fetched,
    Identity,
    Incoming,
    IndexRow,
    ListPlace,
    ListStep,
    MoveNote,
    Outage,
    Place,
    PruneStep,
    Receipt,
    Settlement,
    Sizes,
    SpoolMark,
    Unsettled,
    UnsettledSums,
)
from outboxd.outbox.postgresql import accepting, carrying, changes, claiming, listing, query, search
from outboxd.outbox.postgresql.connection import migrate, named, opening
from outboxd.outbox.postgresql.cursor import Cursor
from outboxd.outbox.postgresql.lease import Lease
from outboxd.outbox.postgresql.lease_row import LeaseRow, LookAround
from outboxd.outbox.postgresql.link import Link
from outboxd.outbox.postgresql.rows import shown
from outboxd.outbox.postgresql.schema import DESTINATION
from outboxd.outbox.postgresql.tallies import CountChanges, Tallies
from outboxd.status import OtherAccount

UNCOUNTED_LOOK_S = 5.0


class PostgresEngine:
    """One gateway's connection to the outbox. Not for several threads at once."""

    reads_apart = True
    # A look costs a round trip: many at once. But a listing, and the look at the lease,
    # wait for it.
    search_limits = SearchLimits(rows_max=8192, look_s=0.1)

    def __init__(
        self,
        url: str,
        clock: Clock | None = None,
        key_window_s: float = 7 * 86400,
        repeat_window_s: float = 0,
        *,
        gateway: str = "gateway",
        destination: str = DESTINATION,
        durability: str = "local",
        lease_s: float = 15.0,
        password: str | None = None,
        beside: PostgresEngine | None = None,
        claims: bool = False,
    ) -> None:
        """Connect, check what the server promises, migrate. All verbs are about the one
        `destination`: an account, by the name that its gateways' configurations give it.

        `gateway`: the host, and behind a space what tells this connection from all
        others there.

        Another connection of the same gateway, `beside` its first one, shares its
        counts and finds the rest done.

        Raises:
            OutboxUnusable, OutboxUnreachable
        """
        self.path = named(url)
        self.clock = clock or Clock()
        self._url, self._password = url, password
        self.gateway, self.destination = gateway, destination
        self._durability = durability
        self.stored_bytes = 0
        self.standby_lag_s: float | None = None
        self.others: tuple[OtherAccount, ...] = ()
        self._uncounted_look_s = 0.0
        self._tallies: Tallies = Tallies() if beside is None else beside._tallies
        self._tally = CountChanges()
        self._has_old_keys = False  # where events are accepted, it is looked whether
        self._cursor = Cursor(self.clock)
        self.link = Link(url, password, durability, self.clock, claims, destination)
        self.lease_row = LeaseRow(self.link, self.clock, destination, gateway, lease_s)
        # Once the clock is the server's: that is no step of it.
        self._key_clock = WindowClock(self.clock, round(key_window_s * 1000))
        self.set_windows(key_window_s, repeat_window_s)
        if beside is not None:
            return
        try:
            with self.reading(), opening():
                migrate(self.connection)
                self._look_for_old_keys()
                self._tallies.load(self.connection, self.destination)
        except BaseException:
            self.connection.close()
            raise

    def beside(self, name: str, *, claims: bool = False) -> PostgresEngine:
        """Another connection of this gateway, for other work at the same time.

        Raises:
            OutboxUnreachable
        """
        return PostgresEngine(
            self._url,
            self.clock,
            self._key_window_ms / 1000,
            self._repeat_window_ms / 1000,
            gateway=f"{self.gateway} {name}",
            destination=self.destination,
            durability=self._durability,
            lease_s=self.lease_row.length_s,
            password=self._password,
            beside=self,
            claims=claims,
        )

    @property
    def connection(self) -> psycopg.Connection[tuple[object, ...]]:
        """The one that there is now."""
        return self.link.connection

    # --- running ---

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._connected()
        self._tally = CountChanges()
        self.lease_row.begin()
        try:
            with self.link.transaction():
                yield
                self._tally.write(self.connection, self.destination, self.gateway)
        except BaseException:
            self.lease_row.rolled_back()
            raise
        self.lease_row.committed()
        self._tallies.add(self._tally)

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._connected()
        with self.link.reading():
            yield

    def _connected(self) -> None:
        """Connect anew where the connection is gone. Raises OutboxUnreachable."""
        if self.link.restore():
            with self.link.reading():
                self._tallies.load(self.connection, self.destination)

    def close(self) -> None:
        """Give the lease up, so that another need not wait for its end, and disconnect."""
        self.lease_row.close()
        self.connection.close()

    def set_windows(self, key_window_s: float, repeat_window_s: float) -> None:
        self._key_window_ms = round(key_window_s * 1000)
        self._key_clock.window_ms = self._key_window_ms
        self._repeat_window_ms = round(repeat_window_s * 1000)

    def tidy(self) -> None:
        """Vacuum is the server's."""

    def make_room(self) -> bool:
        return False

    def note_fatal(self, error: OutboxdError) -> None:
        """The database keeps what a next start should know."""

    def sizes(self) -> Sizes:
        return Sizes(self.stored_bytes, 0, UNBOUNDED)

    def measure(self) -> None:
        """Look how much room the tables take, for `sizes`, how far standbys are behind, and
        whose entries are here as well."""
        self.standby_lag_s = query.standby_lag_s(self.connection)
        self.stored_bytes = query.stored_bytes(self.connection)
        self.others = query.other_accounts(self.connection, self.destination)

    # --- the lease ---

    @property
    def lease(self) -> Lease | None:
        """This gateway's; within a transaction as it will be."""
        return self.lease_row.lease

    @property
    def proven(self) -> Lease | None:
        """As the database has it for certain."""
        return self.lease_row.proven

    def take_lease(self) -> bool:
        """Become the deliverer if nobody is, or its lease has ended; whether it is us.
        In a transaction or by itself."""
        self._connected()
        if self.link.is_idle:
            with self.transaction():
                return self.take_lease()
        if not self.lease_row.take():
            return False
        self._cursor.reset()
        return True

    def renew_lease(self, told: str | None = None, outage: Outage | None = None) -> None:
        """Go on delivering. `told`: how the destination stands, for the other gateways;
        `outage`: the one that lasts, for whoever takes over. Raises LeaseLost."""
        self.lease_row.renew(told, outage)

    def give_up_lease(self) -> None:
        """Let another deliver at once."""
        self.lease_row.give_up()

    def set_sending(self, seqs: Collection[int]) -> None:
        self.lease_row.set_sending(seqs)

    def recover_sending(self) -> int:
        return self.lease_row.recover_sending()

    # --- what the gateways share ---

    def look_around(self) -> LookAround:
        """What the gateways share; the counts of all are known from then on, and what
        the server's clock shows.

        Raises:
            OutboxUnusable: the server does not keep the promise any more.
        """
        self.link.check_promises()
        self._tallies.load(self.connection, self.destination)
        self._look_for_uncounted()
        return self.lease_row.look(self._tallies.accepted)

    def _look_for_uncounted(self) -> None:
        """Nothing is sent while nothing seems to wait: that must not rest on counts alone."""
        if self.clock.monotonic_s() < self._uncounted_look_s:
            return
        self._uncounted_look_s = self.clock.monotonic_s() + UNCOUNTED_LOOK_S
        self._tallies.has_pending = False
        if not self._tallies.counts().pending:
            self._tallies.has_pending = query.has_due(self.connection, self.destination)

    def look_from_start(self) -> None:
        """Others have changed entries: some may wait again that were passed. From any thread."""
        self._cursor.reset()

    def destination_hold(self) -> DestinationHold | None:
        return self.lease_row.hold()

    def set_destination_hold(self, hold: DestinationHold | None) -> None:
        self.lease_row.set_hold(hold)

    def tell_release(self) -> None:
        """An operator ends every wait of the destination; the deliverer hears of it."""
        self.lease_row.tell_release()

    # --- changing ---

    def accept(self, items: Sequence[Incoming]) -> list[Receipt]:
        receipts, kept = accepting.accept(
            self.connection,
            self.destination,
            items,
            Windows(self._key_window_ms, self._repeat_window_ms, self._has_old_keys),
            Now(self.clock.wall_ms(), self._key_clock.now_ms()),
        )
        for item in kept:
            self._tally.accept(item.producer)
        return receipts

    def mark_spool(self, mark: SpoolMark) -> None:
        raise AssertionError("a gateway on PostgreSQL has no spool")

    def forget_spool(self, file_keys: Sequence[str]) -> None:
        raise AssertionError("a gateway on PostgreSQL has no spool")

    def settle(self, settlements: Sequence[Settlement]) -> None:
        settlements = self.lease_row.unsettled(settlements)
        self._cursor.may_wait_again(settlements)
        changes.settle(
            self.connection, self.destination, settlements, self.clock.wall_ms(), self._tally
        )

    def change(self, change: EntryChange, id: str) -> Entry:
        entry = changes.change(self.connection, self.destination, change, id, self._tally)
        self.lease_row.tell_change()
        return entry

    def change_dead(
        self, change: EntryChange, where: EntryFilter, place: ListPlace, limit: int
    ) -> ChangeStep:
        step = changes.change_dead(
            self.connection, self.destination, change, where, place, limit, self._tally
        )
        if step.changed:
            self.lease_row.tell_change()
        return step

    def set_aside_damaged(self, seq: int, detail: str) -> None:
        raise AssertionError("what the server's checksums find is the server's to tell")

    def prune(self, after_seq: int, window: int, ended_before: int) -> PruneStep:
        return changes.prune(
            self.connection, self.destination, after_seq, window, ended_before, self._tally
        )

    def prune_dedup(self, limit: int) -> int:
        now = self._key_clock.now_ms()
        count = changes.prune_dedup(self.connection, self.destination, now, limit)
        self._look_for_old_keys()
        return count

    def _look_for_old_keys(self) -> None:
        self._has_old_keys = accepting.has_old_keys(self.connection, self.destination)

    # --- reading ---

    def counts(self) -> Counts:
        return self._tallies.counts()

    def waiting(self) -> Mapping[str, int]:
        return self._tallies.waiting()

    def damage(self) -> Damage:
        return Damage(0, 0)

    def spool_progress(self) -> dict[str, int]:
        return {}

    def fetch(
        self,
        count: int,
        taken: Collection[int],
        order: str,
        fresh_share: float,
        due_horizon_s: float,
    ) -> Fetched:
        now = self.clock.wall_ms()
        horizon = now + round(due_horizon_s * 1000)
        look = claiming.Look(self.connection, self.destination, self._cursor, taken, now, horizon)
        seqs = look.fifo(count) if order == "fifo" else look.mixed(count, fresh_share)
        return look.fetched(seqs, count)

    def expired(self, limit: int, clock_steps: Sequence[tuple[int, int]] = ()) -> Expired:
        return query.expired(
            self.connection, self.destination, self.clock.wall_ms(), limit, clock_steps
        )

    def get(self, id: str) -> Entry:
        return query.get(self.connection, self.destination, id)

    def state_of_key(self, producer: str, dedup_key: str) -> str | None:
        return query.state_of_key(
            self.connection, self.destination, producer, dedup_key, self._key_clock.now_ms()
        )

    def list_step(
        self, where: EntryFilter, place: ListPlace, limit: int, bytes_max: int, is_begun: bool
    ) -> ListStep:
        found = listing.step(
            self.connection, self.destination, where, place, limit, bytes_max, is_begun
        )
        return found._replace(entries=shown(self.connection, self.destination, found.entries))

    def entries_of(self, where: EntryFilter, seqs: Sequence[int]) -> list[Entry]:
        return listing.entries_of(self.connection, self.destination, where, seqs)

    def oldest_pending_at(self, *, with_held: bool = True) -> int | None:
        return query.oldest_pending_at(self.connection, self.destination, with_held)

    def last_dead_at(self) -> int | None:
        return query.last_dead_at(self.connection, self.destination)

    def own_reports_pending(self) -> int:
        return query.own_reports_pending(self.connection, self.destination)

    # --- for an index kept in memory ---

    def seq_range(self) -> range:
        return listing.seq_range(self.connection, self.destination)

    def index_rows(self, seqs: range) -> list[IndexRow]:
        return listing.index_rows(self.connection, self.destination, seqs)

    def unsettled_sums(self, kind: Unsettled, block_rows: int, after: Place) -> UnsettledSums:
        return listing.unsettled_sums(self.connection, self.destination, kind, block_rows, after)

    def rows_by_block(self, block_rows: int, seqs: range) -> dict[int, int]:
        return listing.rows_by_block(self.connection, self.destination, block_rows, seqs)

    def texts(self, seqs: range, wanted: Texts) -> list[tuple[int, Text]] | None:
        return search.texts(self.connection, self.destination, seqs, wanted)

    # --- for a move ---

    def refuse_in_use(self) -> None:
        """Raises OutboxLocked where a gateway has this database."""
        with self.reading():
            carrying.refuse_in_use(self.connection, self.destination)

    def move_note(self) -> MoveNote | None:
        return carrying.move_note(self.connection, self.destination)

    def set_move_note(self, note: MoveNote | None) -> None:
        carrying.set_move_note(self.connection, self.destination, note)

    def entries_after(self, seq: int, limit: int, bytes_max: int) -> list[Entry]:
        return carrying.entries_after(self.connection, self.destination, seq, limit, bytes_max)

    def identities_after(self, key: str, limit: int) -> list[Identity]:
        return carrying.identities_after(self.connection, self.destination, key, limit)

    def put_in(self, entries: Sequence[Entry], identities: Sequence[Identity]) -> None:
        carrying.put_in(self.connection, self.destination, entries, identities)
        for entry in entries:
            self._tally.count(entry.producer, entry.state, entry.held, +1)
