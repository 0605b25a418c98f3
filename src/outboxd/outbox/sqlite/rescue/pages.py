"""A reader of SQLite's pages that goes on where SQLite stops.

It takes the page images of a database and its log, damaged as they may be,
and finds cells on them: no tree has to be whole for that. It trusts nothing:
what a cell says counts only when the row's own checksum is right, and that is
for the caller (`salvage`) to see. It never writes and never raises for what a
damaged page says.

The format: sqlite.org/fileformat2.html
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from outboxd.outbox.sqlite.rescue.wal import Frame, WalLog

MAGIC = b"SQLite format 3\0"
# Those of this version's files, and of earlier ones'.
PAGE_SIZES = (2048, 4096)
_LOOKED_AT = 64  # pages, to tell their size where the header does not
INDEX_INTERIOR, TABLE_INTERIOR, INDEX_LEAF, TABLE_LEAF = 2, 5, 10, 13
_BTREE = (INDEX_INTERIOR, TABLE_INTERIOR, INDEX_LEAF, TABLE_LEAF)
_FREE_PAGE = 2  # of the pointer map's types; 3 and 4 are overflow pages
_OVERFLOW = (3, 4)
# A chain longer than this is no body but a circle.
_CHAIN_PAGES_MAX = 40_000
_NEWEST = 1 << 40

Value = int | str | bytes | None


class Cell(NamedTuple):
    """Where a cell stands: enough to read it later, small enough for millions."""

    page: int
    version: int  # 0: the database; else the number of the frame in the log
    offset: int

    def packed(self) -> int:
        return self.page << 40 | self.version << 16 | self.offset


def unpacked(locator: int) -> Cell:
    """The inverse of `Cell.packed`."""
    return Cell(locator >> 40, locator >> 16 & 0xFFFFFF, locator & 0xFFFF)


class Malformed(Exception):
    """A cell or record that cannot be read."""


class Images:
    """All images there are of each page; frames of the log are newer than the
    database, later ones newer than earlier ones."""

    def __init__(self, database: bytes | memoryview, log: WalLog | None) -> None:
        self._database = memoryview(database)
        self.page_bytes = _page_bytes(self._database, log)
        self._frames: dict[int, list[Frame]] = {}
        self._by_number: dict[int, Frame] = {}
        self._commits: list[int] = []
        for frame in log.frames if log is not None else ():
            if log is not None and log.page_bytes == self.page_bytes:
                self._frames.setdefault(frame.page, []).append(frame)
                self._by_number[frame.number] = frame
                if frame.is_commit:
                    self._commits.append(frame.number)
        self.in_database = self._database.nbytes // self.page_bytes

    def pages(self) -> Iterator[int]:
        """All page numbers of which there is an image."""
        yield from range(1, self.in_database + 1)
        yield from sorted(page for page in self._frames if page > self.in_database)

    def image(self, page: int, version: int) -> memoryview:
        """One image; empty where there is none."""
        if version:
            return memoryview(self._by_number[version].image)
        at = (page - 1) * self.page_bytes
        image = self._database[at : at + self.page_bytes] if page > 0 else memoryview(b"")
        return image if image.nbytes == self.page_bytes else memoryview(b"")

    def versions(self, page: int) -> list[int]:
        """Which images there are of a page, newest first."""
        found = [frame.number for frame in reversed(self._frames.get(page, ()))]
        return [*found, 0] if page <= self.in_database else found

    def newest(self, page: int) -> memoryview:
        """The newest image of a page; empty where there is none."""
        versions = self.versions(page)
        return self.image(page, versions[0]) if versions else memoryview(b"")

    def as_of(self, page: int, version: int) -> memoryview:
        """The image of a page after the commit that a version belongs to."""
        following = bisect_left(self._commits, version)
        end = self._commits[following] if following < len(self._commits) else version
        for number in self.versions(page):
            if number <= (end if version else 0):
                return self.image(page, number)
        return memoryview(b"")

    # --- which pages are in use ---

    def free_pages(self) -> tuple[set[int], bool]:
        """Pages whose content is only a leftover, and whether both records of
        them (free list and pointer map) agree."""
        listed = self._free_list()
        mapped = {page for page in self.pages() if self.map_type(page) == _FREE_PAGE}
        # The list is believed where it leads to as many pages as it says.
        return (mapped if listed is None else listed), listed == mapped

    def _free_list(self) -> set[int] | None:
        head = self.newest(1)
        if head.nbytes < 100:
            return None
        trunk, count = _u32(head, 32), _u32(head, 36)
        found: set[int] = set()
        while trunk and len(found) <= count:
            image = self.newest(trunk)
            leaves = _u32(image, 4) if image.nbytes else 1 << 31
            if trunk in found or leaves > self.page_bytes // 4 - 2:
                return None
            found.add(trunk)
            found.update(_u32(image, 8 + 4 * index) for index in range(leaves))
            trunk = _u32(image, 0)
        return found if len(found) == count else None

    def map_type(self, page: int) -> int:
        """What the pointer map says of a page; 0 for the map itself and page 1."""
        if page < 3 or self.is_map(page):
            return 0
        stride = self.page_bytes // 5 + 1
        map_page = (page - 2) // stride * stride + 2
        image = self.newest(map_page)
        return image[5 * (page - map_page - 1)] if image.nbytes else 0

    def is_map(self, page: int) -> bool:
        """Whether it is a page of the pointer map."""
        return page > 1 and (page - 2) % (self.page_bytes // 5 + 1) == 0

    def is_overflow(self, page: int) -> bool:
        """Whether it holds the end of a long value, by the pointer map."""
        return self.map_type(page) in _OVERFLOW


def _page_bytes(database: memoryview, log: WalLog | None) -> int:
    if log is not None and log.frames:
        return log.page_bytes
    return stated_page_bytes(database) or _guessed_page_bytes(database)


def stated_page_bytes(database: memoryview) -> int:
    """What the file's header says; 0 where that is no size of ours."""
    stated = int.from_bytes(database[16:18], "big") if database.nbytes >= 18 else 0
    return stated if stated in PAGE_SIZES else 0


