"""A last transaction of which any one sector is older is torn, never damage.

The exhaustive small brother of the crash images: whatever SQLite left in the
gaps of its pages, and wherever its two writes of a frame meet in a sector.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from outboxd.outbox.model import Attempt, Incoming, Settlement
from outboxd.outbox.sqlite.connection import PAGE_BYTES
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.sqlite.rescue import wal
from outboxd.outbox.sqlite.rescue.wal import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    SECTOR_BYTES,
    WalCondition,
)


@pytest.fixture
def log(tmp_path: Path) -> bytes:
    """Of one transaction on pages in which much was changed and deleted before."""
    engine = SqliteEngine(str(tmp_path / "outbox.db"))
    body = b'{"eventType":"t","summary":"%s"}' % (b"x" * 300)
    incoming = Incoming(body, "t", "warning", "", "socket", 1, dedup_key=None)
    for start in range(1, 60, 20):
        with engine.transaction():
            engine.accept([incoming._replace(dedup_key=f"{start}-{n}") for n in range(20)])
        settled = [
            Settlement(seq, "delivered", Attempt(1, 5, "delivered", 201, None))
            for seq in range(start, start + 20, 2)
        ]
        with engine.transaction():
            engine.settle(settled)
            engine.set_sending(range(start, start + 20))
    with engine.transaction():
        engine.prune(0, 500, engine.clock.wall_ms() + 1000)
    assert engine.checkpoint()
    with engine.transaction():
        engine.accept([incoming])
        engine.set_sending([60])
    data = (tmp_path / "outbox.db-wal").read_bytes()
    engine.close()
    return data


def writes(log: bytes) -> list[tuple[int, int]]:
    """Where SQLite's own writes begin and end: a frame's header, then its page."""
    found = [(0, HEADER_BYTES)]
    at = HEADER_BYTES
    while at < len(log):
        found += [(at, at + FRAME_HEADER_BYTES)]
        found += [(at + FRAME_HEADER_BYTES, at + FRAME_HEADER_BYTES + PAGE_BYTES)]
        at += FRAME_HEADER_BYTES + PAGE_BYTES
    return found


def test_an_older_version_of_any_one_sector_is_a_power_cut(log):
    tried = 0
    for sector in range(0, len(log), SECTOR_BYTES):
        end = min(sector + SECTOR_BYTES, len(log))
        for begin, _ in writes(log):
            # The sector as it was before the write that begins here.
            since = max(begin, sector)
            if begin < HEADER_BYTES or not sector <= since < end or begin > since != sector:
                continue
            image = log[:since] + bytes(end - since) + log[end:]
            if image == log:
                continue
            tried += 1
            read = wal.read(image, PAGE_BYTES)
            assert read.verdict is not WalCondition.DAMAGED, (sector, since, read.detail)
    assert tried > 50


def test_the_header_is_synced_first_so_any_of_its_bits_is_damage(log):
    for byte in range(HEADER_BYTES):
        image = bytearray(log)
        image[byte] ^= 16
        assert wal.read(bytes(image), PAGE_BYTES).verdict is WalCondition.DAMAGED


def test_a_crash_while_the_tables_are_made_leaves_none(tmp_path, monkeypatch):
    """One transaction: what a power cut leaves of it is a file without tables."""
    from outboxd.outbox.sqlite import schema

    def cut(connection: sqlite3.Connection) -> None:
        connection.execute(schema.ENTRIES)
        raise OSError("the power is cut")

    path = str(tmp_path / "outbox.db")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "create", cut)
        with pytest.raises(OSError, match="cut"):
            SqliteEngine(path)
    engine = SqliteEngine(path)
    assert engine.counts().pending == 0
    engine.close()
