"""The log as bytes: what a power cut leaves is told from damage."""

from __future__ import annotations

import random
import resource
import sqlite3
import struct
from pathlib import Path

import pytest

from outboxd.outbox.sqlite.rescue import wal
from outboxd.outbox.sqlite.rescue.wal import WalCondition

FRAME = 4096 + 24


def write_log(directory: Path, commits: int = 8, rows: int = 3) -> bytes:
    """A log of several commits, the last of several frames, as a kill would leave it."""
    path = directory / "log.db"
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "wal_autocheckpoint=0"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)")
    db.execute("CREATE INDEX i ON t (text)")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for commit in range(commits):
        db.execute("BEGIN")
        for row in range(rows):
            db.execute("INSERT INTO t (text) VALUES (?)", (f"{commit}.{row} " + "x" * 1500,))
        db.execute("COMMIT")
    data = Path(f"{path}-wal").read_bytes()
    db.close()
    return data


@pytest.fixture
def log(tmp_path: Path) -> bytes:
    return write_log(tmp_path)


def last_commit_begins(data: bytes) -> int:
    """The place of the first frame of the last transaction."""
    commits = [frame.number for frame in wal.read(data).frames if frame.is_commit]
    return commits[-2]


def with_zeros(data: bytes, at: int, count: int = 512) -> bytes:
    return data[:at] + bytes(count) + data[at + count :]


def test_a_whole_log_is_clean_and_its_frames_are_those_that_sqlite_wrote(log: bytes):
    read = wal.read(log)
    assert read.verdict is WalCondition.CLEAN
    assert len(read.frames) == read.committed == (len(log) - 32) // FRAME
    assert all(frame.sound for frame in read.frames)


@pytest.mark.parametrize("data", [b"", bytes(32), bytes(40_000), b"short"])
def test_an_empty_log_is_clean(data: bytes):
    assert wal.read(data).verdict is WalCondition.CLEAN


def test_a_last_transaction_cut_short_anywhere_is_what_a_power_cut_leaves(log: bytes):
    begin = 32 + last_commit_begins(log) * FRAME
    for end in range(begin, len(log), 1024):
        read = wal.read(log[:end])
        assert read.verdict in (WalCondition.CLEAN, WalCondition.TORN), (end, read.detail)
        assert read.committed == last_commit_begins(log)