def _guessed_page_bytes(database: memoryview) -> int:
    """By where pages begin: in the middle of a large one hardly anything looks like one."""
    small, large = PAGE_SIZES

    def pages_from(start: int) -> int:
        end = min(database.nbytes, start + _LOOKED_AT * large)
        places = range(start, end, large)
        return sum(kind(database[at : at + small], 2) is not None for at in places)

    return small if 4 * pages_from(small) > pages_from(large) else large


# --- pages -------------------------------------------------------------------


def kind(image: memoryview, page: int) -> int | None:
    """The type of a b-tree page; None where it can be none."""
    start = 100 if page == 1 else 0
    if image.nbytes < 512 or image[start] not in _BTREE:
        return None
    head = start + (8 if image[start] in (INDEX_LEAF, TABLE_LEAF) else 12)
    content = _u16(image, start + 5) or 65536
    if head + 2 * _u16(image, start + 3) > min(content, image.nbytes):
        return None
    return image[start]


def offsets(image: memoryview, page: int) -> tuple[list[int], int]:
    """Where the cells of a page begin, and how many pointers lead nowhere."""
    start = 100 if page == 1 else 0
    pointers = start + (8 if image[start] in (INDEX_LEAF, TABLE_LEAF) else 12)
    count = _u16(image, start + 3)
    floor = pointers + 2 * count
    raw = bytes(image[pointers:floor])
    found = [raw[at] << 8 | raw[at + 1] for at in range(0, len(raw), 2)]
    good = [offset for offset in found if floor <= offset <= image.nbytes - 4]
    return good, len(found) - len(good)


# --- cells -------------------------------------------------------------------


def row_id(image: memoryview, offset: int) -> int:
    """The row id of a cell on a table's leaf."""
    _, at = _varint(image, offset)
    return _varint(image, at)[0]


