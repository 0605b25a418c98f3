"""The outbox in a file of SQLite's, on the one connection that there may be.

Synchronous and single-threaded: see `outbox.engine.Engine` for what each verb
does. It must never be opened twice on one file: take the lock first
(`open_outbox`, `open_offline`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import msgspec
import uuid_utils

from outboxd.clock import Clock, WindowClock
from outboxd.disk import free_bytes
from outboxd.errors import DiskShort, OutboxDamaged, OutboxdError, SyncFailed, Unavailable
from outboxd.outbox.engine import SearchLimits
from outboxd.outbox.identities import Now, Windows
from outboxd.outbox.mentions import Text, Texts
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
    Identity,
    Incoming,
    IndexRow,
    ListPlace,
    ListStep,
    MoveNote,
    Place,
    PruneStep,
    Receipt,
    Settlement,
    Sizes,
    SpoolMark,
    State,
    Unsettled,
    UnsettledSums,
)
from outboxd.outbox.sqlite import accepting, carrying, changes, claiming, listing, query, search
from outboxd.outbox.sqlite.ballast import Ballast
from outboxd.outbox.sqlite.connection import connect, migrate, suspect, translate, unusable
from outboxd.outbox.sqlite.rows import CountChanges, get_meta, read_states, set_meta, write_states

# A checkpoint's work is bounded by the log's size; a small log also bounds
# what damage to it can cost.
WAL_BYTES_MAX = 8 * 1024 * 1024
# While the file is copied no checkpoint may change it; a copy that takes longer
# than the log has room is given up.
COPY_WAL_BYTES_MAX = 512 * 1024 * 1024
COPY_CHUNK_BYTES = 256 * 1024


class FileCopy:
    """The file of an open outbox, to be read whole while its log grows."""

    def __init__(self, engine: SqliteEngine) -> None:
        """On the engine's thread.

        Raises:
            DiskShort: there is no room to empty the log.
        """
        if not engine.checkpoint():
            raise DiskShort("the log cannot be emptied now", "try again")
        self._descriptor = engine.descriptor()
        self.size_bytes = os.fstat(self._descriptor).st_size
        self.is_broken = False

    def read(self, offset: int) -> bytes:
        """The next bytes from there on. Raises Unavailable: the file has changed."""
        chunk = os.pread(self._descriptor, COPY_CHUNK_BYTES, offset)
        if self.is_broken or not chunk:
            raise Unavailable(
                "the copy took too long: the outbox's log grew too large meanwhile",
                "copy to a faster disk, or when less comes in",
            )
        return chunk


class SqliteEngine:
    """One open outbox in a file. Not for several threads at once."""

    reads_apart = False
    # Whoever searches keeps the writer waiting. An event may have 256 KiB.
    search_limits = SearchLimits(rows_max=64, look_s=0.001)

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
        self._copies: set[FileCopy] = set()
        self._descriptor: int | None = None
        self.put_back = ""  # what kind of copy the file is, in words; "" for none
        self._key_clock = WindowClock(self.clock, round(key_window_s * 1000))
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
        self._tally = CountChanges()
        self._counts = query.counts(self.connection)
        self._waiting = query.waiting(self.connection)
        self._has_old_keys = accepting.has_old_keys(self.connection)
        self._next_seq = query.last_seq(self.connection) + 1
        self._accepted_in_transaction = 0
        self.load_doubt()

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
        self._tally = CountChanges()
        self._accepted_in_transaction = 0
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Sync; only now anything is promised."""
        self.connection.execute("COMMIT")
        self._counts = self._counts_with(self._tally)
        if self._tally.waiting:
            self._waiting = self._waiting_with(self._tally.waiting)
        self._next_seq += self._accepted_in_transaction

    def rollback(self) -> None:
        """Forget the transaction, whatever became of it."""
        with suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    def _counts_with(self, tally: CountChanges) -> Counts:
        return Counts(
            self._counts.pending + tally.pending,
            self._counts.delivered + tally.delivered,
            self._counts.dead + tally.dead,
            self._counts.held + tally.held,
        )

    def _waiting_with(self, changes: dict[str, int]) -> dict[str, int]:
        # Another dictionary, because other threads look at this one.
        waiting = dict(self._waiting)
        for producer, by in changes.items():
            count = waiting.pop(producer, 0) + by
            if count > 0:
                waiting[producer] = count
        return waiting

    def close(self) -> None:
        """Empty the log into the file if there is room, and close.

        Raises:
            SyncFailed: the file is not closed, because that would sync it again.
        """
        self._break_copies()
        try:
            self._say_closed()
            self.checkpoint()
        except SyncFailed:
            raise
        except OutboxdError:
            pass  # the log stays, whole
        self.connection.close()
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _say_closed(self) -> None:
        """From here on the file needs no log; that of a copy without one still does."""
        with self.reading():
            is_said = get_meta(self.connection, "running") is None
        if is_said or self.put_back:
            return
        try:
            with self.transaction():
                set_meta(self.connection, "running", None)
        except DiskShort:
            if self.make_room():
                self._say_closed()

    def set_windows(self, key_window_s: float, repeat_window_s: float) -> None:
        self._key_window_ms = round(key_window_s * 1000)
        self._repeat_window_ms = round(repeat_window_s * 1000)
        self._key_clock.window_ms = self._key_window_ms

    def tidy(self) -> None:
        """Keep the log small: explicitly, so that a failure is seen."""
        if self.log_bytes() >= (COPY_WAL_BYTES_MAX if self._copies else WAL_BYTES_MAX):
            self._break_copies()
            self.empty_log()

    def empty_log(self) -> None:
        """Bring the log into the file. A full disk is waited out, and so is a copy."""
        if self._copies:
            return
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
            Windows(self._key_window_ms, self._repeat_window_ms, self._has_old_keys),
            Now(self.clock.wall_ms(), self._key_clock.now_ms()),
            self._tally,
        )
        self._accepted_in_transaction += sum(r.status == "accepted" for r in receipts)
        return receipts

    def mark_spool(self, mark: SpoolMark) -> None:
        accepting.mark_spool(self.connection, mark)

    def forget_spool(self, file_keys: Sequence[str]) -> None:
        accepting.forget_spool(self.connection, file_keys)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        if self._doubtful_until:
            settlements = [
                settlement._replace(possible_duplicate=True)
                if settlement.seq <= self._doubtful_until
                else settlement
                for settlement in settlements
            ]
        claiming.settle(self.connection, settlements, self.clock.wall_ms(), self._tally)

    def set_sending(self, seqs: Collection[int]) -> None:
        value = msgspec.json.encode(list(seqs)).decode() if seqs else None
        set_meta(self.connection, "sending", value)

    def recover_sending(self) -> int:
        value = get_meta(self.connection, "sending")
        if value is None:
            return 0
        doubtful = [
            row._replace(possible_duplicate=1)
            for row in read_states(self.connection, msgspec.json.decode(value))
            if row.state == State.PENDING
        ]
        write_states(self.connection, doubtful)
        set_meta(self.connection, "sending", None)
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
        set_meta(self.connection, "destination_hold", value)

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
        set_meta(self.connection, "last_seq", str(last))

    def prune_dedup(self, limit: int) -> int:
        count = changes.prune_dedup(self.connection, self._key_clock.now_ms(), limit)
        self._has_old_keys = accepting.has_old_keys(self.connection)
        return count

    # --- reading ---

    def counts(self) -> Counts:
        return self._counts

    def waiting(self) -> Mapping[str, int]:
        return self._waiting

    def damage(self) -> Damage:
        return Damage(
            int(get_meta(self.connection, "salvaged") or 0),
            int(get_meta(self.connection, "lost") or 0),
        )

    def destination_hold(self) -> DestinationHold | None:
        value = get_meta(self.connection, "destination_hold")
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
        found = claiming.fetch(
            self.connection, count, taken, order == "fifo", fresh_share, now, horizon
        )
        if not self._doubtful_until:
            return found
        entries = [
            entry._replace(possible_duplicate=True) if entry.seq <= self._doubtful_until else entry
            for entry in found.entries
        ]
        return found._replace(entries=entries)

    def _doubted(self, entry: Entry) -> Entry:
        """The entry as it would be sent, where a copy was put back."""
        if entry.seq <= self._doubtful_until and entry.state == State.PENDING:
            return entry._replace(possible_duplicate=True)
        return entry

    def expired(self, limit: int, clock_steps: Sequence[tuple[int, int]] = ()) -> Expired:
        return query.expired(self.connection, self.clock.wall_ms(), limit, clock_steps)

    def get(self, id: str) -> Entry:
        return self._doubted(query.get(self.connection, id))

    def state_of_key(self, producer: str, dedup_key: str) -> str | None:
        now = Now(self.clock.wall_ms(), self._key_clock.now_ms())
        return accepting.state_of_key(self.connection, producer, dedup_key, now)

    def list_step(
        self, where: EntryFilter, place: ListPlace, limit: int, bytes_max: int, is_begun: bool
    ) -> ListStep:
        step = listing.list_step(self.connection, where, place, limit, bytes_max, is_begun)
        return step._replace(entries=list(map(self._doubted, step.entries)))

    def entries_of(self, where: EntryFilter, seqs: Sequence[int]) -> list[Entry]:
        return listing.entries_of(self.connection, where, seqs)

    def oldest_pending_at(self, *, with_held: bool = True) -> int | None:
        return query.oldest_pending_at(self.connection, with_held)

    def last_dead_at(self) -> int | None:
        return query.last_dead_at(self.connection)

    def own_reports_pending(self) -> int:
        return query.own_reports_pending(self.connection)

    def seq_range(self) -> range:
        return query.seq_range(self.connection)

    def index_rows(self, seqs: range) -> list[IndexRow]:
        return query.index_rows(self.connection, seqs)

    def unsettled_sums(self, kind: Unsettled, block_rows: int, after: Place) -> UnsettledSums:
        return query.unsettled_sums(self.connection, kind, block_rows, after)

    def rows_by_block(self, block_rows: int, seqs: range) -> dict[int, int]:
        return query.rows_by_block(self.connection, block_rows, seqs)

    def texts(self, seqs: range, wanted: Texts) -> list[tuple[int, Text]]:
        return search.texts(self.connection, seqs, wanted)

    # --- for a move ---

    def move_note(self) -> MoveNote | None:
        value = get_meta(self.connection, "move")
        return None if value is None else msgspec.json.decode(value, type=MoveNote)

    def set_move_note(self, note: MoveNote | None) -> None:
        # Nobody else can change anything as long as this file is open.
        value = None if note is None else msgspec.json.encode(note).decode()
        set_meta(self.connection, "move", value)

    def entries_after(self, seq: int, limit: int, bytes_max: int) -> list[Entry]:
        found = carrying.entries_after(self.connection, self.path, seq, limit, bytes_max)
        return list(map(self._doubted, found))

    def identities_after(self, key: str, limit: int) -> list[Identity]:
        return carrying.identities_after(self.connection, self.path, key, limit)

    def put_in(self, entries: Sequence[Entry], identities: Sequence[Identity]) -> None:
        carrying.put_in(self.connection, entries, identities)
        for entry in entries:
            self.count_in(entry.state, int(entry.held), entry.producer)
        self._has_old_keys = True  # perhaps; the next pruning looks
        seqs = [one.seq for some in (entries, identities) for one in some]
        if seqs and max(seqs) >= self._next_seq:
            self.reserve_seqs(max(seqs) + 1)
            self._keep_last_seq()

    # --- for the salvage ---

    @property
    def key_window_ms(self) -> int:
        """How long dedup keys are remembered."""
        return self._key_window_ms

    def add_damage(self, salvaged: int, lost: int) -> None:
        """Count what damage has cost."""
        before = self.damage()
        set_meta(self.connection, "salvaged", str(before.salvaged + salvaged))
        set_meta(self.connection, "lost", str(before.lost + lost))

    def count_in(self, state: str, held: int, producer: str) -> None:
        """An entry was written past `accept`."""
        self._tally.add(state, held, producer, +1)

    def reserve_seqs(self, next_seq: int) -> None:
        """Give new entries no seq below this one."""
        self._next_seq = max(self._next_seq, next_seq)

    # --- the file ---

    def sizes(self) -> Sizes:
        log = self.log_bytes()
        free = free_bytes(self.path)
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
        # As a script: of a statement without columns Python's `execute` makes a single
        # step, and this one steps once a page.
        self.connection.executescript(f"PRAGMA incremental_vacuum({pages})")

    # --- copies ---

    def begin_copy(self) -> FileCopy:
        """From here on the file does not change until `end_copy`. Raises DiskShort."""
        copy = FileCopy(self)
        self._copies.add(copy)
        return copy

    def end_copy(self, copy: FileCopy) -> None:
        """It was read, or nobody wants it any more. From any thread."""
        self._copies.discard(copy)

    def _break_copies(self) -> None:
        for copy in list(self._copies):
            copy.is_broken = True
        self._copies.clear()

    def descriptor(self) -> int:
        """The file, to be read from. It stays open as long as the connection: to close
        it would take SQLite's own locks away, which are the process's."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor

    def doubt_pending(self) -> None:
        """What is pending now may have been delivered already: say so when it is sent."""
        self._doubtful_until = self._next_seq - 1
        set_meta(self.connection, "doubtful_until", str(self._doubtful_until))

    def load_doubt(self) -> None:
        """Up to which seq what is pending may have been delivered; 0 for none."""
        self._doubtful_until = int(get_meta(self.connection, "doubtful_until") or 0)

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
