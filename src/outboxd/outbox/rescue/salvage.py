"""Which rows of a damaged outbox are believed, and what of them.

Pages come from `carve`; here they become entries again. Nothing is believed
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

from outboxd.outbox.checksums import body_crc, head_crc, state_crc, text_crc
from outboxd.outbox.rescue import pages as carve
from outboxd.outbox.rescue.pages import Cell, Images, Malformed, Value, unpacked
from outboxd.outbox.rescue.wal import Log, Verdict

ENTRY_COLUMNS = 23
# A page holds no more entries than this: bounds what a destroyed one can count.
_ROWS_A_PAGE = 64
_SEQ_MAX = 1 << 48
_NOTHING: list[int] = []


class Row(NamedTuple):
    """An entry to write into the new outbox, as its table's columns, and its body."""

    seq: int
    entry: tuple[Any, ...]
    body: str


class Small(NamedTuple):
    """The small tables: all that must be there before the first event."""

    meta: dict[str, str]
    spool_progress: dict[str, int]


class Salvage:
    """One damaged outbox. First `survey` to its end, then the rest."""

    def __init__(self, images: Images, log: Log | None, now: int) -> None:
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
                case [str(), int(), str(), int(), int()]:
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
            values[0] not in ("salvaged", "lost", "destination_hold", "salvaged_from")
            and values[2] != text_crc(values[0], values[1])
            for values in self._small_rows("meta")
        )

    def dedup(self) -> Iterator[tuple[Any, ...]]:
        """The identities that are still remembered.

        One that only an old image knows may be that of an entry which an
        operator dropped: it counts where its entry came back, and so do not
        others, or what is handed in anew would be refused as a duplicate.
        """
        for older, locators in ((False, self._small["dedup"]), (True, self._small_older["dedup"])):
            for locator in _newest_first(locators):
                values = self._read_small(locator)
                if values is None or values[4] != text_crc(*values[:4]):
                    continue
                if values[3] > self._now and (not older or values[1] in self._index):
                    yield tuple(values)

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

    def _entry(self, seq: int) -> tuple[Any, ...] | None:
        """The newest head and the newest state whose checksums are right."""
        head: list[Any] | None = None
        state: list[Any] | None = None
        state_version = -1
        unsure = seq not in self._live["entries"]
        held = 0
        for locator in self._candidates("entries", seq):
            values = self._values(seq, locator)
            if values is None:
                unsure = unsure or state is None
                continue
            if head is None and _head_is_right(values):
                head = values
            version = unpacked(locator).version
            if not _state_is_right(values):
                unsure = unsure or state is None
                held = held or values[3]
            elif state is None:
                state, state_version = values, version
            elif version == state_version and values[2] == "pending" != state[2]:
                state, unsure = values, True
        if (head is None or state is None) and not self._has_older:
            self._look_at_older()
            return self._entry(seq)
        if head is None:
            return None
        unsure = unsure or state_version < self._unsure_before
        return _joined(head, state, unsure, held == 1)

    def _values(self, seq: int, locator: int) -> list[Any] | None:
        try:
            values: list[Any] = [*carve.record(carve.payload(self._images, unpacked(locator)))]
        except Malformed:
            return None
        if len(values) != ENTRY_COLUMNS:
            return None
        values[0] = seq  # the row id; the column itself is stored as NULL
        return values

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

    def _rebuilt(self, seq: int, body: str) -> tuple[Any, ...]:
        """An entry from its body alone: pending, with its own id where the index has it.

        What stood nowhere else is gone: a ttl, the time of occurrence, the source.
        """
        event = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        id, received_at = _identity(self._id(seq), self._now)
        scope = bytes(event.get("scope", b"")).decode()
        event_type = str(msgspec.json.decode(event["eventType"]))
        severity = str(msgspec.json.decode(event.get("severity", b'"information"')))
        head = (received_at, None, None, event_type, severity, scope, "socket", None)
        values: list[Any] = [None] * ENTRY_COLUMNS
        values[0], values[1], values[5], values[6], values[7] = seq, id, *head[:3]
        values[9:14] = head[3:]
        values[21] = head_crc(seq, id, *head)
        return _joined(values, None, True, False)


def doubted(row: Row) -> Row:
    """The same, marked as a possible duplicate if it is still to be sent."""
    if row.entry[2] != "pending" or row.entry[18]:
        return row
    return row._replace(entry=_joined(list(row.entry), list(row.entry), True, False))


def _joined(
    head: list[Value], state: list[Any] | None, unsure: bool, held: bool
) -> tuple[Any, ...]:
    row: list[Any] = list(head)
    if state is not None:
        row[2:5], row[8], row[14:21] = state[2:5], state[8], state[14:21]
    else:
        row[2:5], row[8] = ["pending", int(held), 0], None
        row[14:21] = [0, None, 0, 0, 1, None, "[]"]
    if unsure and row[2] == "pending":
        row[18] = 1
    row[22] = state_crc(*_state_part(row))
    return tuple(row)


def _head_is_right(values: list[Any]) -> bool:
    part = (values[0], values[1], *values[5:8], *values[9:14])
    return bool(values[21] == head_crc(*part))


def _state_is_right(values: list[Any]) -> bool:
    return bool(values[22] == state_crc(*_state_part(values)))


def _state_part(values: list[Any]) -> tuple[Any, ...]:
    return (values[0], *values[2:5], values[8], *values[14:21])


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
    if len(types) == ENTRY_COLUMNS and types[0] == 0:
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


def _unsure_before(log: Log | None) -> int:
    if log is None or log.verdict is not Verdict.DAMAGED or not log.frames:
        return 0
    sound = {frame.number for frame in log.frames if frame.sound}
    return max((n for n in range(1, max(sound, default=0) + 1) if n not in sound), default=0)
