"""A damaged outbox is set aside with its date, and what can be read is saved.

The order of steps is what makes it safe to be killed at any point:

1. `<outbox>.recovery` says what is going to happen (synced),
2. the log, then the database are renamed to `<outbox>.damaged-<date>` (synced),
3. the note says that they were moved (synced),
4. a new outbox is made, and rows are salvaged into it, each with its checksum
   right, in transactions that also say how far it came,
5. the note is removed.

A start that finds the note goes on where it stopped. What was set aside is
never deleted, overwritten or opened by SQLite again: it is the operator's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from outboxd.disk import sync_directory
from outboxd.errors import DiskShort, OutboxUnusable
from outboxd.outbox.identities import key_identities
from outboxd.outbox.sqlite.ballast import Ballast
from outboxd.outbox.sqlite.connection import unusable
from outboxd.outbox.sqlite.rescue.diagnosis import read_files
from outboxd.outbox.sqlite.rescue.salvage import Row, Salvage, doubted
from outboxd.outbox.sqlite.rows import DedupRow, body_crc, get_meta, insert_rows, set_meta, text_crc

if TYPE_CHECKING:
    from outboxd.outbox.outbox import Outbox
    from outboxd.outbox.sqlite.engine import SqliteEngine

# The agent takes events within 5 s of its start: what is not salvaged by then
# follows in the background.
FOREGROUND_S = 2.5
PORTION_ROWS = 200
_REST_S = 0.01  # between portions in the background, for everyone else
_FULL_DISK_S = 10.0
_END: Any = object()
# Left free for seqs of a large outbox that no one has read to its end yet.
_SEQS_RESERVED = 1 << 32
_SUFFIXES = ("-wal", "-journal", "-shm", "")
_META_KEPT = ("destination_hold", "doubtful_until", "move")


class Recovery(NamedTuple):
    """What was found at the start, and what became of it."""

    found: str  # what was damaged
    set_aside: tuple[str, ...]  # the files, under their new names
    salvaged: int
    lost: int
    is_finished: bool  # False: the rest follows in the background
    duration_s: float


class Aside(NamedTuple):
    """One damaged outbox that was set aside."""

    name: str  # within the outbox's directory
    found: str
    is_moved: bool


# --- the note --------------------------------------------------------------------


def read_note(path: str) -> list[Aside]:
    """The recoveries that are not finished, the newest first."""
    try:
        with open(path + ".recovery", "rb") as file:
            return msgspec.json.decode(file.read(), type=list[Aside])
    except FileNotFoundError:
        return []
    except msgspec.DecodeError as error:
        raise OutboxUnusable(
            f"{path}.recovery is damaged: {error}",
            f"it names the files {path}.damaged-* that are still to be salvaged; write"
            ' [["NAME", "why", true]] into it, or remove it to give them up',
        ) from error


def _write_note(path: str, asides: Sequence[Aside]) -> None:
    note, fresh = path + ".recovery", path + ".recovery.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, msgspec.json.encode(asides))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(fresh, note)
    sync_directory(os.path.dirname(os.path.abspath(path)))


def suspicion(path: str) -> str:
    """What was seen while running, "" for nothing."""
    try:
        with open(path + ".suspect", errors="replace") as file:
            return file.read(1000) or "damage was seen while running"
    except OSError:
        return ""


# --- setting aside -----------------------------------------------------------------


def set_aside(path: str, found: str, wall_ms: int) -> list[Aside]:
    """Move a damaged outbox out of the way, durably, before anything else is made.

    Raises:
        DiskShort, OutboxUnusable: the directory cannot be written.
    """
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(wall_ms / 1000))
    base = f"{os.path.basename(path)}.damaged-{date}"
    taken = set(os.listdir(os.path.dirname(os.path.abspath(path))))
    names = [base, *(f"{base}-{number}" for number in range(2, 1000))]
    name = next(n for n in names if not any(n + suffix in taken for suffix in _SUFFIXES))
    before = read_note(path)
    try:
        return _move(path, [Aside(name, found, False), *before])
    except OSError as error:
        failure = unusable(error, path + ".recovery")
        if not isinstance(failure, DiskShort) or not Ballast(path).release():
            raise failure from error
        return _move(path, [Aside(name, found, False), *before])


def resume_moving(path: str) -> list[Aside]:
    """Finish what a crash interrupted; the outboxes that are to be salvaged."""
    asides = read_note(path)
    if any(not aside.is_moved for aside in asides):
        return _move(path, asides)
    return asides


def _move(path: str, asides: list[Aside]) -> list[Aside]:
    _write_note(path, asides)
    directory = os.path.dirname(os.path.abspath(path))
    newest = asides[0]
    # The log first: a database without its log would be taken for whole.
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            os.rename(path + suffix, os.path.join(directory, newest.name + suffix))
    with suppress(OSError):
        os.unlink(path + ".suspect")
    sync_directory(os.path.dirname(os.path.abspath(path)))
    moved = [newest._replace(is_moved=True), *asides[1:]]
    _write_note(path, moved)
    return moved


def aside_files(path: str, asides: Sequence[Aside]) -> tuple[str, ...]:
    """The files that were set aside, by their full names."""
    directory = os.path.dirname(os.path.abspath(path))
    names = [os.path.join(directory, aside.name + s) for aside in asides for s in ("", "-wal")]
    return tuple(name for name in names if os.path.exists(name))


# --- salvaging ---------------------------------------------------------------------


Portion = Callable[["SqliteEngine"], None]


class Rescue:
    """Brings the rows of one damaged outbox into the new one, a portion at a time.

    `work` only reads, and may run on another thread. What it yields is to be
    called with the engine inside a transaction, or None. Doing it all again
    does no harm: what is there already is passed over.
    """

    def __init__(self, engine: SqliteEngine, aside: Aside) -> None:
        self.aside = aside
        self.salvaged = self.lost = 0
        self._now = engine.clock.wall_ms()
        self._key_window_ms = engine.key_window_ms
        self._sending: frozenset[int] | None = frozenset()
        path = os.path.join(os.path.dirname(os.path.abspath(engine.path)), aside.name)
        files = read_files(path, path + "-wal")
        self._salvage = Salvage(files.images(), files.log, self._now)
        self.is_prepared = False
        self.work = self._work()

    def _work(self) -> Iterator[Portion | None]:
        for _ in self._salvage.survey():
            yield None
        yield lambda engine: self.prepare(engine, True)
        yield from self._portions()

    def prepare(self, engine: SqliteEngine, is_surveyed: bool) -> None:
        """What must be in the new outbox before the first event is taken or sent."""
        self.is_prepared = True
        connection = engine.connection
        small = self._salvage.small()
        engine.reserve_seqs(self._salvage.next_seq() + (0 if is_surveyed else _SEQS_RESERVED))
        for key in _META_KEPT:
            if key in small.meta and get_meta(connection, key) is None:
                set_meta(connection, key, small.meta[key])
        engine.load_doubt()
        insert_rows(
            connection,
            "INSERT OR IGNORE INTO spool_progress (file_key, lines_done, crc)",
            [(key, lines, text_crc(key, lines)) for key, lines in small.spool_progress.items()],
        )

    def _portions(self) -> Iterator[Portion]:
        small = self._salvage.small()
        if "sending" in small.meta:
            self._sending = frozenset(msgspec.json.decode(small.meta["sending"], type=list[int]))
        elif self._salvage.sending_is_unknown():
            self._sending = None
        seqs = self._salvage.seqs()
        for start in range(0, len(seqs), PORTION_ROWS):
            rows = [row for seq in seqs[start : start + PORTION_ROWS] if (row := self._row(seq))]
            yield partial(self._insert, rows)
        yield from self._identities()
        # What earlier damage has cost stays counted.
        before = [int(small.meta.get(key, "0")) for key in ("salvaged", "lost")]
        yield lambda engine: self._finish(engine, seqs, *before)

    def _row(self, seq: int) -> Row | None:
        row = self._salvage.row(seq)
        if row is not None and (self._sending is None or seq in self._sending):
            return doubted(row)
        return row

    def _insert(self, rows: list[Row], engine: SqliteEngine) -> None:
        known = _known(engine, [row.entry.id for row in rows], [row.seq for row in rows])
        fresh = [row for row in rows if row.entry.id not in known and row.seq not in known]
        bodies = [(row.seq, row.body, body_crc(row.seq, row.body.encode())) for row in fresh]
        insert_rows(engine.connection, "INSERT INTO entries", [row.entry for row in fresh])
        insert_rows(engine.connection, "INSERT INTO bodies (seq, body, crc)", bodies)
        for row in fresh:
            engine.count_in(row.entry.state, row.entry.held, row.entry.producer)
        self._remember([found for row in fresh if (found := self._identity(row))], engine)
        self.salvaged += len(fresh)
        engine.add_damage(len(fresh), 0)

    def _identity(self, row: Row) -> DedupRow | None:
        """An entry's own key, in case its row of the dedup window is gone."""
        entry = row.entry
        if entry.dedup_key is None:
            return None
        expires_at = entry.received_at + self._key_window_ms
        key = key_identities(entry.producer, entry.dedup_key)[0]
        return DedupRow.made(key, entry.seq, entry.id, expires_at)

    def _identities(self) -> Iterator[Portion]:
        found: list[DedupRow] = []
        for identity in self._salvage.dedup():
            found.append(identity)
            if len(found) == PORTION_ROWS:
                yield partial(self._remember, found)
                found = []
        yield partial(self._remember, found)

    def _remember(self, identities: list[DedupRow], engine: SqliteEngine) -> None:
        insert_rows(
            engine.connection,
            f"INSERT OR IGNORE INTO dedup ({', '.join(DedupRow._fields)})",
            [identity for identity in identities if identity.expires_at > self._now],
        )

    def _finish(self, engine: SqliteEngine, seqs: list[int], salvaged: int, lost: int) -> None:
        missing = self._salvage.lost
        known = _known(engine, [id for _, id in missing], [])
        self.lost = sum(id not in known for _, id in missing) + self._salvage.lost_in_gaps(seqs)
        if not seqs:
            # Nothing tells how many there were, and that is not the same as none.
            self.lost += int(self._salvage.shows_nothing())
        engine.add_damage(salvaged, lost + self.lost)
        names = msgspec.json.encode([*_finished(engine), self.aside.name]).decode()
        set_meta(engine.connection, "salvaged_from", names)


