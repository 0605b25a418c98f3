"""Outboxes filled in advance, and bare SQLite beside them."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from benchmarks.load import BODY
from outboxd.event.komodor import Defaults, parse, scope_text, wire_body
from outboxd.outbox.model import Attempt, Incoming, Settlement
from outboxd.outbox.sqlite.engine import SqliteEngine


def incoming() -> Incoming:
    """The benchmark's event, as the door hands it on."""
    event = parse(BODY)
    defaults = Defaults()
    scope = scope_text(event, defaults)
    return Incoming(
        wire_body(event, defaults, scope),
        event.event_type,
        event.severity,
        scope,
        "batch",
        time.time_ns() // 1_000_000,
    )


def fill(path: Path, count: int) -> None:
    """So many events, all pending."""
    engine = SqliteEngine(str(path))
    item = incoming()
    while count > 0:
        portion = min(count, 5000)
        with engine.transaction():
            engine.accept([item] * portion)
        if engine.log_bytes() > 64 << 20:
            engine.checkpoint()
        count -= portion
    engine.close()


def deliver_all(path: Path, ended_before_s: float) -> None:
    """Settle everything as delivered, long ago."""
    engine = SqliteEngine(str(path))
    attempt = Attempt(0, 1, "delivered", 201, None)
    (last,) = engine.connection.execute("SELECT max(seq) FROM entries").fetchone()
    for start in range(1, last + 1, 5000):
        with engine.transaction():
            engine.settle(
                [Settlement(seq, "delivered", attempt) for seq in range(start, start + 5000)]
            )
        if engine.log_bytes() > 64 << 20:
            engine.checkpoint()
    engine.close()


def bare_sqlite(path: Path, count: int, rows_a_commit: int) -> float:
    """Rows a second of executemany with the same durability, one table, the same bodies."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, body TEXT)")
    rows = [(BODY.decode(),)] * rows_a_commit
    began_s = time.perf_counter()
    for _ in range(count // rows_a_commit):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO t (body) VALUES (?)", rows)
        connection.execute("COMMIT")
    taken_s = time.perf_counter() - began_s
    connection.close()
    return count / taken_s
