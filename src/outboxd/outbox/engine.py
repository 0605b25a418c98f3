"""The outbox on one connection: verbs, each its own transaction.

Synchronous and single-threaded. The agent's writer thread drives it with many
verbs in one transaction; commands use it while no agent runs. It must never be
opened twice on one file: take the lock first (`open_outbox`, `open_offline`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import msgspec
import uuid_utils

from outboxd.clock import Clock
from outboxd.outbox import accepting, query, store
from outboxd.outbox.connection import Trouble, classify, connect, migrate, translate, unusable
from outboxd.outbox.model import (
    Claimed,
    Counts,
    Damage,
    Entry,
    EntryFilter,
    Incoming,
    Receipt,
    Settlement,
    SpoolMark,
)
from outboxd.outbox.rows import Tally, read_changeable, write_changeable

# A checkpoint's work is bounded by the log's size; a small log also bounds
# what damage to it can cost.
WAL_BYTES_MAX = 8 * 1024 * 1024


class DestinationHold(NamedTuple):
    """The operator's hold of the destination; outlives a restart."""

    reason: str
    by: str
    since_at: int


class Page(NamedTuple):
    """A page of a listing, newest first; `next` is the cursor of the one after."""

    entries: list[Entry]
    next: str | None


class Engine:
    """One open outbox. Not for several threads at once."""

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
        self.set_windows(key_window_s, repeat_window_s)
        try:
            self.connection = connect(path)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise translate(error, path) from error
        except OSError as error:
            raise unusable(error, path) from error
        try:
            migrate(self.connection, path)
            self._tally = Tally()
            self._counts = query.counts(self.connection)
            self._next_seq = query.last_seq(self.connection) + 1
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self.connection.close()
            raise translate(error, path) from error
        except BaseException:
            self.connection.close()
            raise
        self._accepted_in_transaction = 0

    def set_windows(self, key_window_s: float, repeat_window_s: float) -> None:
        """How long identities are remembered; for a reload too."""
        self._windows = accepting.Windows(round(key_window_s * 1000), round(repeat_window_s * 1000))

    def close(self) -> None:
        """Empty the log into the file if there is room, and close.

        Raises:
            SyncFailed: the file is not closed, because that would sync it again.
        """
        try:
            self.checkpoint()
        except sqlite3.Error as error:
            if classify(error) is Trouble.FATAL:
                raise translate(error, self.path) from error
        self.connection.close()

    # --- transactions ---

    def begin(self) -> None:
        """Open a transaction that writes."""
        self._tally = Tally()
        self._accepted_in_transaction = 0
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Sync; only now anything is promised."""
        self.connection.execute("COMMIT")
        self._counts = self._with(self._tally)
        self._next_seq += self._accepted_in_transaction

    def rollback(self) -> None:
        """Forget the transaction, whatever became of it."""
        with suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """For commands: a transaction of one verb, errors in our own words."""
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

    def _with(self, tally: Tally) -> Counts:
        return Counts(
            self._counts.pending + tally.pending,
            self._counts.delivered + tally.delivered,
            self._counts.dead + tally.dead,
            self._counts.held + tally.held,
        )

    # --- verbs, inside a transaction of the caller's ---

    def accept(self, items: Sequence[Incoming]) -> list[Receipt]:
        """Keep events; receipts in order, to be handed out after the commit."""
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
        """How far a spool file has been taken."""
        accepting.mark_spool(self.connection, mark)

    def forget_spool(self, file_keys: Sequence[str]) -> None:
        """The files are gone for certain."""
        accepting.forget_spool(self.connection, file_keys)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Write what attempts meant."""
        store.settle(self.connection, settlements, self.clock.wall_ms(), self._tally)

    def set_sending(self, seqs: Collection[int]) -> None:
        """Exactly these are in flight; after a crash they may have arrived."""
        value = msgspec.json.encode(list(seqs)).decode() if seqs else None
        store.set_meta(self.connection, "sending", value)

    def retry(self, id: str) -> Entry:
        """A dead letter becomes pending again. Raises UnknownId."""
        return store.retry(self.connection, id, self._tally)

    def hold_entry(self, id: str) -> Entry:
        """Keep a pending entry back. Raises UnknownId."""
        return store.set_held(self.connection, id, True, self._tally)

    def release_entry(self, id: str) -> Entry:
        """Let a held entry go. Raises UnknownId."""
        return store.set_held(self.connection, id, False, self._tally)

    def drop(self, id: str) -> Entry:
        """Remove an entry for good; returns it as it was. Raises UnknownId."""
        entry = store.drop(self.connection, id, self._tally)
        self._keep_last_seq()
        return entry

    def set_destination_hold(self, hold: DestinationHold | None) -> None:
        """Set or lift the operator's hold."""
        value = None if hold is None else msgspec.json.encode(hold).decode()
        store.set_meta(self.connection, "destination_hold", value)

    def add_damage(self, salvaged: int, lost: int) -> None:
        """Count what damage has cost."""
        before = self.damage()
        store.set_meta(self.connection, "salvaged", str(before.salvaged + salvaged))
        store.set_meta(self.connection, "lost", str(before.lost + lost))

    def count_in(self, state: str, held: bool) -> None:
        """An entry was written past `accept`: by the salvage."""
        self._tally.add(state, held, +1)

    def reserve_seqs(self, next_seq: int) -> None:
        """Give new entries no seq below this one."""
        self._next_seq = max(self._next_seq, next_seq)

    @property
    def key_window_ms(self) -> int:
        """How long dedup keys are remembered."""
        return self._windows.key_ms

    def set_aside_damaged(self, seq: int, detail: str) -> None:
        """A row failed its checksum: keep its remains apart and count it lost."""
        store.set_aside_damaged(self.connection, seq, detail, self.clock.wall_ms(), self._tally)
        self.add_damage(0, 1)

    def prune(self, after_seq: int, window: int, ended_before: int) -> tuple[int | None, int]:
        """One step of pruning; see `store.prune`."""
        position, deleted = store.prune(
            self.connection, after_seq, window, ended_before, self._tally
        )
        if deleted:
            self._keep_last_seq()
        return position, deleted

    def _keep_last_seq(self) -> None:
        """Entries go: no later one may get the seq that something remembers of them."""
        last = self._next_seq + self._accepted_in_transaction - 1
        store.set_meta(self.connection, "last_seq", str(last))

    def prune_dedup(self, limit: int) -> int:
        """Forget ended dedup windows."""
        return store.prune_dedup(self.connection, self.clock.wall_ms(), limit)

    def recover_sending(self) -> int:
        """After a crash: what was in flight may have arrived. How many."""
        value = store.get_meta(self.connection, "sending")
        if value is None:
            return 0
        entries = read_changeable(self.connection, msgspec.json.decode(value))
        pending = [entry for entry in entries if entry.state == "pending"]
        for entry in pending:
            entry.possible_duplicate = 1
        if pending:
            write_changeable(self.connection, pending)
        store.set_meta(self.connection, "sending", None)
        return len(pending)

    # --- reading ---

    def counts(self) -> Counts:
        """As of the last commit."""
        return self._counts

    def damage(self) -> Damage:
        """What damage has cost so far."""
        return Damage(
            int(store.get_meta(self.connection, "salvaged") or 0),
            int(store.get_meta(self.connection, "lost") or 0),
        )

    def destination_hold(self) -> DestinationHold | None:
        """The operator's hold, None for none."""
        value = store.get_meta(self.connection, "destination_hold")
        return None if value is None else msgspec.json.decode(value, type=DestinationHold)

    def spool_progress(self) -> dict[str, int]:
        """Files whose unlink is not certain, and how many of their lines were taken."""
        rows = self.connection.execute("SELECT file_key, lines_done FROM spool_progress")
        return dict(rows.fetchall())

    def fetch(
        self,
        count: int,
        taken: Collection[int],
        order: str,
        fresh_share: float,
        due_horizon_s: float,
    ) -> list[Claimed]:
        """Entries that may be sent now; see `query.fetch`."""
        now = self.clock.wall_ms()
        horizon = now + round(due_horizon_s * 1000)
        return query.fetch(
            self.connection, count, taken, order == "fifo", fresh_share, now, horizon
        )

    def get(self, id: str) -> Entry:
        """The entry with this id. Raises UnknownId."""
        return query.get(self.connection, id)

    def page(self, where: EntryFilter, cursor: str | None, limit: int) -> Page:
        """A page of a listing, newest first. ValueError for a bad cursor."""
        before = parse_cursor(cursor)
        found: list[Entry] = []
        while True:
            step = query.list_step(self.connection, where, before, limit - len(found))
            found += step.entries
            if step.before_seq is None or len(found) == limit:
                more = step.before_seq is not None
                return Page(found, str(step.before_seq) if more else None)
            before = step.before_seq

    def oldest_pending_at(self) -> int | None:
        """When the pending entry that waits longest was received."""
        return query.oldest_pending_at(self.connection)

    # --- the file ---

    def wal_bytes(self) -> int:
        """The size of the log; 0 where there is none."""
        return _size(self.path + "-wal")

    def bytes_on_disk(self) -> int:
        """The database and its log."""
        return _size(self.path) + self.wal_bytes()

    def checkpoint(self) -> bool:
        """Bring the log into the file and empty it; False when it was not complete."""
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


def parse_cursor(cursor: str | None) -> int | None:
    """Where a listing goes on. ValueError for what no listing gave."""
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise ValueError(f"not a cursor of this listing: {cursor!r}")
    return int(cursor)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
