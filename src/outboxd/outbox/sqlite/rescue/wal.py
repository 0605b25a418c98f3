"""SQLite's write-ahead log, read as bytes before SQLite opens it.

SQLite stops silently at the first frame that fails its checksum: one flipped
bit drops every commit behind it, receipts and all, and its integrity check
says ok. This room looks behind that frame and says whether what stands there
is what a power cut leaves, or damage. It never writes, and knows nothing of
what the pages hold.

What a power cut can leave: every commit is synced before the next begins, so
only the last transaction may be incomplete, any of its 512-byte sectors
missing (zero, or beyond the end). Frames of an older generation carry other
salts. Everything else is damage. The one case that cannot be told apart is
damage that zeroes sectors of the very last transaction and of nothing else.

The format: sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
SECTOR_BYTES = 512
MAGIC = 0x377F0682  # or with the lowest bit set: checksums over big-endian words
VERSION = 3007000
# Looking for the one flipped bit takes some 10 ms a frame.
REPAIRS_MAX = 8
_GENERATIONS = 1 << 20
_MASK = 0xFFFFFFFF

Sums = tuple[int, int]


class WalCondition(Enum):
    """What a log looks like."""

    CLEAN = auto()  # ends with a commit, or there is none
    TORN = auto()  # the last transaction is incomplete: never promised to anyone
    DAMAGED = auto()  # commits that were synced would be dropped


class Frame(NamedTuple):
    """One page image of the current generation."""

    number: int  # 1 is the first in the file
    page: int
    is_commit: bool
    image: bytes | memoryview
    sound: bool  # its checksum is right, by itself or after one bit was put right


class WalLog(NamedTuple):
    """A log, read to its end."""

    verdict: WalCondition
    detail: str
    page_bytes: int
    frames: list[Frame]  # of the current generation, also those behind a bad one
    committed: int  # how many of them SQLite would use


class _Slot(NamedTuple):
    """What stands at the place of a frame."""

    frame: Frame | None
    # "" for a frame that is right; "hole", "torn", "cut" by the log's end, or what is wrong
    fault: str
    is_stray: bool = False  # of this generation, whole, and fits to nothing before it


def read(data: bytes | memoryview, page_bytes: int = 4096) -> WalLog:
    """Read a log whole. `page_bytes` counts only where its header is unreadable."""
    view = memoryview(data)
    if view.nbytes <= HEADER_BYTES or (_is_zero(view[:HEADER_BYTES]) and _is_zero(view)):
        return WalLog(WalCondition.CLEAN, "", page_bytes, [], 0)
    reader = _Reader(view, page_bytes)
    if not reader.header_is_sound:
        reader.guess()
    slots = list(reader.slots())
    frames = [slot.frame for slot in slots if slot.frame is not None]
    if not reader.header_is_sound:
        detail = "the header of the log is damaged: SQLite would ignore the whole log"
        return WalLog(WalCondition.DAMAGED, detail, reader.page_bytes, frames, 0)
    committed = 0
    for index, slot in enumerate(slots):
        if slot.fault or slot.frame is None:
            break
        if slot.frame.is_commit:
            committed = index + 1
    verdict, detail = _judge(slots[committed:], committed)
    return WalLog(verdict, detail, reader.page_bytes, frames, committed)


def _judge(tail: list[_Slot], committed: int) -> tuple[WalCondition, str]:
    """What follows the last commit that SQLite would find."""
    while tail and tail[-1].fault == "hole":
        tail = tail[:-1]
    if not tail:
        return WalCondition.CLEAN, ""
    frames = [slot.frame for slot in tail if slot.frame is not None]
    commits = sum(frame.is_commit for frame in frames)
    pages = [frame.page for frame in frames if frame.sound]
    where = f"behind frame {committed} of the log"
    if commits > 1 or (commits and not frames[-1].is_commit):
        return WalCondition.DAMAGED, f"{where}: {commits} commits that SQLite would drop"
    if len(set(pages)) < len(pages):
        return WalCondition.DAMAGED, f"{where}: frames of several commits that SQLite would drop"
    bad = [slot for slot in tail if slot.fault not in ("", "hole", "torn", "cut")]
    # A large transaction that was rolled back leaves frames which fit to
    # nothing any more. They hold no commit, and end with a frame that is right
    # or, where the disk was full, with one that is cut short: its commit never came.
    was_full = tail[-1].fault == "cut" and all(slot.is_stray for slot in bad)
    if bad and (commits or (tail[-1].fault and not was_full)):
        return WalCondition.DAMAGED, f"{where}: {bad[0].fault}"
    return WalCondition.TORN, f"{where}: a transaction that was never finished"


class _Reader:
    """Walks the places of the frames, each judged by its neighbour's checksum."""

    page_bytes: int

    def __init__(self, view: memoryview, page_bytes: int) -> None:
        self.view = view
        head = bytes(view[:HEADER_BYTES].tobytes().ljust(HEADER_BYTES, b"\0"))
        magic, version, size, _, *salts, sum_0, sum_1 = struct.unpack(">8I", head)
        self.salts = (salts[0], salts[1])
        self.start: Sums = (sum_0, sum_1)
        self.words = ">" if magic & 1 else "<"
        self.page_bytes = size
        self.head = head
        self.repairs = 0
        self.header_is_sound = (
            magic & ~1 == MAGIC
            and version == VERSION
            and 512 <= size <= 65536
            and size & (size - 1) == 0
            and checksum(head[:24], (0, 0), self.words) == self.start
        )
        if not self.header_is_sound:
            self.page_bytes = page_bytes

    @property
    def frame_bytes(self) -> int:
        return FRAME_HEADER_BYTES + self.page_bytes

    def count(self) -> int:
        """Places for frames, the last one perhaps cut short."""
        return (self.view.nbytes - HEADER_BYTES + self.frame_bytes - 1) // self.frame_bytes

    def guess(self) -> None:
        """The header is unreadable: what the frames themselves agree on."""
        votes: dict[tuple[int, int], int] = {}
        for index in range(self.count()):
            salts = self._salts(index)
            if salts is not None and any(salts):
                votes[salts] = votes.get(salts, 0) + 1
        if votes:
            self.salts = max(votes, key=lambda salts: votes[salts])
            head = self.head[:16] + struct.pack(">2I", *self.salts)
            computed = checksum(head, (0, 0), self.words)
            if _differing_bits(computed, self.start) == 1:
                self.start = computed
        if self.count() > 1:
            before, here = self._place(0)[1], self._place(1)
            for words in "<>":
                if checksum(here[2], before, words) == here[1]:
                    self.words = words

    def slots(self) -> Iterator[_Slot]:
        """What stands at each place."""
        sums = self.start
        is_judged = True  # by the checksum of the frame before, which is there
        for index in range(self.count()):
            (page, commit, salts), stored, covered, image = self._place(index)
            if len(image) < self.page_bytes:
                yield _Slot(None, "cut")
                return
            right = checksum(covered, sums, self.words) == stored and page > 0
            if right and salts == self.salts:
                yield _Slot(Frame(index + 1, page, commit > 0, image, True), "")
            elif right and any(salts) and not self._is_older(salts):
                fault = f"frame {index + 1} has a damaged salt"
                yield _Slot(Frame(index + 1, page, commit > 0, image, True), fault)
            elif is_judged or not any(salts):
                slot, stored = self._suspect(index, salts, sums, stored)
                yield slot
            else:
                # What it would be judged by is missing: it says nothing.
                is_ours = salts == self.salts
                frame = Frame(index + 1, page, commit > 0 and is_ours, image, False)
                yield _Slot(frame if is_ours else None, "torn")
            sums = stored
            is_judged = any(sums)

    def _suspect(
        self, index: int, salts: tuple[int, int], before: Sums, stored: Sums
    ) -> tuple[_Slot, Sums]:
        """A place whose checksum is wrong, and what the next one is judged by."""
        (page, commit, _), _, covered, image = self._place(index)
        if self._is_older(salts) or (not any(covered) and not any(salts)):
            return _Slot(None, "hole"), stored
        number = index + 1
        got = checksum(covered, before, self.words)
        if _differing_bits(got, stored) == 1 and page > 0:
            # The stored checksum itself lost a bit: the page is right.
            frame = Frame(number, page, commit > 0, image, True)
            return _Slot(frame, f"frame {number} has a damaged checksum"), got
        if self.repairs < REPAIRS_MAX and salts == self.salts:
            self.repairs += 1
            slot = self._mended(number, covered, image, got, stored)
            if slot is not None:
                return slot, stored
        is_ours = salts == self.salts
        frame = Frame(number, page, commit > 0 and is_ours, image, False)
        if self._may_be_torn(index):
            return _Slot(frame if is_ours else None, "torn"), stored
        return _Slot(frame, f"frame {number} fails its checksum", is_ours), stored

    def _mended(
        self, number: int, covered: bytes, image: memoryview, got: Sums, stored: Sums
    ) -> _Slot | None:
        # No frame is of page 0: where that is missing, its lack may look as if a bit
        # elsewhere had flipped, since a small page number acts as upper bits do.
        ways = mend(covered, got, stored, self.words)
        found = [one for one in ways if any(one[:4])]
        if not found or self._is_missing_there(number - 1, covered, found):
            return None
        fault = f"frame {number} has one flipped bit"
        if len(found) == 1:
            page, commit = struct.unpack_from(">2I", found[0])
            return _Slot(Frame(number, page, commit > 0, found[0][8:], True), fault)
        # Several bits would explain it. Where none of them is in the frame's own
        # header, the page is known, and its rows have checksums of their own.
        page, commit = struct.unpack_from(">2I", covered)
        is_known = all(one[:8] == covered[:8] for one in found)
        return _Slot(Frame(number, page, commit > 0, image, is_known), fault)

    def _is_older(self, salts: tuple[int, int]) -> bool:
        """The first salt counts the generations, the second is random."""
        age = (self.salts[0] - salts[0]) & _MASK
        return bool(0 < age < _GENERATIONS and salts[1] != self.salts[1])

    def _is_missing_there(self, index: int, covered: bytes, mended: list[bytes]) -> bool:
        """Whether the one bit that would explain a frame is the only one of a
        sector that may be missing."""
        missing = self._missing(index)
        begin = HEADER_BYTES + index * self.frame_bytes
        for one in mended:
            place = next(p for p in range(len(covered)) if one[p] != covered[p])
            at = begin + (place if place < 8 else place - 8 + FRAME_HEADER_BYTES)
            if any(low <= at < high for low, high in missing):
                return True
        return False

    def _may_be_torn(self, index: int) -> bool:
        """Whether missing sectors explain a frame that is wrong."""
        return bool(self._missing(index))

    def _missing(self, index: int) -> list[tuple[int, int]]:
        """The parts of a frame that are all zeros, and so may have been more.

        A frame's header and its page are two writes: a sector in which one ends
        may have reached the disk before the next began. The gap in the middle of
        a b-tree page counts too: what was deleted there stays in it.
        """
        begin = HEADER_BYTES + index * self.frame_bytes
        end = begin + self.frame_bytes
        image_at = begin + FRAME_HEADER_BYTES
        found = []
        for sector in range(begin - begin % SECTOR_BYTES, end, SECTOR_BYTES):
            low, high = max(sector, begin), min(sector + SECTOR_BYTES, end)
            if low < image_at and _is_zero(self.view[low:high]):
                found.append((low, high))
                continue
            low = max(low, image_at)
            if low < high and _is_zero(self.view[low:high]):
                found.append((low, high))
        return found

    def _salts(self, index: int) -> tuple[int, int] | None:
        at = HEADER_BYTES + index * self.frame_bytes
        if at + 16 > self.view.nbytes:
            return None
        one, two = struct.unpack_from(">2I", self.view, at + 8)
        return one, two

    def _place(
        self, index: int
    ) -> tuple[tuple[int, int, tuple[int, int]], Sums, bytes, memoryview]:
        at = HEADER_BYTES + index * self.frame_bytes
        head = bytes(self.view[at : at + FRAME_HEADER_BYTES]).ljust(FRAME_HEADER_BYTES, b"\0")
        page, commit, salt_1, salt_2, sum_0, sum_1 = struct.unpack(">6I", head)
        image = self.view[at + FRAME_HEADER_BYTES : at + self.frame_bytes]
        return (page, commit, (salt_1, salt_2)), (sum_0, sum_1), head[:8] + bytes(image), image


