"""The outbox in a file of SQLite's, on the one connection that there may be.

Synchronous and single-threaded: see `outbox.engine.Engine` for what each verb
does. It must never be opened twice on one file: take the lock first
(`open_outbox`, `open_offline`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec
import uuid_utils

from outboxd.clock import Clock
from outboxd.errors import DiskShort, OutboxDamaged, OutboxdError, SyncFailed
from outboxd.outbox.mentions import Text
from outboxd.outbox.model import (
    ChangeStep,
    Counts,
    Damage,
    DestinationHold,
    Entry,
    EntryChange,
    EntryFilter,
    Expired,
    Fetched,
    Incoming,
    IndexRow,
    ListPlace,
    ListStep,
    Place,
    PruneStep,
    Receipt,
    Settlement,
    Sizes,
    SpoolMark,
    State,
    Unsettled,
)
from outboxd.outbox.sqlite import accepting, changes, listing, query
from outboxd.outbox.sqlite.ballast import Ballast, free_bytes
from outboxd.outbox.sqlite.connection import connect, migrate, suspect, translate, unusable
from outboxd.outbox.sqlite.rows import Tally, read_states, write_states

# A checkpoint's work is bounded by the log's size; a small log also bounds
# what damage to it can cost.
WAL_BYTES_MAX = 8 * 1024 * 1024


class SqliteEngine:
    """One open outbox in a file. Not for several threads at once."""

    def __init__(
        self,
        path: str,
        clock: Clock | None = None,
        key_window_s: float = 7 * 86400,
        repeat_window_s: float = 0,
    ) -> None:
        """Open, creating and migrating as needed.

        Raises:
            OutboxUnusable, OutboxLocked, OutboxDamaged, DiskShort, SyncFailed
        """
        self.path = path
        self.clock = clock or Clock()
        self.ballast = Ballast(path)
        self.set_windows(key_window_s, repeat_window_s)
        try:
            self.connection = connect(path)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise translate(error, path) from error
        except OSError as error:
            raise unusable(error, path) from error
        try:
            migrate(self.connection, path)
            self._load()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self.connection.close()
            raise translate(error, path) from error
        except BaseException:
            self.connection.close()
            raise

    def _load(self) -> None:
        """What is kept in memory, as the tables have it."""
        self._tally = Tally()
        self._counts = query.counts(self.connection)
        self._next_seq = query.last_seq(self.connection) + 1
        self._accepted_in_transaction = 0

    # --- running ---

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            self.begin()
            yield
            self.commit()
        except sqlite3.Error as error:
            self.rollback()
            raise translate(error, self.path) from error
        except BaseException:
            self.rollback()
            raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    def begin(self) -> None:
        """Open a transaction that writes."""
        self._tally = Tally()
        self._accepted_in_transaction = 0
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Sync; only now anything is promised."""
        self.connection.execute("COMMIT")
        self._counts = self._counts_with(self._tally)
        self._next_seq += self._accepted_in_transaction

    def rollback(self) -> None:
        """Forget the transaction, whatever became of it."""
        with suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    def _counts_with(self, tally: Tally) -> Counts:
        return Counts(
            self._counts.pending + tally.pending,
            self._counts.delivered + tally.delivered,
            self._counts.dead + tally.dead,
            self._counts.held + tally.held,
        )

    def close(self) -> None:
        """Empty the log into the file if there is room, and close.

        Raises:
            SyncFailed: the file is not closed, because that would sync it again.
        """
        try:
            self.checkpoint()
        except SyncFailed:
            raise
        except OutboxdError:
            pass  # the log stays, whole
        self.connection.close()

    def set_windows(self, key_window_s: float, repeat_window_s: float) -> None:
        self._windows = accepting.Windows(round(key_window_s * 1000), round(repeat_window_s * 1000))

    def tidy(self) -> None:
        """Keep the log small: explicitly, so that a failure is seen."""
        if self.log_bytes() >= WAL_BYTES_MAX:
            self.empty_log()

    def empty_log(self) -> None:
        """Bring the log into the file. A full disk is waited out."""
        try:
            self.checkpoint()
        except DiskShort:
            if self.make_room():
                self.empty_log()

    def make_room(self) -> bool:
        return self.ballast.release()

    def note_fatal(self, error: OutboxdError) -> None:
        if isinstance(error, OutboxDamaged):
            suspect(self.path, error.found)

    # --- changing ---

    def accept(self, items: Sequence[Incoming]) -> list[Receipt]:
        receipts = accepting.accept(
            self.connection,
            items,
            uuid_utils.uuid7,
            self._next_seq + self._accepted_in_transaction,
            self._windows,
            self.clock.wall_ms(),
            self._tally,
        )
        self._accepted_in_transaction += sum(r.status == "accepted" for r in receipts)
        return receipts

    def mark_spool(self, mark: SpoolMark) -> None:
        accepting.mark_spool(self.connection, mark)

    def forget_spool(self, file_keys: Sequence[str]) -> None:
        accepting.forget_spool(self.connection, file_keys)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        changes.settle(self.connection, settlements, self.clock.wall_ms(), self._tally)

    def set_sending(self, seqs: Collection[int]) -> None:
        value = msgspec.json.encode(list(seqs)).decode() if seqs else None
        changes.set_meta(self.connection, "sending", value)

    def recover_sending(self) -> int:
        value = changes.get_meta(self.connection, "sending")
        if value is None:
            return 0
        doubtful = [
            row._replace(possible_duplicate=1)
            for row in read_states(self.connection, msgspec.json.decode(value))
            if row.state == State.PENDING
        ]
        write_states(self.connection, doubtful)
        changes.set_meta(self.connection, "sending", None)
        return len(doubtful)

    def change(self, change: EntryChange, id: str) -> Entry:
        entry = changes.change(self.connection, change, id, self._tally)
        if change is EntryChange.DROP:
            self._keep_last_seq()
        return entry

    def change_dead(
        self, change: EntryChange, where: EntryFilter, place: ListPlace, limit: int
    ) -> ChangeStep:
        step = changes.change_dead(self.connection, change, where, place, limit, self._tally)
        if change is EntryChange.DROP and step.changed:
            self._keep_last_seq()
        return step

    def set_destination_hold(self, hold: DestinationHold | None) -> None:
        value = None if hold is None else msgspec.json.encode(hold).decode()
        changes.set_meta(self.connection, "destination_hold", value)

    def set_aside_damaged(self, seq: int, detail: str) -> None:
        changes.set_aside_damaged(self.connection, seq, detail, self.clock.wall_ms(), self._tally)
        self.add_damage(0, 1)

    def prune(self, after_seq: int, window: int, ended_before: int) -> PruneStep:
        step = changes.prune(self.connection, after_seq, window, ended_before, self._tally)
        if step.deleted:
            self._keep_last_seq()
        return step

    def _keep_last_seq(self) -> None:
        """Entries go: no later one may get the seq that something remembers of them."""
        last = self._next_seq + self._accepted_in_transaction - 1
        changes.set_meta(self.connection, "last_seq", str(last))

    def prune_dedup(self, limit: int) -> int:
        return changes.prune_dedup(self.connection, self.clock.wall_ms(), limit)

    # --- reading ---

    def counts(self) -> Counts:
        return self._counts

    def damage(self) -> Damage:
        return Damage(
            int(changes.get_meta(self.connection, "salvaged") or 0),
            int(changes.get_meta(self.connection, "lost") or 0),
        )

    def destination_hold(self) -> DestinationHold | None:
        value = changes.get_meta(self.connection, "destination_hold")
        return None if value is None else msgspec.json.decode(value, type=DestinationHold)

    def spool_progress(self) -> dict[str, int]:
        rows = self.connection.execute("SELECT file_key, lines_done FROM spool_progress")
        return dict(rows.fetchall())

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
        return query.fetch(
            self.connection, count, taken, order == "fifo", fresh_share, now, horizon
        )

    def expired(self, limit: int) -> Expired:
        return query.expired(self.connection, self.clock.wall_ms(), limit)

    def get(self, id: str) -> Entry:
        return query.get(self.connection, id)

    def list_step(
        self, where: EntryFilter, place: ListPlace, limit: int, bytes_max: int, is_begun: bool
    ) -> ListStep:
        return listing.list_step(self.connection, where, place, limit, bytes_max, is_begun)

    def entries_of(self, where: EntryFilter, seqs: Sequence[int]) -> list[Entry]:
        return listing.entries_of(self.connection, where, seqs)

    def oldest_pending_at(self) -> int | None:
        return query.oldest_pending_at(self.connection)

    def last_dead_at(self) -> int | None:
        return query.last_dead_at(self.connection)

    def own_reports_pending(self) -> int:
        return query.own_reports_pending(self.connection)

    def seq_range(self) -> range:
        return query.seq_range(self.connection)

    def index_rows(self, seqs: range) -> list[IndexRow]:
        return query.index_rows(self.connection, seqs)

    def unsettled(self, kind: Unsettled, after: Place, limit: int) -> list[Place]:
        return query.unsettled(self.connection, kind, after, limit)

    def rows_by_block(self, block_rows: int, seqs: range) -> dict[int, int]:
        return query.rows_by_block(self.connection, block_rows, seqs)

    def texts(self, seqs: range) -> Iterator[tuple[int, Text]]:
        return query.texts(self.connection, seqs)

    # --- for the salvage ---

    @property
    def key_window_ms(self) -> int:
        """How long dedup keys are remembered."""
        return self._windows.key_ms

    def add_damage(self, salvaged: int, lost: int) -> None:
        """Count what damage has cost."""
        before = self.damage()
        changes.set_meta(self.connection, "salvaged", str(before.salvaged + salvaged))
        changes.set_meta(self.connection, "lost", str(before.lost + lost))

    def count_in(self, state: str, held: bool) -> None:
        """An entry was written past `accept`."""
        self._tally.add(state, held, +1)

    def reserve_seqs(self, next_seq: int) -> None:
        """Give new entries no seq below this one."""
        self._next_seq = max(self._next_seq, next_seq)

    # --- the file ---

    def sizes(self) -> Sizes:
        log = self.log_bytes()
        free = free_bytes(os.path.dirname(os.path.abspath(self.path)))
        return Sizes(_size(self.path) + log, log, free)

    def log_bytes(self) -> int:
        """The size of the log; 0 where there is none."""
        return _size(self.path + "-wal")

    def checkpoint(self) -> bool:
        """Bring the log into the file and empty it; False when it was not complete.

        Raises:
            DiskShort, SyncFailed, OutboxDamaged
        """
        with self.reading():
            busy, log, done = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy and log == done

    def give_back(self, pages: int) -> None:
        """Return free pages to the file system, at most so many."""
        self.connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()

    def free_pages(self) -> tuple[int, int]:
        """Free pages and all pages of the file."""
        (free,) = self.connection.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self.connection.execute("PRAGMA page_count").fetchone()
        return free, pages


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
