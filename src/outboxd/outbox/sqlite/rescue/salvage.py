"""Which rows of a damaged outbox are believed, and what of them.

Pages come from `pages`; here they become entries again. Nothing is believed
without its own checksum. Where a row's fate is unsure it comes back as
pending and marked as a possible duplicate: rather twice than never. It must
never write, and never hold more than a few words a row in memory.

How many are lost is an honest estimate. The index of ids names every entry,
so as long as its pages can be read the number is exact: what it names and no
page gives back. Where they cannot, every row of which a trace was seen and
every gap between neighbours counts too; what operators dropped and what was
pruned is then counted with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import uuid_utils

from outboxd.outbox.model import Source, State
from outboxd.outbox.sqlite.rescue import pages as carve
from outboxd.outbox.sqlite.rescue.pages import Cell, Images, Malformed, unpacked
from outboxd.outbox.sqlite.rescue.wal import WalCondition, WalLog
from outboxd.outbox.sqlite.rows import DedupRow, EntryRow, body_crc, text_crc

ENTRY_COLUMNS = len(EntryRow._fields)
# Columns that were added since the first version, and what a row has that is stored
# without them. They stand at the end.
_ADDED = ("", None)  # producer, hop
_ENTRY_WIDTHS = range(ENTRY_COLUMNS - len(_ADDED), ENTRY_COLUMNS + 1)
# A page holds no more entries than this: bounds what a destroyed one can count.
_ROWS_A_PAGE = 64
_SEQ_MAX = 1 << 48
_NOTHING: list[int] = []
# Settings that say nothing of what is in flight.
_NOT_OF_SENDING = frozenset(
    ("salvaged", "lost", "destination_hold", "salvaged_from", "running", "copied_at", "move")
)


class Row(NamedTuple):
    """An entry to write into the new outbox, and its body."""

    seq: int
    entry: EntryRow
    body: str


class Small(NamedTuple):
    """The small tables: all that must be there before the first event."""

    meta: dict[str, str]
    spool_progress: dict[str, int]


class Salvage:
    """One damaged outbox. First `survey` to its end, then the rest."""

    def __init__(self, images: Images, log: WalLog | None, now: int) -> None:
        self._images = images
        self._now = now
        self._free, is_agreed = images.free_pages()
        # The newest image of some page is missing from the log: an older one
        # stands in for it, so what it says of a state is not the last word.
        self._unsure_before = _unsure_before(log)
        self._live: dict[str, dict[int, int | list[int]]] = {"entries": {}, "bodies": {}}
        self._older: dict[str, dict[int, int | list[int]]] = {"entries": {}, "bodies": {}}
        self._index: dict[int, int] = {}
        self._small: dict[str, list[int]] = {"meta": [], "spool_progress": [], "dedup": []}
        self._small_older: dict[str, list[int]] = {"meta": [], "spool_progress": [], "dedup": []}
        self._bad_table_pages = 0
        self._has_older = False
        self.incomplete = not is_agreed or self._unsure_before > 0
        self.lost: list[tuple[int, str]] = []  # seq, and the id where it is known

    # --- surveying ---

    def survey(self, pages_a_step: int = 200) -> Iterator[None]:
        """Look at every page; yields now and then, so that others have their turn."""
        for count, page in enumerate(self._images.pages()):
            versions = self._images.versions(page)
            if page not in self._free and versions and not self._images.is_map(page):
                self._look(page, versions[0], True)
            if count % pages_a_step == pages_a_step - 1:
                yield
        if self.incomplete:
            self._look_at_older()
            yield

    def _look_at_older(self) -> None:
        """Images that were overwritten, and pages that are no longer in use: only
        where those in use do not have it all."""
        if self._has_older:
            return
        self._has_older = True
        for page in self._images.pages():
            is_live = page not in self._free
            if not self._images.is_map(page):
                for version in self._images.versions(page)[int(is_live) :]:
                    self._look(page, version, False)

    def _look(self, page: int, version: int, is_live: bool) -> None:
        image = self._images.image(page, version)
        type_ = carve.kind(image, page)
        if type_ is None:
            if is_live and not self._images.is_overflow(page):
                self.incomplete = True
                self._bad_table_pages += 1
            return
        cells, lost_pointers = carve.offsets(image, page)
        if is_live and lost_pointers:
            self.incomplete = True
        if type_ == carve.TABLE_LEAF:
            self._look_at_table(image, page, version, cells, is_live)
        elif type_ != carve.TABLE_INTERIOR:
            self._look_at_index(image, page, version, cells, is_live)

    def _look_at_table(
        self, image: memoryview, page: int, version: int, cells: list[int], is_live: bool
    ) -> None:
        found = self._live if is_live else self._older
        for offset in cells:
            try:
                types = carve.record_columns(image, offset)
                seq = carve.row_id(image, offset)
            except Malformed:
                self.incomplete = self.incomplete or is_live
                continue
            table = _table(types)
            if table and 0 < seq < _SEQ_MAX:
                _note(found[table], seq, Cell(page, version, offset).packed())

    def _look_at_index(
        self, image: memoryview, page: int, version: int, cells: list[int], is_live: bool
    ) -> None:
        small = self._small if is_live else self._small_older
        for offset in cells:
            cell = Cell(page, version, offset)
            if carve.begins_with_number(image, offset):
                continue  # an index of due times or such: it says nothing of its own
            try:
                values = carve.record(carve.payload(self._images, cell))
            except Malformed:
                self.incomplete = self.incomplete or is_live
                continue
            match values:
                case [str(id), int(seq)] if len(id) == 36 and 0 < seq < _SEQ_MAX:
                    if is_live:
                        self._index[seq] = cell.packed()
                case [str(key), str(), int()] if key != "outboxd":
                    small["meta"].append(cell.packed())
                case [str(), int(), int()]:
                    small["spool_progress"].append(cell.packed())
                case [str(), int(), str(), int(), int(), *mark] if len(mark) < 2:
                    small["dedup"].append(cell.packed())

    # --- after the survey ---

    def next_seq(self) -> int:
        """A seq that no row has had."""
        seen: list[Iterable[int]] = [*self._live.values(), *self._older.values(), self._index]
        return max(max(rows, default=0) for rows in seen) + 1

    def small(self) -> Small:
        """What is believed of the small tables."""
        meta: dict[str, str] = {}
        progress: dict[str, int] = {}
        for values in self._small_rows("meta"):
            key, value, crc = values
            if crc == text_crc(key, value):
                meta.setdefault(str(key), str(value))
        for values in self._small_rows("spool_progress"):
            key, lines, crc = values
            if crc == text_crc(key, lines) and isinstance(lines, int):
                progress.setdefault(str(key), lines)
        return Small(meta, progress)

    def sending_is_unknown(self) -> bool:
        """Whether the note of what was in flight may have been destroyed."""
        if self._bad_table_pages or self._unsure_before:
            return True
        return any(
            key not in _NOT_OF_SENDING and crc != text_crc(key, value)
            for key, value, crc in self._small_rows("meta")
        )

    def dedup(self) -> Iterator[DedupRow]:
        """The identities that are still remembered.

        One that only an old image knows may be that of an entry which an
        operator dropped: it counts where its entry came back, and so do not
        others, or what is handed in anew would be refused as a duplicate.
        """
        for older, locators in ((False, self._small["dedup"]), (True, self._small_older["dedup"])):
            for locator in _newest_first(locators):
                values = self._read_small(locator)
                if values is None:
                    continue
                row = DedupRow(*values)  # those of an earlier version have no mark
                counts = not older or row.seq in self._index
                if counts and row.is_right() and row.expires_at > self._now:
                    yield row

    def _small_rows(self, table: str) -> Iterator[list[Any]]:
        older = self._small_older[table] if self.incomplete else _NOTHING
        for locator in (*_newest_first(self._small[table]), *_newest_first(older)):
            values = self._read_small(locator)
            if values is not None:
                yield values

    def _read_small(self, locator: int) -> list[Any] | None:
        try:
            return [*carve.record(carve.payload(self._images, unpacked(locator)))]
        except Malformed:
            return None

    def shows_nothing(self) -> bool:
        """Whether not even the pages of an empty outbox are there."""
        return self._bad_table_pages > 0 or not self._images.in_database

    def seqs(self) -> list[int]:
        """Every row of which there is a trace that counts, in order."""
        found = self._traces()
        if self.incomplete:
            found |= set(self._older["entries"]) | set(self._older["bodies"])
        return sorted(found)

    def row(self, seq: int) -> Row | None:
        """What is believed of one entry; None (and noted as lost) where nothing is."""
        body = self._body(seq)
        if body is None and not self._has_older:
            self._look_at_older()
            body = self._body(seq)
        entry = self._entry(seq) if body is not None else None
        if body is not None:
            return Row(seq, entry or self._rebuilt(seq, body), body)
        if self._counts_as_lost(seq):
            self.lost.append((seq, self._id(seq) or ""))
        return None

    def _traces(self) -> set[int]:
        return {*self._live["entries"], *self._live["bodies"], *self._index}

    def _counts_as_lost(self, seq: int) -> bool:
        """The index names what there is; where it has holes, any row in use counts."""
        if seq in self._index:
            return True
        return self.incomplete and (seq in self._live["entries"] or seq in self._live["bodies"])

    def lost_in_gaps(self, seqs: list[int]) -> int:
        """Rows that stood on pages which cannot be read at all, by the gaps."""
        if not self.incomplete or not seqs:
            return 0
        gaps = seqs[-1] - seqs[0] + 1 - len(seqs)
        return min(gaps, self._bad_table_pages * _ROWS_A_PAGE)

    # --- one row ---

    def _body(self, seq: int) -> str | None:
        for locator in self._candidates("bodies", seq):
            for with_newest in (False, True):
                try:
                    cell = unpacked(locator)
                    values = carve.record(carve.payload(self._images, cell, with_newest))
                except Malformed:
                    continue
                match values:
                    case [None, str(body), int(crc)] if crc == body_crc(seq, body.encode()):
                        return body
        return None

    def _entry(self, seq: int) -> EntryRow | None:
        """The newest head and the newest state whose checksums are right."""
        head: EntryRow | None = None
        state: EntryRow | None = None
        state_version = -1
        unsure = seq not in self._live["entries"]
        held = False
        for locator in self._candidates("entries", seq):
            row = self._stored(seq, locator)
            if row is None:
                unsure = unsure or state is None
                continue
            if head is None and row.head_crc == row.right_head_crc():
                head = row
            version = unpacked(locator).version
            if row.state_crc != row.right_state_crc():
                unsure = unsure or state is None
                held = held or row.held == 1
            elif state is None:
                state, state_version = row, version
            elif version == state_version and row.state == "pending" != state.state:
                state, unsure = row, True
        if (head is None or state is None) and not self._has_older:
            self._look_at_older()
            return self._entry(seq)
        if head is None:
            return None
        unsure = unsure or state_version < self._unsure_before
        return _joined(head, state, unsure, held)

    def _stored(self, seq: int, locator: int) -> EntryRow | None:
        """A row as one image has it: nothing in it is believed yet."""
        try:
            values = carve.record(carve.payload(self._images, unpacked(locator)))
        except Malformed:
            return None
        if len(values) not in _ENTRY_WIDTHS:
            return None
        missing = ENTRY_COLUMNS - len(values)
        columns: list[Any] = [*values, *_ADDED[len(_ADDED) - missing :]]
        # The column itself is stored as NULL: the row id is the seq.
        return EntryRow._make(columns)._replace(seq=seq)

    def _candidates(self, table: str, seq: int) -> list[int]:
        """All images of a row: those in use first, the newest first."""
        live = _newest_first(_listed(self._live[table].get(seq)))
        if not self.incomplete and seq not in self._index and not live:
            return []
        return live + _newest_first(_listed(self._older[table].get(seq)))

    def _id(self, seq: int) -> str | None:
        locator = self._index.get(seq)
        values = None if locator is None else self._read_small(locator)
        return None if values is None else str(values[0])

    def _rebuilt(self, seq: int, body: str) -> EntryRow:
        """An entry from its body alone: pending, with its own id where the index has it.

        What stood nowhere else is gone: a ttl, the time of occurrence, the source.
        """
        event = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        id, received_at = _identity(self._id(seq), self._now)
        row = EntryRow(
            seq=seq,
            id=id,
            received_at=received_at,
            occurred_at=None,
            expires_at=None,
            event_type=str(msgspec.json.decode(event["eventType"])),
            severity=str(msgspec.json.decode(event.get("severity", b'"information"'))),
            scope=bytes(event.get("scope", b"")).decode(),
            source=Source.SOCKET,
            dedup_key=None,
            producer="",
            hop=None,
            **_FRESH,
        )
        return _joined(row._replace(head_crc=row.right_head_crc()), None, True, False)


def doubted(row: Row) -> Row:
    """The same, marked as a possible duplicate if it is still to be sent."""
    if row.entry.state != State.PENDING or row.entry.possible_duplicate:
        return row
    return row._replace(entry=_joined(row.entry, row.entry, True, False))


# The state of an entry of which nothing else is known.
_FRESH: dict[str, Any] = {
    "state": State.PENDING.value,
    "held": 0,
    "due_at": 0,
    "ended_at": None,
    "repeats": 0,
    "last_occurred_at": None,
    "attempt_count": 0,
    "spent": 0,
    "possible_duplicate": 0,
    "dead_reason": None,
    "attempts": "[]",
    "head_crc": 0,
    "state_crc": 0,
}


def _joined(head: EntryRow, state: EntryRow | None, unsure: bool, held: bool) -> EntryRow:
    """What never changes from one image, the rest from another (None: unknown)."""
    if state is None:
        changing = _FRESH | {"held": int(held), "possible_duplicate": 1}
    else:
        changing = {name: getattr(state, name) for name in _FRESH}
    row = head._replace(**changing | {"head_crc": head.head_crc})
    if unsure and row.state == State.PENDING:
        row = row._replace(possible_duplicate=1)
    return row._replace(state_crc=row.right_state_crc())


def _identity(id: str | None, now: int) -> tuple[str, int]:
    """An id and when it was made: a UUIDv7 begins with its time in ms."""
    try:
        known = UUID(id or "")
    except ValueError:
        return str(uuid_utils.uuid7()), now
    made_at = known.int >> 80
    return str(known), made_at if known.version == 7 and made_at <= now else now


def _table(types: list[int]) -> str:
    """Whose row it is, by its columns; "" for none that is salvaged."""
    if len(types) in _ENTRY_WIDTHS and types[0] == 0:
        return "entries"
    if len(types) == 3 and types[0] == 0 and types[1] >= 13 and types[2] <= 9:
        return "bodies"
    return ""


def _note(rows: dict[int, int | list[int]], seq: int, locator: int) -> None:
    known = rows.get(seq)
    if known is None:
        rows[seq] = locator
    elif isinstance(known, int):
        rows[seq] = [known, locator]
    else:
        known.append(locator)


def _listed(noted: int | list[int] | None) -> list[int]:
    if noted is None:
        return []
    return [noted] if isinstance(noted, int) else noted


def _newest_first(locators: list[int]) -> list[int]:
    return sorted(locators, key=lambda locator: -unpacked(locator).version)


def _unsure_before(log: WalLog | None) -> int:
    if log is None or log.verdict is not WalCondition.DAMAGED or not log.frames:
        return 0
    sound = {frame.number for frame in log.frames if frame.sound}
    return max((n for n in range(1, max(sound, default=0) + 1) if n not in sound), default=0)