def checksum(data: bytes, sums: Sums, words: str) -> Sums:
    """SQLite's running checksum, over data whose length is a multiple of 8."""
    a, b = sums
    values = struct.unpack(f"{words}{len(data) // 4}I", data)
    # Eight words a turn, and the mask only once: this is most of the reading's time.
    whole = len(values) - len(values) % 8
    step = iter(values[:whole])
    for p, q, r, s, t, u, v, w in zip(step, step, step, step, step, step, step, step, strict=True):
        a += p + b
        b += q + a
        a += r + b
        b += s + a
        a += t + b
        b += u + a
        a += v + b
        b += w + a
        a &= _MASK
        b &= _MASK
    for index in range(whole, len(values), 2):
        a = (a + values[index] + b) & _MASK
        b = (b + values[index + 1] + a) & _MASK
    return a, b


def mend(data: bytes, got: Sums, wanted: Sums, words: str) -> list[bytes]:
    """Every way in which one flipped bit explains a checksum.

    The checksum is linear: what a bit does to it depends on its place alone.
    The upper bits of a word do the same at several places of a page.
    """
    lack = ((wanted[0] - got[0]) & _MASK, (wanted[1] - got[1]) & _MASK)
    values = list(struct.unpack(f"{words}{len(data) // 4}I", data))
    found: list[bytes] = []
    odd, even = (0, 1), (1, 1)  # what one unit in the words of the last pair does
    for pair in range(len(values) // 2 - 1, -1, -1):
        for index, (on_a, on_b) in ((2 * pair + 1, odd), (2 * pair, even)):
            for bit in range(32):
                change = -(1 << bit) if values[index] >> bit & 1 else 1 << bit
                if (change * on_a) & _MASK == lack[0] and (change * on_b) & _MASK == lack[1]:
                    mended = list(values)
                    mended[index] += change
                    found.append(struct.pack(f"{words}{len(values)}I", *mended))
        odd = ((odd[0] + odd[1]) & _MASK, (odd[0] + 2 * odd[1]) & _MASK)
        even = ((even[0] + even[1]) & _MASK, (even[0] + 2 * even[1]) & _MASK)
    return found


def _differing_bits(one: Sums, other: Sums) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def _is_zero(view: memoryview) -> bool:
    return bytes(view).count(0) == view.nbytes