def start(
    engine: SqliteEngine, asides: Sequence[Aside], began_s: float
) -> tuple[Recovery, list[Rescue]]:
    """Salvage as much as time allows; what is left is for `in_background`."""
    until_s = perf_counter() + FOREGROUND_S
    finished = _finished(engine)
    rescues = [Rescue(engine, aside) for aside in asides if aside.name not in finished]
    with engine.transaction():
        left = [rescue for rescue in rescues if not _work(rescue, engine, until_s)]
    if not left:
        finish(engine.path)
    return (
        Recovery(
            "; ".join(aside.found for aside in asides),
            aside_files(engine.path, asides),
            sum(rescue.salvaged for rescue in rescues),
            sum(rescue.lost for rescue in rescues),
            not left,
            perf_counter() - began_s,
        ),
        left,
    )


def _finished(engine: SqliteEngine) -> list[str]:
    """What this outbox has been given whole, though the note may still name it."""
    names = get_meta(engine.connection, "salvaged_from")
    return [] if names is None else msgspec.json.decode(names, type=list[str])


def _work(rescue: Rescue, engine: SqliteEngine, until_s: float) -> bool:
    """Whether it came to its end in time."""
    for portion in rescue.work:
        if portion is not None:
            portion(engine)
        if perf_counter() > until_s:
            break
    else:
        return True
    if not rescue.is_prepared:
        rescue.prepare(engine, False)
    return False