def test_any_sectors_of_the_last_transaction_may_be_missing_after_a_power_cut(log: bytes):
    random_ = random.Random(4)
    begin = 32 + last_commit_begins(log) * FRAME
    first = -(-begin // 512) * 512
    false_alarms = 0
    for _ in range(24):
        torn = log
        for sector in range(first, len(log), 512):
            if random_.random() < 0.4:
                torn = with_zeros(torn, sector, min(512, len(log) - sector))
        read = wal.read(torn)
        false_alarms += read.verdict is WalCondition.DAMAGED
        assert read.committed >= last_commit_begins(log)
    # Stale bytes in a page's gap may be what is missing: a false alarm, which
    # costs a salvage and loses nothing.
    assert false_alarms <= 3


def test_a_missing_page_number_is_not_taken_for_a_flipped_bit(tmp_path: Path):
    """A sector that ends 8 bytes into a frame's header took the number with it."""
    log = write_log(tmp_path, commits=1, rows=60)
    begin = 32 + 41 * FRAME
    assert begin % 512 == 504
    before = struct.unpack_from(">2I", log, begin - FRAME + 16)
    for page in range(100, 130):  # none that a frame before has
        torn = bytearray(log[: begin + FRAME])
        struct.pack_into(">2I", torn, begin, page, 0)
        covered = bytes(torn[begin : begin + 8] + torn[begin + 24 :])
        struct.pack_into(">2I", torn, begin + 16, *wal.checksum(covered, before, "<"))
        read = wal.read(with_zeros(bytes(torn), begin - 504))
        assert read.verdict is WalCondition.TORN, (page, read.detail)


def test_missing_sectors_in_an_earlier_transaction_are_damage(log: bytes):
    for frame in range(last_commit_begins(log)):
        at = -(-(32 + frame * FRAME) // 512) * 512 + 512
        zeroed = with_zeros(log, at, 2048)
        if zeroed != log:
            assert wal.read(zeroed).verdict is WalCondition.DAMAGED, frame


def test_one_flipped_bit_anywhere_is_found_and_mostly_put_right(log: bytes):
    random_ = random.Random(5)
    right = [bytes(frame.image) for frame in wal.read(log).frames]
    put_right = 0
    for _ in range(24):
        at, bit = random_.randrange(32, len(log)), random_.randrange(8)
        damaged = bytearray(log)
        damaged[at] ^= 1 << bit
        read = wal.read(bytes(damaged))
        assert read.verdict is WalCondition.DAMAGED, (at, bit)
        wrong = sum(
            bytes(frame.image) != image for frame, image in zip(read.frames, right, strict=True)
        )
        assert wrong <= 1
        put_right += wrong == 0
    # The upper bits of a word have the same effect at several places.
    assert put_right >= 12


def test_one_flipped_bit_in_the_header_is_found_and_the_frames_are_still_read(log: bytes):
    right = [bytes(frame.image) for frame in wal.read(log).frames]
    for at in range(32):
        damaged = bytearray(log)
        damaged[at] ^= 4
        read = wal.read(bytes(damaged))
        assert read.verdict is WalCondition.DAMAGED, at
        assert [bytes(frame.image) for frame in read.frames] == right, at


def test_the_last_commits_own_frame_overwritten_with_noise_is_damage(log: bytes):
    noise = random.Random(6).randbytes(FRAME)
    assert wal.read(log[:-FRAME] + noise).verdict is WalCondition.DAMAGED


def test_frames_of_an_older_generation_behind_the_newest_are_no_damage(tmp_path: Path):
    older = write_log(tmp_path)
    salt_1, salt_2 = struct.unpack_from(">2I", older, 16)
    newer = bytearray(older[: 32 + 4 * FRAME])
    struct.pack_into(">2I", newer, 16, salt_1 + 1, salt_2 ^ 0x5A5A5A5A)
    sums = wal.checksum(bytes(newer[:24]), (0, 0), "<")
    struct.pack_into(">2I", newer, 24, *sums)
    for frame in range(4):
        at = 32 + frame * FRAME
        struct.pack_into(">2I", newer, at + 8, salt_1 + 1, salt_2 ^ 0x5A5A5A5A)
        covered = bytes(newer[at : at + 8] + newer[at + 24 : at + FRAME])
        sums = wal.checksum(covered, sums, "<")
        struct.pack_into(">2I", newer, at + 16, *sums)
    read = wal.read(bytes(newer) + older[len(newer) :])
    assert read.verdict is not WalCondition.DAMAGED
    assert len(read.frames) == 4


def test_what_a_rolled_back_transaction_spilled_is_no_damage(tmp_path: Path):
    path = tmp_path / "spill.db"
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "cache_size=10", "cache_spill=10"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute("CREATE TABLE t (text TEXT)")
    db.execute("BEGIN")
    for _ in range(60):
        db.execute("INSERT INTO t VALUES (?)", ("x" * 3000,))
    db.execute("ROLLBACK")
    db.execute("INSERT INTO t VALUES ('kept')")
    data = Path(f"{path}-wal").read_bytes()
    db.close()
    read = wal.read(data)
    assert len(data) > 32 + 20 * FRAME
    assert read.verdict is not WalCondition.DAMAGED, read.detail


@pytest.mark.parametrize("cut_bytes", [10, 24, 1408, FRAME - 1])
def test_what_a_full_disk_cut_short_is_no_damage_and_a_bad_frame_before_it_is(
    tmp_path: Path, cut_bytes: int
):
    path = tmp_path / "full.db"
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "wal_autocheckpoint=0"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute("CREATE TABLE t (text TEXT)")
    db.execute("INSERT INTO t VALUES (?)", ("promised " * 300,))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    room_bytes = Path(f"{path}-wal").stat().st_size + 6 * FRAME + cut_bytes
    db.execute("BEGIN")
    db.execute("INSERT INTO t VALUES (?)", ("x" * 80_000,))  # pages without a gap
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, hard))
    try:
        with pytest.raises(sqlite3.OperationalError):
            db.execute("COMMIT")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if db.in_transaction:
        db.execute("ROLLBACK")
    for text in ("kept", "this as well"):
        db.execute("INSERT INTO t VALUES (?)", (text,))
    data = Path(f"{path}-wal").read_bytes()
    db.close()
    read = wal.read(data)
    assert len(data) == room_bytes, "a frame is cut short"
    assert read.verdict is WalCondition.TORN, read.detail
    # The commit itself, overwritten, is no such frame: it does not carry its generation.
    begin = 32 + (read.committed - 1) * FRAME
    noise = random.Random(1).randbytes(FRAME)
    assert wal.read(data[:begin] + noise + data[begin + FRAME :]).verdict is WalCondition.DAMAGED


def test_the_checksum_is_the_one_that_sqlite_computes(log: bytes):
    assert wal.checksum(log[:24], (0, 0), "<") == struct.unpack_from(">2I", log, 24)


def test_two_flipped_bits_are_not_taken_for_one(log: bytes):
    data = log[32:40] + log[56 : 32 + FRAME]
    sums = wal.checksum(data, (1, 2), "<")
    damaged = bytearray(data)
    damaged[100] ^= 1
    damaged[2000] ^= 64
    assert wal.mend(bytes(damaged), wal.checksum(bytes(damaged), (1, 2), "<"), sums, "<") == []