def payload(images: Images, cell: Cell, with_newest: bool = False) -> bytes:
    """The record of a cell, put together from its overflow pages: as they were
    when the cell was written, or the newest ones.

    Raises:
        Malformed: it cannot be read to its end.
    """
    image = images.image(cell.page, cell.version)
    if not image.nbytes:
        raise Malformed("no such page")
    type_ = image[100 if cell.page == 1 else 0]
    at = cell.offset + (4 if type_ == INDEX_INTERIOR else 0)
    size, at = _varint(image, at)
    if type_ == TABLE_LEAF:
        _, at = _varint(image, at)
    usable = images.page_bytes
    local_max = usable - 35 if type_ == TABLE_LEAF else (usable - 12) * 64 // 255 - 23
    if not 0 < size <= _CHAIN_PAGES_MAX * usable:
        raise Malformed("a size that cannot be")
    if size <= local_max:
        found = bytes(image[at : at + size])
        if len(found) < size:
            raise Malformed("it leaves the page")
        return found
    least = (usable - 12) * 32 // 255 - 23
    local = least + (size - least) % (usable - 4)
    local = local if local <= local_max else least
    if at + local + 4 > image.nbytes:
        raise Malformed("it leaves the page")
    first = bytes(image[at : at + local])
    version = _NEWEST if with_newest else cell.version
    return first + _chain(images, _u32(image, at + local), size - local, version)


def _chain(images: Images, page: int, size: int, version: int) -> bytes:
    parts: list[bytes] = []
    left = size
    while left > 0:
        image = images.as_of(page, version)
        if not image.nbytes or len(parts) > _CHAIN_PAGES_MAX:
            raise Malformed("its overflow pages are missing")
        parts.append(bytes(image[4 : 4 + min(left, images.page_bytes - 4)]))
        left -= len(parts[-1])
        page = _u32(image, 0)
    return b"".join(parts)


_INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)


def record(data: bytes) -> list[Value]:
    """The values of a record.

    Raises:
        Malformed: it is none.
    """
    try:
        head_bytes, at = _varint(data, 0)
        if not 0 < head_bytes <= len(data):
            raise Malformed("no header")
        body = head_bytes
        values: list[Value] = []
        while at < head_bytes:
            serial, at = _varint(data, at)
            value: Value
            if serial >= 12:
                size = (serial - 12) >> 1
                chunk = data[body : body + size]
                if len(chunk) < size:
                    raise Malformed("a value that is cut short")
                value = chunk.decode() if serial & 1 else chunk
            elif serial <= 6:
                size = _INTEGER_BYTES[serial]
                value = int.from_bytes(data[body : body + size], "big", signed=True)
                value = None if serial == 0 else value
            elif serial in (8, 9):
                size, value = 0, serial - 8
            else:
                raise Malformed("a type that we never write")
            values.append(value)
            body += size
    except (IndexError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from error
    if at != head_bytes or body != len(data):
        raise Malformed("it does not end where it says")
    return values


def begins_with_number(image: memoryview, offset: int) -> bool:
    """Whether an index's cell has a number in its first column, cheaply; only
    short cells are seen."""
    at = offset + (4 if image[0] == INDEX_INTERIOR else 0)
    cell = bytes(image[at : at + 3])
    return len(cell) == 3 and cell[0] < 0x80 and 2 <= cell[1] <= 5 and cell[2] < 12


def record_columns(image: memoryview, offset: int) -> list[int]:
    """The types of the columns of a cell on a table's leaf, without its values."""
    _, at = _varint(image, offset)
    _, at = _varint(image, at)
    begin = at
    size, at = _varint(image, at)
    if size > 200:
        raise Malformed("no header of ours")
    types: list[int] = []
    while at < begin + size:
        serial, at = _varint(image, at)
        types.append(serial)
    return types


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    try:
        byte = data[at]
        if byte < 0x80:
            return byte, at + 1
        value = byte & 0x7F
        for step in range(1, 8):
            byte = data[at + step]
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value, at + step + 1
        value = value << 8 | data[at + 8]
    except IndexError as error:
        raise Malformed("it leaves the page") from error
    return (value - (1 << 64) if value >> 63 else value), at + 9


def _u16(data: memoryview, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _u32(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