def finish(path: str) -> None:
    """All is salvaged: the note is no longer needed."""
    with suppress(FileNotFoundError):
        os.unlink(path + ".recovery")
    sync_directory(os.path.dirname(os.path.abspath(path)))


def _known(engine: SqliteEngine, ids: Sequence[str], seqs: Sequence[int]) -> set[str | int]:
    """Which of these ids and seqs are in the outbox."""
    found: set[str | int] = set()
    for column, values in (("id", ids), ("seq", seqs)):
        rows = engine.connection.execute(
            f"SELECT {column} FROM entries WHERE {column} IN (SELECT value FROM json_each(?))",
            (msgspec.json.encode(list(values)).decode(),),
        )
        found.update(value for (value,) in rows)
    return found


async def in_background(
    outbox: Outbox, engine: SqliteEngine, rescues: Sequence[Rescue]
) -> tuple[int, int]:
    """Salvage the rest while the agent works; how many were salvaged and lost.

    A full disk is waited out. Ended in the middle, the next start goes on.
    """
    for rescue in rescues:
        while (portion := await asyncio.to_thread(next, rescue.work, _END)) is not _END:
            if portion is not None:
                await _apply(outbox, partial(portion, engine))
            await asyncio.sleep(_REST_S)
    await asyncio.to_thread(finish, outbox.path)
    await outbox.refresh()
    outbox.on_arrival(False)
    return sum(rescue.salvaged for rescue in rescues), sum(rescue.lost for rescue in rescues)


async def _apply(outbox: Outbox, portion: Callable[[], None]) -> None:
    while True:
        try:
            await outbox.change(lambda _: portion())
            return
        except DiskShort:
            await asyncio.sleep(_FULL_DISK_S)
